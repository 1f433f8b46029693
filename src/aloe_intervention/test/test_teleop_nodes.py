# ruff: noqa: E402
"""SpaceMouse, teleoperation and simulated operator as real processes over DDS, from the device file to the arm."""

import os
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist, Vector3
from intervention_peer import LATCHED, Peer, node_here
from sensor_msgs.msg import JointState, Joy

from aloe_core.bag_reader import read_episode
from aloe_core.chunk import ActionChunk as Chunk
from aloe_core.messages import chunk_msg, header_msg, joint_state_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot, robot_folder
from aloe_core.vocabulary import EventType, Mode, Outcome, Source
from aloe_intervention.lockstep import LockstepOperator
from aloe_intervention.nodes.teleop_node import TeleopNode
from aloe_intervention.operator_sim import OperatorConfig
from aloe_intervention.teleop import Stick
from aloe_msgs.msg import ActionChunk, ChunkRequest, ControlState, EpisodeEvent, TaskState, TeleopCommand, Transition
from aloe_msgs.srv import StartEpisode
from aloe_robot.rollout import Lockstep

ROBOT = load_robot("aloha_sim")
REST = struct.pack("<B6h", 1, 0, 0, 0, 0, 0, 0)
FORWARD = struct.pack("<B6h", 1, 0, -350, 0, 0, 0, 0)  # pushed away from the user
BOTH, NEITHER = b"\x03\x03\x00", b"\x03\x00\x00"


@pytest.fixture
def peer(ros_domain):
    peer = Peer()
    yield peer
    peer.close()


class FakeMouse:
    """A named pipe in the place of the device file: what is written to it are the reports of a SpaceMouse, closing it unplugs the mouse.

    A pipe keeps no borders between reports: send the next one when the Joy for the last has come, or the same one again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._released = threading.Event()
        self._hand: threading.Thread | None = None
        self.plug()

    def plug(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR)  # a pipe without a reader would block

    def unplug(self) -> None:
        if self._hand is not None:
            self._released.set()
            self._hand.join()
        os.close(self._fd)

    def send(self, report: bytes) -> None:
        os.write(self._fd, report)

    def hold(self, report: bytes) -> None:
        """Deflected until it is unplugged: such a mouse reports again and again."""

        def repeat() -> None:
            while not self._released.wait(0.01):
                self.send(report)

        self._hand = threading.Thread(target=repeat, daemon=True)
        self._hand.start()


def event(kind: EventType, peer: Peer) -> EpisodeEvent:
    now = peer.node.get_clock().now().nanoseconds
    return EpisodeEvent(header=header_msg(ros_make, now), event=kind, episode_id="e1", instruction="x")


@pytest.fixture
def patient_robot(tmp_path) -> Path:
    """aloha_sim on a machine that stands still for seconds now and then."""
    description = yaml.safe_load((robot_folder() / "aloha_sim.yaml").read_text())
    patience = {"observation_timeout": 5.0, "observation_stop_timeout": 60.0, "tracking_error_time": 60.0}
    description["safety"] |= patience | {"teleop_timeout": 2.0}
    file = tmp_path / "patient.yaml"
    file.write_text(yaml.safe_dump(description))
    return file


def test_from_the_device_file_to_the_arm_with_the_mouse_unplugged_meanwhile(peer, start_node, tmp_path, patient_robot):
    mouse, robot = FakeMouse(tmp_path / "hidraw0"), {"robot": str(patient_robot)}
    mouse_node = start_node(
        "aloe_intervention",
        "spacemouse_node",
        {**robot, "arms": ["left"], "left.device": str(mouse.path), "rate": 200.0},
    )
    hands = {"release_time": 0.0, "stale_after": 0.5, "linear_speed": 0.1}
    start_node("aloe_intervention", "teleop_node", {**robot, **hands})
    start_node("aloe_robot", "mock_robot_node", robot)
    start_node("aloe_robot", "control_node", {**robot, "tick_source": "timer"})
    peer.listen(Joy, "left/spacenav/joy", 10)
    peer.listen(Twist, "left/spacenav/twist", 10)
    peer.listen(TeleopCommand, "left/teleop/command", 10)
    peer.listen(ControlState, "control/state", 10)
    peer.listen(DiagnosticArray, "/diagnostics", 10)
    peer.wait("left/teleop/command", lambda m: m.healthy and not m.engaged)
    peer.publisher(EpisodeEvent, "episode/event", LATCHED, subscribers=2).publish(event(EventType.STARTED, peer))
    peer.wait("control/state", lambda m: m.episode_id == "e1")

    def press(engaged: bool) -> None:
        """Holds both buttons down until teleop_node answers; again if that was lost, as it is where the stick was stale meanwhile."""
        for _ in range(10):
            peer.got["left/spacenav/joy"].clear(), peer.got["left/teleop/command"].clear()
            mouse.send(BOTH)
            peer.wait("left/spacenav/joy", lambda m: list(m.buttons) == [1, 1])
            peer.look("left/teleop/command", lambda m: m.engaged == engaged, timeout=5.0)
            peer.got["left/spacenav/joy"].clear(), peer.got["left/teleop/command"].clear()
            mouse.send(NEITHER)
            released = peer.wait("left/spacenav/joy", lambda m: list(m.buttons) == [0, 0])
            seen_ns = stamp_to_ns(released.header.stamp) + 200_000_000  # by then teleop_node has seen them up
            if (
                peer.wait(
                    "left/teleop/command", lambda m, t=seen_ns: m.healthy and stamp_to_ns(m.header.stamp) > t
                ).engaged
                == engaged
            ):
                return
        pytest.fail(f"never engaged: {engaged}")

    press(engaged=True)
    peer.wait("control/state", lambda m: list(m.mode) == [Mode.HUMAN, Mode.HOLD])
    mouse.hold(FORWARD)
    joy = peer.wait("left/spacenav/joy", lambda m: m.axes and m.axes[0] == 1.0)
    assert list(joy.axes) == [1.0, 0, 0, 0, 0, 0]
    assert list(joy.buttons) == [0, 0]
    assert peer.wait("left/spacenav/twist", lambda m: m.linear.x == 1.0).angular == Vector3()
    moved = peer.wait("control/state", lambda m: m.commanded[1] > ROBOT.home[1] + 0.1)
    assert moved.mode[1] == Mode.HOLD
    assert max(abs(moved.commanded[i] - ROBOT.home[i]) for i in range(7, 13)) < 1e-6, "the other arm stands still"

    peer.got["left/teleop/command"].clear()
    mouse.unplug()
    lost = peer.wait("left/teleop/command", lambda m: m.engaged and not m.healthy)
    assert lost.message.startswith("nothing from the SpaceMouse for")
    peer.got["control/state"].clear()
    held = peer.wait("control/state", lambda m: list(m.mode) == [Mode.HOLD, Mode.HOLD])
    status = peer.wait("/diagnostics", lambda m: m.status[0].name == "spacemouse_node" and m.status[0].level == b"\x02")
    assert "left: " in status.status[0].message

    mouse.plug()
    mouse.send(REST)
    peer.got["control/state"].clear()
    back = peer.wait("control/state", lambda m: list(m.mode) == [Mode.HUMAN, Mode.HOLD])
    assert max(abs(a - b) for a, b in zip(back.commanded, held.commanded, strict=True)) < 0.02, "from where it held"
    press(engaged=False)
    peer.got["control/state"].clear()
    peer.wait("control/state", lambda m: list(m.mode) == [Mode.HOLD, Mode.HOLD])
    assert "SpaceMouse of arm 'left': the SpaceMouse was lost" in mouse_node.output
    assert mouse_node.output.count("connected") >= 2
    assert mouse_node.stop() == 0


def test_joint_states_without_stamps_and_those_of_a_clock_that_begins_anew_are_answered(ros_domain):
    with node_here(TeleopNode) as node:
        sent: list[TeleopCommand] = []
        node.publishers_["left"] = SimpleNamespace(publish=sent.append)

        def answers(stamp_ns: int) -> list[int]:
            sent.clear()
            positions = ROBOT.to_device(ROBOT.home)
            node._on_joint_state(joint_state_msg(ros_make, stamp_ns, ROBOT.action_names, positions))
            return [stamp_to_ns(m.header.stamp) for m in sent]

        second, half_tick = 10**9, ROBOT.control_dt_ns // 2
        assert answers(5 * second) == [5 * second]
        assert answers(5 * second + half_tick - 1) == [], "joint states may come faster than ticks"
        assert answers(5 * second + half_tick) == [5 * second + half_tick]
        assert answers(2 * second) == [2 * second]
        (stamp,) = answers(0)
        assert abs(stamp - node.get_clock().now().nanoseconds) < 60 * second
        time.sleep(half_tick / second)
        assert len(answers(0)) == 1


class Desk:
    """A teleoperation that nobody spins: sticks and joint states are handed to it, `sent` holds what each arm was answered last."""

    def __init__(self, node: TeleopNode) -> None:
        self.node, self.sent, self.stamp_ns = node, {}, 10**9
        for arm in ROBOT.arm_names:
            node.publishers_[arm] = SimpleNamespace(publish=lambda m, arm=arm: self.sent.update({arm: m}))

    def tick(self, **joys) -> dict[str, bool]:
        """Joy messages by arm, the buttons of each, then a twist, then a joint state; who has control."""
        for arm in ROBOT.arm_names:
            for buttons in joys.get(arm, [(0, 0)]):
                self.node._on_joy(arm, Joy(buttons=list(buttons)))
            self.node._on_twist(arm, Twist())
        self.stamp_ns += ROBOT.control_dt_ns
        positions = ROBOT.to_device(ROBOT.home)
        self.node._on_joint_state(joint_state_msg(ros_make, self.stamp_ns, ROBOT.action_names, positions))
        return {arm: m.engaged for arm, m in self.sent.items()}


BOTH_DOWN = [(1, 1)]
PATIENT = {"stale_after": 3600.0}  # [s] for a machine that stands still now and then


def test_presses_within_one_tick_are_a_chord_only_where_the_buttons_are_down_together(ros_domain):
    with node_here(TeleopNode, **PATIENT) as node:
        desk = Desk(node)
        desk.tick()
        for _ in range(5):
            assert not desk.tick(left=[(1, 0), (0, 0), (0, 1)])["left"]
            assert not desk.tick(left=[(1, 1), (0, 0)])["left"]
        assert not desk.tick(left=BOTH_DOWN)["left"]
        assert not desk.tick(left=[])["left"], "no further message, no further sample"
        assert desk.tick(left=BOTH_DOWN) == {"left": True, "right": False}


@pytest.mark.parametrize("hold", [False, True])
def test_with_engage_together_one_stick_takes_over_and_gives_back_all_arms(ros_domain, hold):
    with node_here(TeleopNode, engage_together=True, hold=hold, **PATIENT) as node:
        desk = Desk(node)
        desk.tick()
        both, neither = dict.fromkeys(ROBOT.arm_names, True), dict.fromkeys(ROBOT.arm_names, False)
        for arm in ROBOT.arm_names:  # the answer of the arms before it in a tick comes with the next
            for _ in range(3):
                desk.tick(**{arm: BOTH_DOWN})
            assert desk.tick(**{arm: BOTH_DOWN}) == both
            desk.tick()
            if not hold:
                assert desk.tick() == both
                desk.tick(**{arm: BOTH_DOWN})
                desk.tick(**{arm: BOTH_DOWN})
            assert desk.tick() == neither


@pytest.mark.parametrize("offset", [-3600, 3600])
def test_a_driver_whose_clock_is_wrong_neither_hides_nor_feigns_a_silent_stick(ros_domain, offset):
    with node_here(TeleopNode, **PATIENT) as node:
        desk, hour = Desk(node), 3600 * 10**9
        desk.stamp_ns = node.get_clock().now().nanoseconds + 2 * offset * 10**9
        desk.tick()
        assert [(m.healthy, m.message) for m in desk.sent.values()] == [(True, "")] * 2
        assert stamp_to_ns(desk.sent["left"].header.stamp) == desk.stamp_ns
        stick = node.sticks["left"]
        node._on_twist = lambda *_: None
        node.sticks["left"] = Stick(stick.stamp_ns - 2 * hour, stick.twist, stick.buttons)
        desk.tick(left=[])
        assert desk.sent["left"].message.startswith("nothing from the SpaceMouse for 7200")


class Hands:
    """Publishes one arm's stick and all joint states at 100 Hz, as `spacenav` and a robot do."""

    def __init__(self, peer: Peer) -> None:
        self._peer, self.twist, self.buttons, self.playing = peer, Twist(), [0, 0, 0], True
        self._twist = peer.node.create_publisher(Twist, "left/spacenav/twist", 10)
        self._joy = peer.node.create_publisher(Joy, "left/spacenav/joy", 10)
        self._joints = peer.node.create_publisher(JointState, ROBOT.joint_states_topic, 10)
        self._timer = peer.node.create_timer(0.01, self._publish)

    def _publish(self) -> None:
        now = self._peer.node.get_clock().now().nanoseconds
        if self.playing:
            self._joy.publish(Joy(header=header_msg(ros_make, now), axes=[0.0] * 6, buttons=self.buttons))
            self._twist.publish(self.twist)
        self._joints.publish(joint_state_msg(ros_make, now, ROBOT.action_names, ROBOT.to_device(ROBOT.home)))


def test_bad_twists_silence_and_two_operators_hold_the_arm_and_name_the_reason(peer, start_node):
    start_node("aloe_intervention", "teleop_node", {"release_time": 0.0, "start_buttons": [2]})
    peer.listen(TeleopCommand, "left/teleop/command", 10)
    peer.listen(TeleopCommand, "right/teleop/command", 10)
    started = threading.Event()

    def start(request, response):
        started.set()
        response.success = True
        return response

    peer.node.create_service(StartEpisode, "episode/start", start)
    hands = Hands(peer)

    def command(suits, arm="left"):
        peer.got[f"{arm}/teleop/command"].clear()
        return peer.wait(f"{arm}/teleop/command", suits)

    command(lambda m: m.healthy)
    hands.buttons = [1, 1, 0]
    command(lambda m: m.engaged)
    hands.buttons = [0, 0, 0]
    right = command(lambda m: True, arm="right")
    assert (right.engaged, right.healthy, right.message) == (False, False, "nothing has come from the SpaceMouse yet")

    hands.twist = Twist(linear=Vector3(x=float("nan")))
    command(lambda m: not m.healthy and "not finite" in m.message)
    hands.twist = Twist(linear=Vector3(z=0.5))
    good = command(lambda m: m.healthy)
    assert good.engaged
    assert len(good.positions) == 7

    hands.playing = False
    assert command(lambda m: m.message.startswith("nothing from the SpaceMouse for") and not m.healthy).engaged
    silent = command(lambda m: not m.healthy)
    assert silent.engaged
    assert silent.message.startswith("nothing from the SpaceMouse for")
    hands.playing = True
    command(lambda m: m.healthy and m.engaged)

    other = peer.node.create_publisher(Twist, "left/spacenav/twist", 10)
    command(lambda m: not m.healthy and m.message == "2 nodes publish left/spacenav/twist")
    peer.node.destroy_publisher(other)
    command(lambda m: m.healthy and m.engaged)

    hands.buttons = [0, 0, 1]
    assert started.wait(60.0), "the button starts an episode by the service"


@pytest.mark.parametrize(
    ("node", "parameters", "says"),
    [
        ("recorder_node", {"min_free_gb": "much"}, "parameter 'min_free_gb': 'much' is not of type float"),
        ("spacemouse_node", {}, "with several arms each needs its own SpaceMouse"),
        ("spacemouse_node", {"arms": ["middle"]}, "has no arm 'middle'"),
        ("spacemouse_node", {"arms": ["left"], "axis_map": ["x"]}, "axis_map names six"),
        ("teleop_node", {"linear_speed": -1.0}, "linear_speed is a positive number"),
        ("teleop_node", {"engage_buttons": "both"}, "parameter 'engage_buttons': 'both' is not a list"),
        ("operator_node", {"speed": "fast"}, "parameter 'speed': 'fast' is not of type float"),
    ],
)
def test_bad_parameters_end_a_node_with_one_sentence(start_node, node, parameters, says):
    process = start_node("aloe_intervention", node, parameters)
    assert process.wait(60.0) == 1
    assert says in process.output
    assert "Traceback" not in process.output


class Still:
    """A policy that stays at home, so that somebody has to help."""

    version, horizon, cameras, image_size, uses_task_state = "still", 50, (), None, False

    def propose(self, observation, generator, prefix=None, prefix_steps=0):
        return np.repeat(ROBOT.home[None], 50, 0).astype(np.float32)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_simulated_operator_does_through_the_topics_what_it_does_without_ros(peer, start_node, tmp_path):
    """Simulator, control loop, teleoperation and operator as processes in lockstep finish the task, tick for tick as the roll-out does."""
    peer.listen(TaskState, "sim/task_state", 10)
    peer.listen(Transition, "control/transition", 1000)
    chunks = peer.node.create_publisher(ActionChunk, "policy/chunk", 10)

    def answer(request: ChunkRequest) -> None:
        rows = Still().propose(None, None)
        stamp_ns = stamp_to_ns(request.header.stamp)
        number = request.request_id
        chunk = Chunk(stamp_ns, rows, ROBOT.control_dt_ns, number, number, "still", request.episode_id)
        chunks.publish(chunk_msg(ros_make, chunk, ROBOT))

    peer.node.create_subscription(ChunkRequest, "control/chunk_request", answer, 10)
    sim, patience = {"use_sim_time": True}, {"max_wait": 100.0}  # [s] wall time
    start_node("aloe_robot", "sim_node", {"cameras": False, "real_time_factor": 0.0})
    start_node(
        "aloe_robot",
        "control_node",
        sim | {"tick_source": "joint_states", "wait_for_teleop": True, "max_policy_wait": 100.0},
    )
    teleop = start_node("aloe_intervention", "teleop_node", sim | patience | {"lockstep": True})
    operator = start_node("aloe_intervention", "operator_node", sim | patience | {"patience": 0.5})
    episodes = {"require_recorder": False, "bags": str(tmp_path), "ready_timeout": 100.0, "fault_timeout": 100.0}
    start_node("aloe_intervention", "episode_node", sim | episodes)
    operator.wait_for("watches", timeout=60.0)
    teleop.wait_for("ready", timeout=60.0)

    def start() -> bool:
        wanted = {"task": "transfer_cube", "seed": 3, "time_limit": 30.0, "episode_id": "e1"}
        return peer.call(StartEpisode, "episode/start", timeout=120.0, **wanted).success

    assert start() or start(), "a node that was still starting is asked again"
    last = peer.wait("sim/task_state", lambda m: m.episode_id == "e1" and m.outcome != 0, timeout=200.0)
    assert last.outcome == Outcome.SUCCESS
    peer.wait("control/transition", lambda m: m.terminated)
    transitions = peer.got["control/transition"]
    human = [t for t in transitions if Source.HUMAN in t.source]
    assert len(human) > 0.5 * len(transitions)
    assert all(t.intervention_id == 1 for t in human)
    assert operator.output.count("takes over: no progress") == 1

    helper = LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=0.5))
    without_ros = Lockstep(ROBOT, "transfer_cube", Still(), operator=helper).run(3, 30.0, tmp_path / "lockstep", "e1")
    record = read_episode(without_ros.bag)
    executed = np.array([t.executed for t in transitions], np.float32)
    np.testing.assert_array_equal([list(t.source) for t in transitions], record.source)
    np.testing.assert_array_equal(executed, record.executed)
