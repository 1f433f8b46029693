"""ROS 2 nodes of aloe_robot: thin shells around its pure modules."""
