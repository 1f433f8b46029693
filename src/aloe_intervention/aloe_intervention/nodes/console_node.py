"""The graph's side of `aloe operate`: fills a `Console` with news and carries out its actions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import rclpy
from rclpy.node import Node

from aloe_core import topics
from aloe_core.robot import RobotDescription
from aloe_intervention.console import Console
from aloe_intervention.nodes.episode_calls import EpisodeCalls
from aloe_msgs.msg import ControlState, PolicyStatus, RecorderStatus, SafetyStatus, TaskState, TeleopCommand
from aloe_robot.nodes.qos import LATCHED
from aloe_robot.nodes.transport import without_shared_memory


class ConsoleNode(Node):
    """Listens to what an operator wants to know.

    Args:
        robot: whose arms are shown.
        task: started by the key `s`; empty: episode_node's own.
        seed: of the first episode in simulation, counting up; -1: none.
        namespace: of the nodes it listens to.
    """

    def __init__(self, robot: RobotDescription, task: str, seed: int, namespace: str = "/") -> None:
        super().__init__("operate", namespace=namespace)
        self.console = Console(rate_hz=robot.control_rate_hz)
        self.calls = EpisodeCalls(self, self.console.tell)
        self._task, self._seed = task, seed
        for kind, topic, name, qos in (
            (SafetyStatus, topics.SAFETY_STATUS, "safety", LATCHED),
            (RecorderStatus, topics.RECORDER_STATUS, "recorder", LATCHED),
            (PolicyStatus, topics.POLICY_STATUS, "policy", LATCHED),
            (TaskState, topics.TASK_STATE, "task", 1),
        ):
            self.create_subscription(kind, topic, partial(setattr, self.console, name), qos)
        self.create_subscription(ControlState, topics.CONTROL_STATE, self._on_control, 1)
        for arm in robot.arm_names:
            topic = topics.TELEOP_COMMAND.format(arm=arm)
            self.create_subscription(TeleopCommand, topic, partial(self.console.teleop.__setitem__, arm), 1)

    def do(self, action: str) -> None:
        """Carries out an action of `EpisodeCalls`."""
        self.calls.do(action, self._task, self._seed)
        if action == "start" and self._seed >= 0:
            self._seed += 1

    def spin(self, seconds: float) -> None:
        """Takes in what arrives within `seconds` of wall time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)
        self.console.episode = self.calls.event

    def _on_control(self, message: ControlState) -> None:
        self.console.control, self.console.control_at = message, time.monotonic()


@contextmanager
def connected(robot: RobotDescription, task: str, seed: int, namespace: str = "/") -> Iterator[ConsoleNode]:
    """A `ConsoleNode` in a graph that it leaves in the end."""
    with without_shared_memory():
        rclpy.init()
        node = ConsoleNode(robot, task, seed, namespace)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
