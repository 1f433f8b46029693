# ruff: noqa: E402
"""A graph of real node processes that tests may kill one by one, and a node that hears what the others say."""

import signal
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from aloe_core import topics
from aloe_core.chunk import NANOSECONDS
from aloe_core.robot import load_robot
from aloe_core.vocabulary import EventType, Mode, SafetyReason, Termination
from aloe_msgs.msg import ControlState, EpisodeEvent, RecorderStatus, SafetyStatus
from aloe_msgs.srv import StartEpisode, StopEpisode

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Graph:
    """Node processes, and what they say, heard by a node of the test's own."""

    def __init__(self, start_node, robot, nodes) -> None:
        self.robot, self.nodes, self._start_node = load_robot(robot), nodes, start_node
        self.processes = {name: self.start(name) for name in nodes}
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("witness", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.states: list[ControlState] = []
        self.events: list[EpisodeEvent] = []
        self.safety = SafetyStatus()
        self.recorder = RecorderStatus()
        self.node.create_subscription(ControlState, topics.CONTROL_STATE, self.states.append, 50)
        self.node.create_subscription(EpisodeEvent, topics.EPISODE_EVENT, self.events.append, LATCHED)
        self.node.create_subscription(SafetyStatus, topics.SAFETY_STATUS, lambda m: setattr(self, "safety", m), LATCHED)
        self.node.create_subscription(
            RecorderStatus, topics.RECORDER_STATUS, lambda m: setattr(self, "recorder", m), LATCHED
        )

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def start(self, name):
        package, parameters = self.nodes[name]
        return self._start_node(package, name, parameters)

    def kill(self, name) -> None:
        self.watched = self.safety.counters[SafetyReason.COMMAND_WATCHDOG]
        assert self.processes[name].stop(signal.SIGKILL) == -signal.SIGKILL

    def restart(self, name) -> None:
        self.processes[name] = self.start(name)

    def until(self, condition, what, timeout=90.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"never: {what}"
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind, service, **request):
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready, f"{service} is there")
        future = client.call_async(kind.Request(**request))
        self.until(future.done, f"{service} answers")
        return future.result()

    def begin(self, episode_id, **request) -> None:
        """Starts an episode, however long the nodes take to be ready, and waits until its arms have moved for a while."""

        def started() -> bool:
            answer = self.call(StartEpisode, topics.START_EPISODE, episode_id=f"{episode_id}-{len(tries)}", **request)
            tries.append(answer)
            assert answer.success or answer.error_code == StartEpisode.Request.NOT_READY, answer.error_msg
            return answer.success

        tries: list = []
        self.until(started, "the episode starts", timeout=90)
        self.episode_id = tries[-1].episode_id
        self.until(lambda: self.driven() >= 10, "the policy drives")

    def driven(self) -> int:
        """Ticks of the present episode in which the policy drove."""
        return sum(s.episode_id == self.episode_id and Mode.POLICY in list(s.mode) for s in self.states)

    def stopped(self):
        """How the present episode ended, or None."""
        found = [e for e in self.events if e.episode_id == self.episode_id and e.event == EventType.STOPPED]
        return found[-1] if found else None

    def ended(self) -> EpisodeEvent:
        self.until(self.stopped, "the episode ends")
        return self.stopped()

    def recorded(self):
        """The folder of the present episode's bag, once it is closed. (Rates in its audit tell how busy the machine was.)"""
        self.until(
            lambda: self.recorder.episode_id == self.episode_id and self.recorder.state == RecorderStatus.STATE_IDLE,
            "the bag is closed",
        )
        return self.recorder.bag_path

    def assert_smooth(self) -> None:
        """Every command that followed another one by one tick kept the limits."""
        dt = self.robot.control_dt_ns / NANOSECONDS
        commands = np.array([s.commanded for s in self.states if s.tick])
        ticks = np.array([s.tick for s in self.states if s.tick])
        assert (commands >= self.robot.position_min - 1e-9).all()
        assert (commands <= self.robot.position_max + 1e-9).all()
        change = np.abs(np.diff(commands, axis=0))[np.diff(ticks) == 1]
        assert (change <= self.robot.max_velocity * dt + 1e-9).all()

    def assert_held(self, mark) -> None:
        """All commands from the state number `mark` on are the same."""
        commands = np.array([s.commanded for s in self.states[mark:]])
        np.testing.assert_array_equal(commands, np.broadcast_to(commands[-1], commands.shape))

    def assert_watched_in_time(self) -> None:
        """The policy had been gone for the watchdog time, and a tick, when the watchdog spoke; called once the policy is back.

        In ticks without a row from the policy, less those in which the watchdog spoke, as the loop itself counts both: a busy machine ticks later, never more.
        """
        self.until(lambda: self.safety.reason != SafetyReason.COMMAND_WATCHDOG, "the watchdog is content")
        driven = [s for s in self.states if s.episode_id == self.episode_id and Mode.POLICY in list(s.mode)]
        gone = max(np.diff([s.starved_ticks for s in driven]))
        silent = gone - (self.safety.counters[SafetyReason.COMMAND_WATCHDOG] - self.watched)
        timeout = round(self.robot.safety.policy_timeout * self.robot.control_rate_hz)
        assert silent <= timeout + 1, "the watchdog spoke late"

    def assert_next_episode_works(self, **request) -> None:
        """In simulated time an episode may have a limit; on hardware it is stopped once the arms have moved."""
        self.begin("next", time_limit=1.0 if self.robot.simulator else 0.0, **request)
        if not self.robot.simulator:
            assert self.call(StopEpisode, topics.STOP_EPISODE).success
        expected = Termination.TIME_LIMIT if self.robot.simulator else Termination.OPERATOR
        assert Termination(self.ended().termination_reason) == expected
