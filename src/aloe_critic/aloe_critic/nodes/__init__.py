"""ROS 2 nodes of aloe_critic: thin shells around its pure modules."""
