"""What a node that builds observations listens to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, JointState

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_core.messages import stamp_to_ns
from aloe_core.observation import ObservationBuilder
from aloe_msgs.msg import TaskState
from aloe_robot.nodes.qos import IMAGES, JOINT_STATES


def subscribe_sensors(node: Node, builder: ObservationBuilder, on_news: Callable[[], None]) -> list[Subscription]:
    """Fills `builder` with everything that its observations need, and calls `on_news` after each message."""
    robot = builder.robot

    def on_joints(message: JointState) -> None:
        try:
            builder.add_joint_state(stamp_to_ns(message.header.stamp), message.name, message.position)
        except AloeError as error:
            node.get_logger().warning(f"{robot.joint_states_topic}: {error}", throttle_duration_sec=1.0)
            return
        on_news()

    def on_image(camera: str, message: CompressedImage) -> None:
        builder.add_image(camera, stamp_to_ns(message.header.stamp), bytes(message.data))
        on_news()

    def on_task(message: TaskState) -> None:
        builder.add_task_state(stamp_to_ns(message.header.stamp), message.object_state, message.sim_state)
        on_news()

    found = [node.create_subscription(JointState, robot.joint_states_topic, on_joints, JOINT_STATES)]
    for camera in builder.cameras:
        topic = robot.camera(camera).compressed_topic
        found.append(node.create_subscription(CompressedImage, topic, partial(on_image, camera), IMAGES))
    if builder.use_task_state:
        found.append(node.create_subscription(TaskState, topics.TASK_STATE, on_task, 10))
    return found
