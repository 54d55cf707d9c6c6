"""ROS 2 nodes: thin shells over the ROS-free packages. Only this folder and sim_bridge/nodes import rclpy."""
