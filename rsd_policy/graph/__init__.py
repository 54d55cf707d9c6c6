"""The node graphs: each described once, and what starts and ends their processes. Needs no ROS."""
