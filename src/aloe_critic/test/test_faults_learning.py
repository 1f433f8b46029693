# ruff: noqa: E402
"""The learner is killed in the middle of an improvement, a camera in the middle of an episode: everything else goes on, a restart is all it takes."""

import json

import cv2
import numpy as np
import pytest
import replay_rig as rig
import torch
import yaml

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from pathlib import Path

from fault_graph import LATCHED, Graph
from learner_peer import meet
from rclpy.action import ActionClient

from aloe_core import topics
from aloe_core.bag_reader import read_episode
from aloe_core.robot import load_robot, robot_folder
from aloe_core.vocabulary import Mode, Outcome, SafetyReason, Termination
from aloe_critic import improvement
from aloe_critic.improve_config import load_config
from aloe_critic.learner import STATE_FILE
from aloe_msgs.action import ImprovePolicy
from aloe_msgs.msg import PolicyStatus, PolicyVersion, RecorderStatus
from aloe_msgs.srv import StopEpisode
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation
from aloe_policy.training_state import read_state

CRITIC_STEPS = 400  # enough to be killed among them
LEARNER = f"learner: {{critic_steps: {CRITIC_STEPS}, actor_steps: 20, batch_size: 8, policy_samples: 2, checkpoint_every: 5, log_every: 5}}\n"


@pytest.fixture
def learning(start_node, tmp_path):
    """The simulated robot, driven by a small policy, and its learner, which has an episode of the expert to learn from."""
    policy, bags = rig.save_policy(tmp_path / "policy"), tmp_path / "bags"
    rig.record(bags, "scripted", seconds=0, seed=1, name="expert")
    (tmp_path / "improve.yaml").write_text(LEARNER)
    time_, where = {"use_sim_time": True}, {"bags": str(bags), "simulator": True}
    patience = {"require_policy": True, "ready_timeout": 60.0, "fault_timeout": 30.0}
    learner = {
        "run": str(tmp_path / "run"),
        "bags": str(bags),
        "policy": str(policy),
        "config": str(tmp_path / "improve.yaml"),
    }
    nodes = {
        "sim_node": ("aloe_robot", {"cameras": False, "real_time_factor": 0.5}),
        "control_node": ("aloe_robot", time_ | {"tick_source": "joint_states", "execute_steps": 10}),
        "policy_node": ("aloe_policy", time_ | {"policy": str(policy), "max_wait": 30.0}),
        "recorder_node": ("aloe_intervention", time_ | where | {"images": "none", "settle_timeout": 20.0}),
        "episode_node": ("aloe_intervention", time_ | where | patience),
        "learner_node": ("aloe_critic", learner),
    }
    graph = Graph(start_node, "aloha_sim", nodes)
    graph.folder, graph.feedback, graph.versions, graph.policy = tmp_path, [], [], PolicyStatus()
    graph.improve = ActionClient(graph.node, ImprovePolicy, topics.IMPROVE)
    graph.node.create_subscription(PolicyVersion, topics.POLICY_VERSION, graph.versions.append, LATCHED)
    graph.node.create_subscription(PolicyStatus, topics.POLICY_STATUS, lambda m: setattr(graph, "policy", m), LATCHED)
    yield graph
    graph.close()


def ask(graph):
    """The handle of a goal to improve, once it is accepted."""
    meet(graph.improve, lambda condition: graph.until(condition, "the learner answers"))
    sent = graph.improve.send_goal_async(
        ImprovePolicy.Goal(), feedback_callback=lambda m: graph.feedback.append(m.feedback)
    )
    graph.until(sent.done, "the learner takes the goal")
    assert sent.result().accepted
    return sent.result()


def uninterrupted(graph, bag: Path):
    """What the learner makes of one bag if nobody kills it."""
    torch.set_num_threads(1)  # as the node
    run, policy = graph.folder / "reference" / "run", graph.folder / "policy"
    store, _ = improvement.ingest(run, [bag], policy, graph.robot)
    return improvement.improve(run, store, policy, graph.robot, load_config(graph.folder / "improve.yaml"))


@pytest.mark.slow
def test_killed_learner(learning):
    expected = uninterrupted(learning, learning.folder / "bags" / "expert")
    ask(learning)
    learning.until(
        lambda: any(f.message == "critic" and f.step >= 20 for f in learning.feedback),
        "the critic learns",
    )
    learning.kill("learner_node")
    _, facts = read_state(learning.folder / "run" / "001" / STATE_FILE)
    assert 15 <= facts["critic_step"] < CRITIC_STEPS
    learning.begin("meanwhile", seed=2, time_limit=1.0)
    assert Outcome(learning.ended().outcome) == Outcome.TIMEOUT
    assert not read_episode(learning.recorded()).problems

    learning.feedback.clear()
    learning.restart("learner_node")
    result = ask(learning).get_result_async()
    learning.until(result.done, "the improvement ends")
    result = result.result().result
    assert result.success, result.error_msg
    assert result.episodes == 1, "those it began with"
    critic = [f.step for f in learning.feedback if f.message == "critic"]
    assert critic[0] > facts["critic_step"], "it does not start again"
    assert result.policy_version == expected.version, "the version ends with the hash of the weights"
    learning.until(lambda: learning.policy.version == expected.version, "the robot takes the new policy")
    assert learning.versions[-1].sha256 == expected.sha256
    learning.assert_next_episode_works(seed=3)
    learning.assert_smooth()


def write_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 64))
    for k in range(10):
        writer.write(np.full((64, 64, 3), 20 * k, np.uint8))
    writer.release()


def seeing_policy(folder: Path, robot) -> Path:
    """A small, untrained policy that looks through the camera and stays at home."""
    torch.manual_seed(0)
    home, small = torch.tensor(robot.home).float(), torch.full((robot.action_dim,), 1e-3)
    normalisation = Normalisation({"state": (home, torch.ones(robot.action_dim)), "action": (home, small)})
    spec = PolicySpec.of(robot, 50, ("overhead",), (64, 64))
    FlowPolicy(spec, FlowConfig(width=32, layers=1, steps=2, camera_tokens=1), normalisation).save(folder, "seeing")
    return folder


@pytest.fixture
def watching(start_node, tmp_path):
    """Arms under ros2_control and one camera, which the policy looks through: a video file. All limits are wide enough for a busy machine."""
    write_video(tmp_path / "camera.avi")
    description = yaml.safe_load((robot_folder() / "bimanual_ur5e.yaml").read_text())
    description["safety"] |= {"observation_timeout": 2.0, "observation_stop_timeout": 10.0, "policy_timeout": 5.0}
    description["cameras"] = [{**description["cameras"][0], "width": 64, "height": 64, "rate_hz": 10}]
    description["cameras"][0]["source"] = str(tmp_path / "camera.avi")
    file = tmp_path / "watched_ur5e.yaml"
    file.write_text(yaml.safe_dump(description))
    policy = seeing_policy(tmp_path / "policy", load_robot(file))
    robot, bags = {"robot": str(file)}, {"bags": str(tmp_path / "bags")}
    nodes = {
        "mock_robot_node": ("aloe_robot", robot),
        "control_node": ("aloe_robot", robot),
        "camera_node": ("aloe_robot", robot | {"camera": "overhead"}),
        "policy_node": ("aloe_policy", robot | {"policy": str(policy)}),
        "recorder_node": ("aloe_intervention", robot | bags),
        "episode_node": (
            "aloe_intervention",
            robot | bags | {"require_policy": True, "ready_timeout": 60.0, "fault_timeout": 60.0},
        ),
    }
    graph = Graph(start_node, file, nodes)
    yield graph
    graph.close()


@pytest.mark.slow
def test_killed_camera(watching):
    """A policy that has lost an eye is not asked to guess: the arms hold until the camera is back, and the bag says what it lacks."""
    watching.begin("first", seed=-1)
    watching.kill("camera_node")
    watching.until(lambda: watching.safety.reason == SafetyReason.COMMAND_WATCHDOG, "the watchdog says why")
    assert "policy" in watching.safety.message
    watching.processes["policy_node"].wait_for("overhead")
    mark = len(watching.states)
    watching.until(lambda: len(watching.states) > mark + 20, "the loop goes on")
    assert list(watching.states[-1].mode) == [Mode.HOLD] * 2
    watching.assert_held(mark)
    assert watching.stopped() is None
    watching.until(lambda: watching.recorder.state == RecorderStatus.STATE_RECORDING, "the recorder records")

    watching.restart("camera_node")
    watching.until(lambda: list(watching.states[-1].mode) == [Mode.POLICY] * 2, "the same episode goes on")
    assert watching.states[-1].episode_id == watching.episode_id
    watching.assert_watched_in_time()
    assert watching.call(StopEpisode, topics.STOP_EPISODE).success
    assert Termination(watching.ended().termination_reason) == Termination.OPERATOR
    audit = json.loads((Path(watching.recorded()) / "audit.json").read_text())
    assert any(reason.startswith("/overhead/image_raw/compressed:") for reason in audit["reasons"]), audit["reasons"]
    watching.assert_smooth()
    watching.assert_next_episode_works(seed=-1)
