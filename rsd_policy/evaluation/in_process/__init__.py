"""Episodes without ROS: the loop, what drives it, worker processes, and videos by replay."""
