"""The control loop: chunks and teleoperation in, commands inside every limit out. Pure: no ROS."""
