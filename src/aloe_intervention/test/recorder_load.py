"""A process that loads the recorder like a robot: `recorder_load.py cameras|control ROBOT_YAML SECONDS [jpeg|raw]`; prints what it published as JSON.

`control` plays the control loop and `episode_node` for one episode of at least SECONDS; `cameras` plays all cameras of the robot for SECONDS, from the
moment the recorder records.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Empty, Float64MultiArray

from aloe_core import topics
from aloe_core.messages import compressed_image_msg, header_msg, joint_state_msg, ros_make
from aloe_core.robot import RobotDescription, load_robot
from aloe_msgs.msg import ActionChunk, ControlState, EpisodeEvent, RecorderStatus, Transition

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
PATIENCE = 60.0  # [s] for anything that must happen
READY, DONE = "recorder_load/cameras_ready", "recorder_load/cameras_done"


class Load(Node):
    """Publishes and counts."""

    def __init__(self, role: str, robot: RobotDescription) -> None:
        super().__init__(f"load_{role}")
        self.robot = robot
        self.counts: Counter[str] = Counter()
        self.status: RecorderStatus | None = None
        self.cameras: set[str] = set()  # what the process of the cameras has said
        self.outlets: dict[str, rclpy.publisher.Publisher] = {}
        self.create_subscription(RecorderStatus, topics.RECORDER_STATUS, self.on_status, LATCHED)
        for topic in (READY, DONE):
            self.create_subscription(Empty, topic, lambda m, t=topic: self.cameras.add(t), LATCHED)

    def on_status(self, message: RecorderStatus) -> None:
        self.status = message

    def outlet(self, kind: type, topic: str, qos: QoSProfile | int = 10) -> None:
        self.outlets[topic] = self.create_publisher(kind, topic, qos)

    def send(self, topic: str, message: object) -> None:
        self.outlets[topic].publish(message)
        self.counts[self.resolve_topic_name(topic)] += 1

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.get_name()}: {what} did not happen in {PATIENCE} s; status {self.status}")
            rclpy.spin_once(self, timeout_sec=0.02)

    def matched(self) -> bool:
        return all(p.get_subscription_count() for p in self.outlets.values())

    def pace(self, rate: float, ticks: int) -> None:
        """Calls `tick(k)` at `rate` [Hz]; late ticks follow at once, none is left out."""
        start = time.monotonic()
        for k in range(ticks):
            while (left := start + k / rate - time.monotonic()) > 0:
                rclpy.spin_once(self, timeout_sec=left)
            self.tick(k)

    def now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


class Cameras(Load):
    """All cameras of the robot; every picture differs, so that compression has work to do."""

    def __init__(self, robot: RobotDescription, raw: bool) -> None:
        super().__init__("cameras", robot)
        self.raw = raw
        for camera in robot.cameras:
            self.outlet(Image if raw else CompressedImage, camera.raw_topic if raw else camera.compressed_topic, 2)
            self.outlet(CameraInfo, camera.info_topic, 2)
        self.say = {topic: self.create_publisher(Empty, topic, LATCHED) for topic in (READY, DONE)}
        shape = (robot.cameras[0].height, robot.cameras[0].width, 3)
        noise = np.random.default_rng(0)
        low = noise.integers(0, 255, (shape[0] // 8, shape[1] // 8, 3), dtype=np.uint8)
        scene = cv2.resize(low, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
        self.pictures = [np.roll(scene, 16 * k, axis=1) for k in range(8)]
        self.jpegs = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for p in self.pictures]

    def tick(self, k: int) -> None:
        for camera in self.robot.cameras:
            stamp = self.now_ns()
            header = header_msg(ros_make, stamp, camera.frame_id)
            if self.raw:
                picture = self.pictures[k % 8]
                height, width = picture.shape[:2]
                fields = {"height": height, "width": width, "encoding": "bgr8", "is_bigendian": 0, "step": 3 * width}
                self.send(
                    camera.raw_topic,
                    ros_make("sensor_msgs/msg/Image", header=header, data=picture.reshape(-1), **fields),
                )
            else:
                message = compressed_image_msg(ros_make, stamp, camera.frame_id, self.jpegs[k % 8])
                self.send(camera.compressed_topic, message)
            self.send(camera.info_topic, CameraInfo(header=header))

    def run(self, seconds: float) -> None:
        self.until(self.matched, "subscriptions of the recorder")
        self.say[READY].publish(Empty())
        self.until(lambda: self.status is not None and self.status.state == RecorderStatus.STATE_RECORDING, "recording")
        rate = self.robot.cameras[0].rate_hz
        self.pace(rate, round(seconds * rate))
        self.say[DONE].publish(Empty())
        self.until(lambda: self.status.state == RecorderStatus.STATE_IDLE, "closed bag")


class Control(Load):
    """The control loop and the owner of the episode."""

    def __init__(self, robot: RobotDescription) -> None:
        super().__init__("control", robot)
        for kind, topic, qos in (
            (EpisodeEvent, topics.EPISODE_EVENT, LATCHED),
            (JointState, robot.joint_states_topic, 10),
            (Transition, topics.TRANSITION, 10),
            (ControlState, topics.CONTROL_STATE, 10),
            (ActionChunk, topics.CHUNK, 10),
            *((Float64MultiArray, arm.output.topic, 1) for arm in robot.arms),
        ):
            self.outlet(kind, topic, qos)
        self.previous_ns = 0

    def tick(self, k: int, final: bool = False) -> None:
        robot, stamp = self.robot, self.now_ns()
        self.send(
            robot.joint_states_topic, joint_state_msg(ros_make, stamp, robot.action_names, np.zeros(robot.action_dim))
        )
        if k:  # one tick late
            header = header_msg(ros_make, self.previous_ns)
            self.send(topics.TRANSITION, Transition(header=header, episode_id="load", step=k - 1, truncated=final))
        self.previous_ns = stamp
        if final:
            return
        self.send(topics.CONTROL_STATE, ControlState(header=header_msg(ros_make, stamp), episode_id="load", step=k))
        for arm in robot.arms:
            self.send(arm.output.topic, Float64MultiArray(data=[0.0] * len(arm.action_names)))
        if k % 25 == 0:
            self.send(
                topics.CHUNK, ActionChunk(header=header_msg(ros_make, stamp), episode_id="load", chunk_id=k // 25 + 1)
            )

    def event(self, kind: int, **fields: object) -> None:
        header = header_msg(ros_make, self.now_ns())
        self.send(
            topics.EPISODE_EVENT, EpisodeEvent(header=header, event=kind, episode_id="load", task="load", **fields)
        )

    def run(self, seconds: float) -> None:
        self.until(self.matched, "subscriptions of the recorder")
        self.until(lambda: READY in self.cameras, "cameras")
        self.until(lambda: self.status is not None and self.status.state == RecorderStatus.STATE_IDLE, "idle recorder")
        self.event(EpisodeEvent.STARTED, instruction="load the recorder", seed=4, policy_version="v1")
        self.until(lambda: self.status.state == RecorderStatus.STATE_RECORDING, "recording")
        ticks, rate, start = 0, self.robot.control_rate_hz, time.monotonic()
        while time.monotonic() < start + seconds or DONE not in self.cameras:
            self.tick(ticks)
            ticks += 1
            while (left := start + ticks / rate - time.monotonic()) > 0:
                rclpy.spin_once(self, timeout_sec=left)
        outcome, reason = EpisodeEvent.OUTCOME_TIMEOUT, EpisodeEvent.TERMINATION_TIME_LIMIT
        self.event(EpisodeEvent.STOPPED, outcome=outcome, termination_reason=reason)
        self.tick(ticks, final=True)
        self.until(lambda: self.status.state == RecorderStatus.STATE_IDLE, "closed bag")


def main() -> None:
    role, robot, seconds = sys.argv[1], load_robot(sys.argv[2]), float(sys.argv[3])
    rclpy.init()
    load = Control(robot) if role == "control" else Cameras(robot, raw="raw" in sys.argv[4:])
    load.run(seconds)
    status = load.status
    print(
        json.dumps(
            {"counts": load.counts, "complete": status.complete, "dropped": status.dropped, "message": status.message}
        )
    )
    rclpy.shutdown()


if __name__ == "__main__":
    main()
