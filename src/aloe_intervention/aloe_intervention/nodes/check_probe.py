"""Listens to a running graph for a few seconds, for `aloe check`. Publishes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_core.messages import stamp_to_ns
from aloe_core.observation import decode_image
from aloe_core.robot import Camera, RobotDescription
from aloe_intervention.checks import Commanded, Findings, Heard, HeardImages, HeardJoints, RunningPolicy
from aloe_msgs.msg import PolicyStatus, SafetyStatus
from aloe_robot.control.outputs import command_outputs
from aloe_robot.nodes.qos import LATCHED

SENSOR = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
DISCOVERY = 1.5  # [s] that DDS gets before the listening begins
MORE_DISCOVERY = 3.0  # [s] more, as long as something that must be there is not


class Probe(Node):
    """Collects `Findings`."""

    def __init__(self, robot: RobotDescription, namespace: str) -> None:
        super().__init__("aloe_check", namespace=namespace)
        self.robot = robot
        self.joints = HeardJoints()
        self.images = {camera.name: HeardImages() for camera in robot.cameras}
        self.stopped = ""
        self.policy: RunningPolicy | None = None
        self.last: dict[str, bytes] = {}  # newest picture by camera
        self.listening = False
        self.create_subscription(JointState, robot.joint_states_topic, self._on_joints, SENSOR)
        for camera in robot.cameras:
            self._subscribe_camera(camera)
        self.create_subscription(SafetyStatus, topics.SAFETY_STATUS, self._on_safety, LATCHED)
        self.create_subscription(PolicyStatus, topics.POLICY_STATUS, self._on_policy, LATCHED)

    def _subscribe_camera(self, camera: Camera) -> None:
        heard = self.images[camera.name]

        def on_image(message: CompressedImage) -> None:
            if self.listening:
                self._hear(heard, message)
                self.last[camera.name] = bytes(message.data)
                heard.bytes += len(message.data)

        def on_info(message: CameraInfo) -> None:
            heard.calibrated = not np.array_equal(message.k, np.eye(3).ravel())

        self.create_subscription(CompressedImage, camera.compressed_topic, on_image, SENSOR)
        self.create_subscription(CameraInfo, camera.info_topic, on_info, SENSOR)

    def _hear(self, heard: Heard, message: JointState | CompressedImage) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        heard.stamps_ns.append(stamp_ns)
        heard.ages_ns.append(self.get_clock().now().nanoseconds - stamp_ns)

    def _on_joints(self, message: JointState) -> None:
        if self.listening:
            self._hear(self.joints, message)
            self.joints.positions.update(zip(message.name, message.position, strict=False))

    def _on_safety(self, message: SafetyStatus) -> None:
        self.stopped = message.message if message.state == SafetyStatus.STATE_STOPPED else ""

    def _on_policy(self, message: PolicyStatus) -> None:
        ready = message.state == PolicyStatus.STATE_READY
        self.policy = RunningPolicy(ready, message.version, message.message)

    def complete(self) -> bool:
        """Whether somebody publishes whatever should be published."""
        wanted = [self.robot.joint_states_topic, *(camera.compressed_topic for camera in self.robot.cameras)]
        return all(self.count_publishers(topic) for topic in wanted)

    def spin(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not enough():
            rclpy.spin_once(self, timeout_sec=min(left, 0.1))

    def findings(self) -> Findings:
        """What was heard, and who is there."""
        self._look_at_publishers(self.joints, self.robot.joint_states_topic)
        for camera in self.robot.cameras:
            heard = self.images[camera.name]
            self._look_at_publishers(heard, camera.compressed_topic)
            if camera.name in self.last:
                try:
                    picture = decode_image(self.last[camera.name], None)
                    heard.size = (picture.shape[1], picture.shape[0])
                except (AloeError, cv2.error):
                    heard.undecodable += 1
        commands = {}
        for output in command_outputs(self.robot):
            for topic, _ in output.topics:
                subscriptions = self.get_subscriptions_info_by_topic(self.resolve_topic_name(topic))
                publishers = self.get_publishers_info_by_topic(self.resolve_topic_name(topic))
                controllers = [i for i in subscriptions if i.node_name not in ("recorder_node", self.get_name())]
                commands[topic] = Commanded(
                    publishers=[_name(info) for info in publishers],
                    subscribers=[_name(info) for info in subscriptions],
                    types=[info.topic_type for info in controllers],
                )
        return Findings(
            joints=self.joints,
            images=self.images,
            commands=commands,
            raw_images=[c.raw_topic for c in self.robot.cameras if self.count_publishers(c.raw_topic)],
            simulated=self.count_publishers("/clock") > 0,
            stopped=self.stopped,
            policy=self.policy,
        )

    def _look_at_publishers(self, heard: Heard, topic: str) -> None:
        infos = self.get_publishers_info_by_topic(self.resolve_topic_name(topic))
        heard.publishers = [_name(info) for info in infos]
        heard.best_effort = any(i.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for i in infos)


def probe(robot: RobotDescription, seconds: float, namespace: str = "/") -> Findings:
    """Listens to the graph for `seconds` [s] after discovery."""
    rclpy.init()
    node = Probe(robot, namespace)
    try:
        node.spin(DISCOVERY)
        node.spin(MORE_DISCOVERY, enough=node.complete)
        node.listening = True
        node.spin(seconds)
        return node.findings()
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _name(info) -> str:
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"
