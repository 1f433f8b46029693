"""Quality of service that several nodes read or offer topics with."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Whoever reads `episode/event`: at depth 1 a STOPPED is gone when a LABELLED follows before the reader's executor looks. The writer keeps depth 1, so that
# a node that starts late hears the newest event only: of ten it would take up episodes that are long over.
EVENTS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Whoever builds observations: a busy node must find the message of the time it is asked for, not only the newest. Our choice: what comes in a third of a
# second at 300 and 30 Hz, as far as a replay runs ahead of an answer.
JOINT_STATES = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
IMAGES = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
