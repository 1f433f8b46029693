# ruff: noqa: E402
"""One node after another is killed in the middle of an episode: the arms hold, somebody says why, a restart is all it takes to go on."""

import os
import signal
import sys
import time

import numpy as np
import pytest
import yaml

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from importlib.metadata import distribution
from pathlib import Path

from fault_graph import Graph
from rclpy.context import Context
from rclpy.node import Node
from std_srvs.srv import Trigger

from aloe_core import topics
from aloe_core.bag_format import METADATA_FILE
from aloe_core.bag_reader import read_episode
from aloe_core.chunk import ActionChunk as Chunk
from aloe_core.messages import chunk_msg, ros_make, stamp_to_ns
from aloe_core.robot import robot_folder
from aloe_core.vocabulary import Mode, Outcome, SafetyReason, SafetyState, Termination
from aloe_msgs.msg import ActionChunk, ChunkRequest, RecorderStatus
from aloe_msgs.srv import StopEpisode

PACKAGES = ("aloe_robot", "aloe_intervention", "aloe_policy", "aloe_critic")


@pytest.fixture
def simulated(start_node, tmp_path):
    """The simulated robot and everything that runs and records episodes. Slow enough for a fault to be noticed long before the expert is done."""
    time_, bags = {"use_sim_time": True}, {"bags": str(tmp_path), "simulator": True}
    patience = {"require_policy": True, "ready_timeout": 60.0, "fault_timeout": 4.0}
    nodes = {
        "sim_node": ("aloe_robot", {"cameras": False, "real_time_factor": 0.4}),
        "control_node": ("aloe_robot", time_ | {"tick_source": "joint_states", "max_policy_wait": 1.0}),
        "policy_node": ("aloe_policy", time_ | {"policy": "scripted", "max_wait": 30.0}),
        "recorder_node": ("aloe_intervention", time_ | bags | {"images": "none", "settle_timeout": 20.0}),
        "episode_node": ("aloe_intervention", time_ | bags | patience),
    }
    graph = Graph(start_node, "aloha_sim", nodes)
    yield graph
    graph.close()


def test_killed_policy(simulated):
    simulated.begin("first", seed=1, time_limit=60.0)
    simulated.kill("policy_node")
    simulated.until(lambda: simulated.safety.reason == SafetyReason.COMMAND_WATCHDOG, "the watchdog says why")
    assert "policy" in simulated.safety.message
    mark = len(simulated.states)
    simulated.until(lambda: len(simulated.states) > mark + 20, "the loop goes on")
    assert list(simulated.states[-1].mode) == [Mode.HOLD] * 2
    simulated.assert_held(mark)
    assert simulated.stopped() is None
    simulated.until(lambda: simulated.recorder.state == RecorderStatus.STATE_RECORDING, "the recorder records")

    simulated.restart("policy_node")
    simulated.until(lambda: Mode.POLICY in list(simulated.states[-1].mode), "the same episode goes on")
    assert simulated.states[-1].episode_id == simulated.episode_id
    simulated.assert_watched_in_time()
    assert simulated.call(StopEpisode, topics.STOP_EPISODE).success
    assert len(read_episode(simulated.recorded())) > 50
    simulated.assert_smooth()
    simulated.assert_next_episode_works(seed=2)
    assert not read_episode(simulated.recorded()).problems


def test_killed_recorder(simulated):
    simulated.begin("first", seed=1, time_limit=60.0)
    simulated.until(lambda: simulated.recorder.episode_id == simulated.episode_id, "the recorder names the bag")
    first = simulated.recorder.bag_path
    simulated.until(lambda: simulated.driven() > 55, "more than the second that may be lost")
    simulated.kill("recorder_node")
    end = simulated.ended()
    assert Termination(end.termination_reason) == Termination.FAULT
    assert "recorder_node" in end.message
    simulated.until(lambda: list(simulated.states[-1].mode) == [Mode.IDLE] * 2, "the arms are idle")
    simulated.assert_smooth()

    simulated.restart("recorder_node")
    simulated.until((Path(first) / METADATA_FILE).exists, "the new recorder makes the bag whole")
    assert len(read_episode(first)) > 0
    simulated.assert_next_episode_works(seed=2)
    assert not read_episode(simulated.recorded()).problems


def test_killed_episode_node(simulated):
    simulated.begin("first", seed=1, time_limit=3.0)
    simulated.kill("episode_node")
    driven = simulated.driven()
    simulated.until(lambda: simulated.driven() > driven + 20, "the robot goes on")
    simulated.restart("episode_node")
    end = simulated.ended()
    assert (Outcome(end.outcome), Termination(end.termination_reason)) == (Outcome.TIMEOUT, Termination.TIME_LIMIT)
    episode = read_episode(simulated.recorded())
    assert (len(episode), episode.problems) == (150, [])
    simulated.assert_smooth()
    simulated.assert_next_episode_works(seed=2)
    assert not read_episode(simulated.recorded()).problems


def test_killed_simulator(simulated):
    simulated.begin("first", seed=1, time_limit=60.0)
    simulated.kill("sim_node")
    stands = lambda: len({s.tick for s in simulated.states[-3:]}) == 1  # noqa: E731  # told again every second
    simulated.until(lambda: stands() or simulated.stopped(), "the tick under way is done")
    mark = len(simulated.states) - 1
    end = simulated.ended()
    assert Termination(end.termination_reason) == Termination.FAULT
    assert "sim_node" in end.message
    simulated.until(lambda: list(simulated.states[-1].mode) == [Mode.IDLE] * 2, "the arms are idle")
    simulated.assert_held(mark)
    simulated.assert_smooth()
    assert len(read_episode(simulated.recorded())) >= 10
    simulated.restart("sim_node")
    simulated.assert_next_episode_works(seed=2)
    assert not read_episode(simulated.recorded()).problems


def test_killed_policy_of_the_launched_robot(start_node, start_process, tmp_path):
    """What a person gets who launches the robot: whatever dies of the policy is started again, and the episode goes on."""
    launch = ("sim_robot.launch.yaml", "cameras:=false", "real_time_factor:=0.4", f"bags:={tmp_path}")
    up = start_process([sys.executable, "-m", "aloe_core.cli", "up", *launch], name="aloe up")
    graph = Graph(start_node, "aloha_sim", {})
    graph.begin("first", seed=1, time_limit=60.0)
    processes = Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split()
    (policy,) = [int(p) for p in processes if "__node:=policy_node" in Path(f"/proc/{p}/cmdline").read_text()]
    os.kill(policy, signal.SIGKILL)
    up.wait_for(r"policy_node-\d+ \(aloe_policy policy_node\) was killed by SIGKILL")
    up.wait_for(r"policy_node-\d+ starts again")
    graph.until(lambda: len(graph.states) and graph.states[-1].pending_requests, "the loop asks in vain")
    driven = graph.driven()
    graph.until(lambda: graph.driven() > driven + 60, "the same episode goes on, with new chunks")
    assert graph.stopped() is None
    assert graph.call(StopEpisode, topics.STOP_EPISODE).success
    assert len(read_episode(graph.recorded())) > 60
    graph.assert_smooth()
    graph.close()
    assert up.stop() == 0


@pytest.fixture
def hardware(start_node, tmp_path):
    """Arms under ros2_control, as the control loop sees them; the test itself answers for the policy. All limits are wide enough for a busy machine."""
    description = yaml.safe_load((robot_folder() / "bimanual_ur5e.yaml").read_text())
    description["safety"] |= {"observation_timeout": 2.0, "observation_stop_timeout": 4.0, "policy_timeout": 20.0}
    file = tmp_path / "patient_ur5e.yaml"
    file.write_text(yaml.safe_dump(description))
    robot = {"robot": str(file)}
    nodes = {
        "mock_robot_node": ("aloe_robot", robot),
        "control_node": ("aloe_robot", robot),
        "recorder_node": ("aloe_intervention", robot | {"bags": str(tmp_path), "images": "none"}),
        "episode_node": (
            "aloe_intervention",
            robot | {"bags": str(tmp_path), "ready_timeout": 60.0, "fault_timeout": 30.0},
        ),
    }
    graph = Graph(start_node, file, nodes)
    chunks = graph.node.create_publisher(ActionChunk, topics.CHUNK, 10)
    home, period = graph.robot.home, graph.robot.control_dt_ns

    def answer(request: ChunkRequest) -> None:
        stamp = stamp_to_ns(request.header.stamp)
        ticks = stamp // period + np.arange(50)[:, None]
        rows = (home + 0.1 * np.sin(ticks / 40) * ~graph.robot.gripper_mask).astype(np.float32)
        chunk = Chunk(stamp, rows, period, request.request_id, request.request_id, "test", request.episode_id)
        chunks.publish(chunk_msg(ros_make, chunk, graph.robot))

    graph.node.create_subscription(ChunkRequest, topics.CHUNK_REQUEST, answer, 10)
    yield graph
    graph.close()


def test_killed_robot_driver(hardware):
    hardware.begin("first", seed=-1)
    hardware.kill("mock_robot_node")
    end = hardware.ended()
    assert Termination(end.termination_reason) == Termination.SAFETY
    assert "no joint states" in end.message
    hardware.until(lambda: hardware.safety.state == SafetyState.STOPPED, "the stop is told")
    assert hardware.safety.reason == SafetyReason.STALE_OBSERVATION
    mark = len(hardware.states)
    hardware.until(lambda: len(hardware.states) > mark + 20, "the loop goes on")
    hardware.assert_held(mark)
    blind = [s for s in hardware.states if s.header.stamp == hardware.states[-1].header.stamp]
    patience = hardware.robot.safety.observation_stop_timeout * hardware.robot.control_rate_hz
    assert sum(Mode.STOPPED not in list(s.mode) for s in blind) <= patience + 1, (
        "a busy machine ticks later, never more"
    )
    hardware.assert_smooth()

    last = hardware.states[-1].header.stamp
    hardware.restart("mock_robot_node")
    hardware.until(lambda: hardware.states[-1].header.stamp != last, "joint states are back")
    hardware.until(lambda: hardware.call(Trigger, topics.RESET_SAFETY).success, "the stop can be reset")
    hardware.until(lambda: hardware.safety.state != SafetyState.STOPPED, "the robot is free again")
    hardware.assert_next_episode_works(seed=-1)


def executables():
    """Every node of the project that runs until it is told to end."""
    found = [(p, e.name) for p in PACKAGES for e in distribution(p).entry_points if e.group == "console_scripts"]
    return [(package, name) for package, name in found if name.endswith("_node") and name != "replay_node"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_impatient_interrupt_ends_every_node_in_order(start_node, tmp_path):
    where = {"bags": str(tmp_path / "bags"), "run": str(tmp_path / "run"), "camera": "overhead", "source": "mock"}
    where |= {"left.device": "serial:1", "right.device": "serial:2", "cameras": False}
    processes = {n: start_node(p, n, {"robot": "aloha_sim", **where}) for p, n in executables()}
    assert len(processes) >= 11
    witness = Context()
    rclpy.init(context=witness)
    node = Node("witness", context=witness)
    deadline = time.monotonic() + 200
    while missing := set(processes) - set(node.get_node_names()):
        assert time.monotonic() < deadline, f"never came up: {missing}"
        assert not [name for name in missing if processes[name].returncode is not None]
        time.sleep(0.1)
    node.destroy_node()
    rclpy.shutdown(context=witness)
    for process in processes.values():
        process.send(signal.SIGINT)
    time.sleep(0.1)
    for process in processes.values():
        if process.returncode is None:
            process.send(signal.SIGINT)
    codes = {name: process.wait(120) for name, process in processes.items()}
    assert {name: code for name, code in codes.items() if code} == {}
