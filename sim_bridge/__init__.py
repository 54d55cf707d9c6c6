"""LIBERO/robosuite as a robot: in-process environment, scripted expert, and (in nodes/) the ROS bridge."""
