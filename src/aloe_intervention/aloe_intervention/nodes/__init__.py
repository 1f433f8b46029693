"""ROS 2 nodes of aloe_intervention: thin shells around its pure modules."""
