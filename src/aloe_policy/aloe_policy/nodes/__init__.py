"""ROS 2 nodes of aloe_policy: thin shells around its pure modules."""
