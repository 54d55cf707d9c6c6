"""ROS 2 nodes around the simulation: the bridge, and the scripted expert."""
