"""The shared vocabulary of ALOE for ROS 2: no ROS node, no torch."""

__version__ = "0.1.0"
