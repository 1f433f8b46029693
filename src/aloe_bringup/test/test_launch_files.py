"""The launch files: what they start, that all of it exists, and the graph of a real robot without hardware, as processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aloe_core.errors import AloeError
from aloe_core.supervisor import node_command
from aloe_core.supervisor_launchfile import NodeSpec, declared_arguments, plan

LAUNCH = Path(__file__).resolve().parents[3] / "launch"
SIM, REAL = LAUNCH / "sim_robot.launch.yaml", LAUNCH / "real_robot.launch.yaml"
CORE = ["control_node", "episode_node"]


def names(nodes: list[NodeSpec]) -> list[str | None]:
    return [node.name for node in nodes]


def parameters(nodes: list[NodeSpec], name: str) -> dict[str, object]:
    (node,) = [node for node in nodes if node.name == name]
    return {key: value for item in node.parameters if isinstance(item, dict) for key, value in item.items()}


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        (SIM, {}, ["sim_node", "control_node", "policy_node", "episode_node", "recorder_node"]),
        (SIM, {"policy": "none", "record": "false"}, ["sim_node", *CORE]),
        (SIM, {"teleop": "true", "policy": "none", "record": "0"}, ["sim_node", "control_node", "spacemouse_node", "teleop_node", "episode_node"]),
        (
            SIM,
            {"operator": "slow", "record": "false", "learner": "true", "critic": "a"},
            ["operator_node", "sim_node", "control_node", "policy_node", "teleop_node", "episode_node", "learner_node", "critic_node"],
        ),
        (REAL, {"record": "false"}, ["camera_overhead", "camera_left_wrist", "camera_right_wrist", *CORE]),
        (REAL, {"record": "false", "camera_2": "", "camera_3": ""}, ["camera_overhead", *CORE]),
        (REAL, {"record": "false", "cameras": "false", "use_mock_hardware": "true"}, ["mock_robot_node", *CORE]),
    ],
)  # fmt: skip
def test_what_is_started(file: Path, given: dict[str, str], expected: list[str]) -> None:
    if given.get("record") == "0":
        with pytest.raises(AloeError, match="'record' is '0', but must be one of: true, false"):
            plan(file, given)
        given = {**given, "record": "false"}
    assert names(plan(file, given)) == expected


@pytest.mark.parametrize("file", [SIM, REAL])
def test_every_node_exists_and_every_argument_is_explained(file: Path) -> None:
    everything = {"policy": "flow", "teleop": "true"} | ({"use_mock_hardware": "true"} if file is REAL else {})
    for node in plan(file, everything):
        assert node_command(node.package, node.executable)
        assert node.output == "screen"
    common = {"robot", "namespace", "use_sim_time", "params_file", "log_level", "cameras", "record", "bags", "policy"}
    arguments = {argument.name: argument for argument in declared_arguments(file)}
    assert common <= set(arguments)
    for argument in arguments.values():
        assert argument.default is not None
        assert argument.description.endswith(".")
    for switch in ("cameras", "record", "teleop", "use_sim_time"):
        assert arguments[switch].choices == ("true", "false")


def test_arguments_reach_the_nodes(tmp_path: Path) -> None:
    nodes = plan(
        SIM, {"task": "insertion", "cameras": "false", "bags": str(tmp_path), "namespace": "cell", "policy": "1e-3"}
    )
    assert {node.namespace for node in nodes} == {"cell"}
    sim, recorder = parameters(nodes, "sim_node"), parameters(nodes, "recorder_node")
    assert (sim["task"], sim["cameras"], sim["use_sim_time"]) == ("insertion", False, False)
    assert (recorder["bags"], recorder["images"], recorder["use_sim_time"]) == (str(tmp_path), "none", True)
    assert parameters(nodes, "control_node")["tick_source"] == "joint_states"
    assert parameters(nodes, "control_node")["wait_for_teleop"] is False
    operated = plan(SIM, {"operator": "clumsy"})
    assert parameters(operated, "control_node")["wait_for_teleop"] is True
    assert parameters(operated, "teleop_node")["lockstep"] is True
    assert parameters(nodes, "policy_node")["policy"] == "1e-3"  # a name stays text, whatever it looks like
    real = plan(REAL, {"use_mock_hardware": "true"})
    assert parameters(real, "control_node")["tick_source"] == "timer"
    assert parameters(real, "camera_left_wrist")["source"] == "mock"


@pytest.mark.parametrize("file", [SIM, REAL])
@pytest.mark.parametrize(
    ("given", "judged_against"),
    [
        ({"policy": "runs/bc/policy"}, "runs/bc/policy"),
        ({"policy": "remote:ws://gpu-box:8000", "critic_policy": "runs/bc/policy"}, "runs/bc/policy"),
        ({"policy": "none"}, ""),  # until the learner announces one
        ({"policy": "scripted"}, ""),
        ({"policy": "remote"}, ""),
        ({"policy": "runs/bc/policy", "critic_policy": ""}, ""),
    ],
)
def test_the_critic_knows_the_policy_it_judges_against(file: Path, given: dict[str, str], judged_against: str) -> None:
    critic = parameters(plan(file, {"critic": "runs/learner/001", **given}), "critic_node")
    assert (critic["critic"], critic["policy"]) == ("runs/learner/001", judged_against)
    assert "critic_node" not in names(plan(file, given))


@pytest.mark.parametrize("file", [SIM, REAL])
def test_nothing_drives_the_robot_without_control_loop_and_without_owner_of_the_episode(file: Path) -> None:
    nodes = {node.name: node for node in plan(file, {"policy": "flow"})}
    assert all(nodes[name].shutdown_on_exit for name in CORE)
    assert not nodes["policy_node"].shutdown_on_exit


@pytest.mark.parametrize(("file", "given"), [(SIM, {"operator": "slow"}), (REAL, {})])
def test_every_other_node_is_started_again_but_not_for_ever(file: Path, given: dict[str, str]) -> None:
    for node in plan(file, {"policy": "flow", "teleop": "true", "learner": "true", "critic": "a", **given}):
        assert node.respawn is not node.shutdown_on_exit, node.name
        if node.respawn:
            assert node.respawn_delay >= 3
            assert 0 < node.respawn_max_retries < 100


def test_the_graph_of_a_real_robot_runs_without_hardware(
    ros_domain: int, start_process: Callable, tmp_path: Path
) -> None:
    launch = [str(REAL), "use_mock_hardware:=true", f"bags:={tmp_path}"]
    process = start_process([sys.executable, "-m", "aloe_core.cli", "up", *launch], name="aloe up")
    for line in (
        r"\[mock_robot_node-1\] .*standing in for the arms of 'bimanual_ur5e'",
        r"\[camera_overhead-2\] .*camera 'overhead': mock, 640x480 at 30 Hz",
        r"\[control_node-5\] .*controlling robot 'bimanual_ur5e' on a timer at 50 Hz",
        r"\[episode_node-6\] .*episodes of robot 'bimanual_ur5e'",
        r"\[recorder_node-7\] .*recording \d+ topics of robot 'bimanual_ur5e'",
    ):
        process.wait_for(line, timeout=60)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert "died with exit code" not in process.output
