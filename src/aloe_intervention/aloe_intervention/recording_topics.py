"""Which topics of the graph belong into a bag, what is expected of them, and how to subscribe to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from aloe_core import topics
from aloe_core.bag_format import TopicQos
from aloe_core.errors import AloeError
from aloe_core.messages import typestore
from aloe_core.robot import RobotDescription

Images = Literal["compressed", "raw", "both", "none"]
IMAGE_CHOICES: tuple[Images, ...] = ("compressed", "raw", "both", "none")
IMAGE_DEPTH = 60  # messages; two seconds of a 30 Hz camera while the recorder's process is held up
MESSAGE_DEPTH = 1000  # messages; small ones cost nothing to keep


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic to be recorded.

    Attributes:
        name: as the robot description or `aloe_core.topics` gives it, relative to the namespace.
        type: like `sensor_msgs/msg/JointState`.
        expected_rate: [Hz] during an episode; 0: none expected.
        latched: its newest message belongs into every bag, however old.
        observation: its newest message before the start belongs to the first observation.
    """

    name: str
    type: str
    expected_rate: float = 0.0
    latched: bool = False
    observation: bool = False

    @property
    def depth(self) -> int:
        """Length of the subscription's queue."""
        return (
            IMAGE_DEPTH if self.type in ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage") else MESSAGE_DEPTH
        )


def recorded_topics(robot: RobotDescription, simulation: bool, images: Images = "compressed") -> tuple[TopicSpec, ...]:
    """Everything a bag holds (docs/architecture.md, "A bag"), with the rates that an episode of this robot must show.

    Args:
        simulation: the simulator's task state is there and recorded.
        images: which image topics; cameras may publish either or both.
    """
    rate = robot.control_rate_hz
    found = [TopicSpec(robot.joint_states_topic, "sensor_msgs/msg/JointState", rate, observation=True)]
    for camera in robot.cameras if images != "none" else ():
        if images != "raw":
            found.append(
                TopicSpec(camera.compressed_topic, "sensor_msgs/msg/CompressedImage", camera.rate_hz, observation=True)
            )
        if images != "compressed":
            found.append(TopicSpec(camera.raw_topic, "sensor_msgs/msg/Image", camera.rate_hz, observation=True))
        found.append(TopicSpec(camera.info_topic, "sensor_msgs/msg/CameraInfo", observation=True))
    found += [
        TopicSpec(topics.CHUNK, "aloe_msgs/msg/ActionChunk"),
        TopicSpec(topics.CHUNK_REQUEST, "aloe_msgs/msg/ChunkRequest"),
        TopicSpec(topics.TRANSITION, "aloe_msgs/msg/Transition", rate),
        TopicSpec(topics.CONTROL_STATE, "aloe_msgs/msg/ControlState", rate),
        TopicSpec(topics.SAFETY_STATUS, "aloe_msgs/msg/SafetyStatus", latched=True),
        TopicSpec(topics.EPISODE_EVENT, "aloe_msgs/msg/EpisodeEvent", latched=True),
        TopicSpec(topics.POLICY_VERSION, "aloe_msgs/msg/PolicyVersion", latched=True),
    ]
    for arm in robot.arms:
        if arm.output.type == "forward_position":
            found.append(TopicSpec(arm.output.topic, "std_msgs/msg/Float64MultiArray", rate))
        else:
            found.append(TopicSpec(arm.output.topic, "trajectory_msgs/msg/JointTrajectory"))
        if arm.output.gripper_topic:
            found.append(TopicSpec(arm.output.gripper_topic, "std_msgs/msg/Float64MultiArray", rate))
        found += [
            TopicSpec(topics.TELEOP_COMMAND.format(arm=arm.name), "aloe_msgs/msg/TeleopCommand"),
            TopicSpec(topics.SPACENAV_TWIST.format(arm=arm.name), "geometry_msgs/msg/Twist"),
            TopicSpec(topics.SPACENAV_JOY.format(arm=arm.name), "sensor_msgs/msg/Joy"),
        ]
    if simulation:
        found.append(TopicSpec(topics.TASK_STATE, "aloe_msgs/msg/TaskState", rate, observation=True))
    return tuple(found)


def discovered_topic(name: str, types: Sequence[str]) -> TopicSpec:
    """An extra topic, once its type is known from the graph.

    Raises:
        AloeError: it has several types, or one that is neither of ROS 2's common interfaces nor ours.
    """
    if len(types) != 1:
        raise AloeError(f"extra topic {name} has several types ({', '.join(types)}); it is not recorded")
    if types[0] not in typestore().fielddefs:
        raise AloeError(f"extra topic {name} has type {types[0]}, whose definition is unknown; it is not recorded")
    return TopicSpec(name, types[0])


def matching_qos(spec: TopicSpec, offers: Iterable[tuple[bool, bool]]) -> TopicQos:
    """The strongest quality of service that every publisher offers; the project's own when nobody publishes yet.

    Args:
        offers: (reliable, transient local) of each publisher.
    """
    offers = list(offers)
    reliable = all(r for r, _ in offers)
    latched = all(t for _, t in offers) if offers else spec.latched
    return TopicQos(
        reliability="reliable" if reliable else "best_effort",
        durability="transient_local" if latched else "volatile",
        depth=spec.depth,
    )
