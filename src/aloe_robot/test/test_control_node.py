# ruff: noqa: E402
"""control_node as a real process over DDS: commands, lockstep, episodes, recovery, conflicts."""

import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

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
from aloe_core.vocabulary import EventType, Mode, Outcome, SafetyReason, SafetyState
from aloe_msgs.msg import ActionChunk, ChunkRequest, ControlState, EpisodeEvent, SafetyStatus, Transition

ROBOT = load_robot("aloha_sim")
DT = ROBOT.control_dt_ns
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


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

    def call(self, service: str) -> Trigger.Response:
        client = self.node.create_client(Trigger, service)
        assert client.wait_for_service(60.0)
        future = client.call_async(Trigger.Request())
        self.spin_until(future.done, service)
        return future.result()

    @property
    def safety(self) -> SafetyStatus:
        return self.heard[topics.SAFETY_STATUS][-1]


@pytest.fixture
def bench(ros_domain):
    bench = Bench()
    yield bench
    bench.close()


LOCKSTEP = {"robot": "aloha_sim", "tick_source": "joint_states", "max_policy_wait": 100.0}


def start(start_node, bench, **parameters):
    process = start_node("aloe_robot", "control_node", {**LOCKSTEP, **parameters})
    process.wait_for("controlling robot 'aloha_sim'")
    bench.connect()
    return process


def test_an_episode_in_lockstep(start_node, bench):
    start(start_node, bench)
    # Idle: a hold command per tick, both arms, device order; the same stamp again is not another tick.
    state = bench.tick(1)
    assert list(state.mode) == [Mode.IDLE] * 2
    assert state.episode_id == ""
    bench.spin_until(lambda: bench.heard["/left_controller/commands"], "a hold command")
    assert list(bench.heard["/left_controller/commands"][-1].data) == list(ROBOT.home[:7])
    bench.publish_joints(1)
    bench.spin_for(0.3)
    assert len(bench.heard[topics.CONTROL_STATE]) == 1

    # The start shows in the control state at once, while no joint state arrives.
    bench.begin(tick=1)

    # Without its chunk a tick does not end.
    bench.publish_joints(2)
    bench.spin_until(lambda: bench.heard[topics.CHUNK_REQUEST], "a request")
    request = bench.heard[topics.CHUNK_REQUEST][0]
    assert (request.reason, request.instruction, stamp_to_ns(request.header.stamp)) == (
        ChunkRequest.REASON_START,
        "do it",
        2 * DT,
    )
    bench.spin_for(0.3)
    assert stamp_to_ns(bench.heard[topics.CONTROL_STATE][-1].header.stamp) == DT
    bench.answer(request, chunk_id=1)
    bench.spin_until(lambda: stamp_to_ns(bench.heard[topics.CONTROL_STATE][-1].header.stamp) == 2 * DT, "tick 2")

    for tick in range(3, 40):
        state = bench.tick(tick)
        assert list(state.mode) == [Mode.POLICY] * 2
    assert [r.reason for r in bench.heard[topics.CHUNK_REQUEST]] == [
        ChunkRequest.REASON_START,
        ChunkRequest.REASON_REFILL,
    ]
    bench.publish_event(EventType.STOPPED, outcome=Outcome.SUCCESS)
    bench.spin_until(lambda: len(bench.heard[topics.TRANSITION]) == 38, "all transitions")
    transitions = bench.heard[topics.TRANSITION]
    assert [t.step for t in transitions] == list(range(38))
    assert [t.terminated for t in transitions] == [False] * 37 + [True]
    assert transitions[-1].reward == 0
    row = np.float32(ROBOT.home + 0.01 * 7 / 50 * ~ROBOT.gripper_mask)
    assert np.allclose(transitions[7].executed, row, atol=0)
    bench.spin_until(lambda: not bench.heard[topics.CONTROL_STATE][-1].episode_id, "the end shows in the control state")


def test_partial_joint_states_make_one_tick(start_node, bench):
    start(start_node, bench)
    left, right = ROBOT.action_names[:7], ROBOT.action_names[7:]
    bench.publish_joints(1, names=left)
    bench.spin_for(0.3)
    assert not bench.heard[topics.CONTROL_STATE]
    bench.publish_joints(1, names=right)
    bench.spin_until(lambda: bench.heard[topics.CONTROL_STATE], "a tick")
    bench.publish_joints(2, names=right)
    bench.publish_joints(2, names=left)
    bench.spin_until(lambda: len(bench.heard[topics.CONTROL_STATE]) == 2, "the next tick")


def test_a_silent_policy_is_given_up(start_node, bench):
    process = start(start_node, bench, max_policy_wait=0.5)
    bench.begin()
    state = bench.tick(1, answer=False)
    assert list(state.mode) == [Mode.HOLD] * 2
    assert state.starved_ticks == 1
    process.wait_for("no answer to chunk request 1")


def test_a_request_whose_answer_was_lost_comes_again_unchanged(start_node, bench):
    start(start_node, bench)
    bench.begin()
    bench.publish_joints(1)
    requests = bench.heard[topics.CHUNK_REQUEST]
    bench.spin_until(lambda: len(requests) == 2, "the request comes again")
    assert requests[0] == requests[1]
    assert not any(s.starved_ticks for s in bench.heard[topics.CONTROL_STATE]), "the tick waits"
    bench.answer(requests[1], chunk_id=1)
    bench.answer(requests[1], chunk_id=1)  # whoever heard both answers both
    for tick in range(2, 10):
        assert list(bench.tick(tick).mode) == [Mode.POLICY] * 2
    assert bench.heard[topics.CONTROL_STATE][-1].discard_reason == "it has come before"
    assert bench.safety.state == SafetyState.OK


def test_emergency_stop_and_reset(start_node, bench):
    start(start_node, bench)
    bench.begin()
    bench.tick(1)
    assert bench.call(topics.EMERGENCY_STOP).success
    bench.spin_until(lambda: bench.safety.state == SafetyState.STOPPED, "the stop is told")
    state = bench.tick(2)
    assert list(state.mode) == [Mode.STOPPED] * 2
    assert bench.safety.reason == SafetyReason.EMERGENCY_STOP
    assert bench.call(topics.RESET_SAFETY).success
    state = bench.tick(3)
    assert list(state.mode) == [Mode.POLICY] * 2
    assert bench.heard[topics.CHUNK_REQUEST][-1].reason == ChunkRequest.REASON_RELEASE
    assert bench.safety.counters[SafetyReason.EMERGENCY_STOP] == 1


def test_a_killed_node_resumes_the_episode_on_hold(start_node, bench):
    first = start(start_node, bench)
    bench.begin()
    for tick in range(1, 6):
        bench.tick(tick)
    first.close()
    bench.heard[topics.SAFETY_STATUS].clear()
    bench.heard[topics.CONTROL_STATE].clear()
    second = start(start_node, bench)  # DDS still believes in the first one: no conflict, for it says nothing
    second.wait_for("resuming episode 'e1'")
    bench.spin_until(lambda: bench.joints.get_subscription_count() == 2, "joint states are heard again")
    bench.spin_until(lambda: bench.chunks.get_subscription_count() == 2, "chunks are heard again")
    states = bench.heard[topics.CONTROL_STATE]
    bench.spin_until(lambda: states and states[-1].episode_id == "e1", "the episode is known again")
    requests = len(bench.heard[topics.CHUNK_REQUEST])
    state = bench.tick(100)
    assert state.step == 100
    assert list(state.mode) == [Mode.POLICY] * 2
    assert bench.heard[topics.CHUNK_REQUEST][requests].reason == ChunkRequest.REASON_START
    for tick in range(101, 140):
        assert list(bench.tick(tick).mode) == [Mode.POLICY] * 2
    assert bench.safety.state == SafetyState.OK


def test_two_control_nodes_for_one_arm_stop(start_node, bench):
    first = start(start_node, bench)
    bench.tick(1)
    assert bench.safety.state == SafetyState.OK
    second = start_node("aloe_robot", "control_node", LOCKSTEP, name="other_control")
    tick = 1

    def both_stopped() -> bool:
        nonlocal tick
        tick += 1
        bench.publish_joints(tick)
        return all("command_conflict" in process.output for process in (first, second))

    bench.spin_until(both_stopped, "both nodes notice")
    assert "/other_control also commands /left_controller/commands; stop one of the two" in first.output
    assert "/control_node also commands /left_controller/commands; stop one of the two" in second.output
    bench.spin_until(lambda: bench.safety.reason == SafetyReason.COMMAND_CONFLICT, "the status names it")
    assert not bench.call(topics.RESET_SAFETY).success, "as long as the other one is there"


def test_the_timer_ticks_without_new_joint_states(start_node, bench):
    process = start_node("aloe_robot", "control_node", {"robot": "aloha_sim"})
    process.wait_for("a timer at 50 Hz")
    bench.connect()
    message = joint_state_msg(
        ros_make, bench.node.get_clock().now().nanoseconds, ROBOT.action_names, ROBOT.home, np.zeros(14)
    )
    bench.joints.publish(message)
    bench.spin_until(lambda: len(bench.heard[topics.CONTROL_STATE]) > 20, "ticks")
    bench.spin_until(lambda: bench.safety.state == SafetyState.STOPPED, "stale joint states stop")
    assert bench.safety.reason == SafetyReason.STALE_OBSERVATION


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"robot": "no_such_robot"}, "unknown robot 'no_such_robot'"),
        ({"tick_source": "moon"}, "'tick_source': 'moon' is not one of: timer, joint_states"),
        ({"execution_mode": "fast"}, "execution_mode: 'fast' is not one of"),
        ({"policy_latency": "soon"}, "policy_latency: 'soon' is not a finite number"),
        ({"max_policy_wait": 0}, "'max_policy_wait': 0 is not a number of seconds above 0"),
    ],
)
def test_bad_parameters_are_named(start_node, parameters, sentence):
    process = start_node("aloe_robot", "control_node", parameters)
    process.wait_for(sentence)
    assert process.wait() == 1
