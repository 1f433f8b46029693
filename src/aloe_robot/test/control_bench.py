"""The other end of control_node's topics, for tests of it as a process."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from aloe_core import topics
from aloe_core.chunk import ActionChunk as Chunk
from aloe_core.messages import chunk_msg, header_msg, joint_state_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot
from aloe_core.vocabulary import EventType, Outcome
from aloe_msgs.msg import ActionChunk, ChunkRequest, ControlState, EpisodeEvent, SafetyStatus, Transition

ROBOT = load_robot("aloha_sim")
DT = ROBOT.control_dt_ns
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def without_repeats(requests: list[ChunkRequest]) -> list[ChunkRequest]:
    """Each request once: one whose answer takes long is published again unchanged."""
    return list({(r.episode_id, r.request_id): r for r in reversed(requests)}.values())[::-1]


class Bench:
    """The other end of control_node's topics: joint states, chunks and episode events out, everything else in."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("bench", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        node = self.node
        self.joints = node.create_publisher(JointState, ROBOT.joint_states_topic, 10)
        self.chunks = node.create_publisher(ActionChunk, topics.CHUNK, 10)
        self.events = node.create_publisher(EpisodeEvent, topics.EPISODE_EVENT, LATCHED)
        self.heard: dict[str, list] = {}
        for kind, topic, qos in (
            (ControlState, topics.CONTROL_STATE, 50),
            (Transition, topics.TRANSITION, 50),
            (ChunkRequest, topics.CHUNK_REQUEST, 50),
            (SafetyStatus, topics.SAFETY_STATUS, LATCHED),
            (Float64MultiArray, "/left_controller/commands", 50),
            (Float64MultiArray, "/right_controller/commands", 50),
            (DiagnosticArray, topics.DIAGNOSTICS, 10),
        ):
            self.heard[topic] = []
            node.create_subscription(kind, topic, self.heard[topic].append, qos)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def spin_until(self, condition, what: str, timeout: float = 60.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"never: {what}"
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def connect(self) -> None:
        """Waits until control_node hears and is heard."""
        node = self.node
        self.spin_until(
            lambda: all(
                (
                    self.joints.get_subscription_count(),
                    self.chunks.get_subscription_count(),
                    self.events.get_subscription_count(),
                    node.count_publishers(topics.CONTROL_STATE),
                    node.count_publishers("/left_controller/commands"),
                    self.heard[topics.SAFETY_STATUS],
                )
            ),
            "control_node connects",
        )

    def publish_joints(self, tick: int, positions: np.ndarray = ROBOT.home, names=None) -> None:
        names = names or ROBOT.action_names
        index = [ROBOT.action_names.index(n) for n in names]
        self.joints.publish(
            joint_state_msg(ros_make, tick * DT, names, ROBOT.to_device(positions)[index], np.zeros(len(names)))
        )

    def publish_event(self, event: EventType, tick: int = 0, episode="e1", outcome=Outcome.UNLABELLED) -> None:
        message = EpisodeEvent(event=int(event), episode_id=episode, outcome=int(outcome), instruction="do it")
        message.header = header_msg(ros_make, tick * DT)
        self.events.publish(message)

    def begin(self, tick: int = 0) -> None:
        """Starts episode e1 and waits until the control state names it."""
        states = self.heard[topics.CONTROL_STATE]
        self.publish_event(EventType.STARTED, tick)
        self.spin_until(lambda: states and states[-1].episode_id == "e1", "the episode is confirmed")

    def answer(self, request, chunk_id: int, offset: float = 0.01) -> None:
        rows = ROBOT.home + offset * np.arange(50)[:, None] / 50 * ~ROBOT.gripper_mask
        chunk = Chunk(
            stamp_to_ns(request.header.stamp),
            rows.astype(np.float32),
            DT,
            chunk_id,
            request.request_id,
            "test",
            request.episode_id,
        )
        self.chunks.publish(chunk_msg(ros_make, chunk, ROBOT))

    def tick(self, tick: int, positions: np.ndarray = ROBOT.home, answer: bool = True) -> ControlState:
        """Publishes one joint state and returns the control state that answers it, playing the policy on the way."""
        states, requests = self.heard[topics.CONTROL_STATE], self.heard[topics.CHUNK_REQUEST]
        asked, told = len(requests), len(states)
        self.publish_joints(tick, positions)

        def done() -> bool:
            nonlocal asked
            while answer and asked < len(requests):
                self.answer(requests[asked], chunk_id=asked + 1)
                asked += 1
            return any(stamp_to_ns(s.header.stamp) == tick * DT for s in states[told:])

        self.spin_until(done, f"tick {tick}")
        return states[-1]

    def call(self, service: str, kind: type = Trigger, **fields) -> Any:
        client = self.node.create_client(kind, service)
        assert client.wait_for_service(60.0)
        future = client.call_async(kind.Request(**fields))
        self.spin_until(future.done, service)
        return future.result()

    def measure(self, positions: np.ndarray, left_out: int = 0) -> Callable[[np.ndarray], None]:
        """Publishes joint states at the control rate with the time of now; returns what changes the positions, or takes joints in that were left out."""
        state = [positions, left_out]

        def publish() -> None:
            device, count = ROBOT.to_device(state[0]), len(positions) - state[1]
            now_ns = self.node.get_clock().now().nanoseconds
            self.joints.publish(joint_state_msg(ros_make, now_ns, ROBOT.action_names[:count], device[:count]))

        def change(positions: np.ndarray) -> None:
            state[:] = positions, 0

        self.node.create_timer(DT / 1e9, publish)
        return change

    @property
    def safety(self) -> SafetyStatus:
        return self.heard[topics.SAFETY_STATUS][-1]
