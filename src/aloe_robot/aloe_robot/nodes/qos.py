"""Quality of service of topics whose newest message must reach nodes that start late."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Whoever reads `episode/event`: at depth 1 a STOPPED is gone when a LABELLED follows before the reader's executor looks. The writer keeps depth 1, so that
# a node that starts late hears the newest event only: of ten it would take up episodes that are long over.
EVENTS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
