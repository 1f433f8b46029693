"""Replay into a live graph of real processes: the same proposals and values as without ROS, and nothing on a command topic."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import replay_rig as rig
import torch
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg

from aloe_core import cli, topics
from aloe_core.bag_messages import iter_messages
from aloe_core.bag_reader import read_episode
from aloe_core.errors import AloeError
from aloe_core.messages import stamp_to_ns, typestore
from aloe_core.policy import load_policy
from aloe_core.supervisor import node_command
from aloe_core.supervisor_launchfile import declared_arguments, plan
from aloe_critic.recording import Recording, Request
from aloe_critic.replay_shadow import propose, replay
from aloe_critic.replay_summary import summarise
from aloe_critic.scoring import ChunkScorer
from aloe_policy.encoders import INSTRUCTION_DIM
from aloe_policy.playback import Pace, Playback
from aloe_policy.replayed_bag import CHUNK, RECORDED_CHUNK, VALUE

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.node import NodeNameNonExistentError  # noqa: E402

ROBOT = rig.ROBOT
LAUNCH = Path(__file__).resolve().parents[3] / "launch" / "replay.launch.yaml"
COMMANDS = {arm.output.topic for arm in ROBOT.arms}


def messages(folder, topic):
    return [m.message for m in iter_messages(folder, [topic])]


def test_only_what_is_looked_at_is_played(tmp_path):
    bag = rig.record(tmp_path / "bags", "scripted", seconds=0.3)
    recorded = {m.topic for m in iter_messages(bag)}
    assert recorded >= COMMANDS | {"/policy/chunk"}
    playback = Playback(bag, ROBOT)
    played = {t.played.lstrip("/"): t for t in playback.topics.values()}
    assert set(played) == {"joint_states", *(t for t in (topics.TASK_STATE, topics.CHUNK_REQUEST, topics.EPISODE_EVENT,
        topics.CONTROL_STATE, topics.TRANSITION, RECORDED_CHUNK))}  # fmt: skip
    assert played[RECORDED_CHUNK].recorded == "/policy/chunk"
    assert played[topics.EPISODE_EVENT].qos.durability == "transient_local"
    assert {m.topic for m in playback.messages()}.isdisjoint(COMMANDS)
    playback.close()


def test_a_bag_does_not_say_what_is_imported(tmp_path):
    """The class of a message is imported by the name of its type: only those are played that belong on a topic."""
    store = typestore()
    stranger = get_types_from_msg("float32 x\n", "stranger/msg/X")
    store.register(stranger)
    try:
        with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as bag:
            transforms = bag.add_connection("/tf", "stranger/msg/X", typestore=store)
            bag.write(transforms, 1, store.serialize_cdr(store.types["stranger/msg/X"](x=1.0), "stranger/msg/X"))
    finally:
        store.fielddefs.pop("stranger/msg/X"), store.types.pop("stranger/msg/X")
    with pytest.raises(AloeError, match="/tf holds stranger/msg/X, only tf2_msgs/msg/TFMessage is played"):
        Playback(tmp_path / "bag", ROBOT)


def test_pace():
    real_time = Pace(2.0)
    assert real_time.due(1_000_000_000, since=5.0) == 5.0
    assert real_time.due(3_000_000_000, since=5.1) == 6.0  # 2 s of the recording take 1 s
    fast = Pace(0.0)
    assert fast.due(10**18, since=7.0) == 7.0
    fast.pending["chunk", 1] = 10**18
    assert fast.due(10**18, since=7.0) == 7.0
    assert fast.due(10**18 + 1, since=7.0) == 7.01
    assert fast.due(10**18 + 400_000_000, since=7.0) == float("inf")


def test_launch_file_starts_no_control_loop_and_listens_apart():
    nodes = {n.name: n for n in plan(LAUNCH, {"bag": "b", "policy": "p", "critic": "c"})}
    assert set(nodes) == {"replay_node", "policy_node", "critic_node", "replay_critic_node"}
    for node in nodes.values():
        assert node_command(node.package, node.executable)
        assert (topics.CHUNK in dict(node.remappings)) == (node.name != "replay_node")
    assert dict(nodes["replay_critic_node"].remappings) == {topics.CHUNK: CHUNK, topics.CRITIC_VALUE: VALUE}
    assert {n.name for n in plan(LAUNCH, {"player": "false"})} == {"policy_node"}
    assert all(a.description.endswith(".") and a.default is not None for a in declared_arguments(LAUNCH))


@pytest.mark.slow
def test_graph_and_command_line_agree(ros_domain, start_process, tmp_path):
    torch.set_num_threads(1)
    policy = rig.save_policy(tmp_path / "policy")
    critic = rig.save_toy_critic(tmp_path / "critic", "test")
    bag = rig.record(tmp_path / "bags", policy, seconds=0.8)
    launch = [str(LAUNCH), f"bag:={bag}", f"policy:={policy}", f"critic:={critic}", f"output:={tmp_path / 'live'}"]
    process = start_process([sys.executable, "-m", "aloe_core.cli", "up", *launch], name="aloe up")
    assert process.wait(timeout=200) == 0

    live = tmp_path / "live" / "recorded"
    recording = Recording(bag)
    replay(recording, load_policy(str(policy), ROBOT), tmp_path / "alone", ChunkScorer(critic, policy, ROBOT))
    recording.close()
    for topic, fields in (
        (CHUNK, ("request_id", "chunk_id", "policy_version", "positions")),
        (VALUE, ("chunk_id", "q", "v", "advantage", "critic_version", "policy_version")),
        (topics.CRITIC_VALUE, ("chunk_id", "q", "v", "advantage")),
    ):
        a, b = messages(live, topic), messages(tmp_path / "alone", topic)
        assert len(a) == len(b) == 5
        for key in ("header", *fields):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_equal(getattr(x, key), getattr(y, key))
    ours, theirs = summarise(live), summarise(tmp_path / "alone")
    assert ours["recorded_chunks"] == {"pairs": 5, "identical": 5, "joint_rmse_rad": 0.0}
    assert ours == {**theirs, "bag": "recorded"}
    assert read_episode(live).problems == []


def offered(witness, node, expected):
    """Topics that a node publishes, once those `expected` are among them; ROS's own left out."""
    deadline = time.monotonic() + 120
    while True:
        try:
            found = {name for name, _ in witness.get_publisher_names_and_types_by_node(node, "/")}
        except NodeNameNonExistentError:
            found = set()
        if expected <= found:
            return found - {"/rosout", "/parameter_events", topics.DIAGNOSTICS, f"/{node}/transition_event"}
        assert time.monotonic() < deadline, f"{node} was not found"
        time.sleep(0.05)


@pytest.mark.slow
def test_real_time_with_the_expert_and_nothing_commands(start_node, tmp_path):
    """At a rate the bag takes as long as it took; the expert, who needs the recorded simulator state, proposes as recorded."""
    bag = rig.record(tmp_path / "bags", "scripted", seconds=1.0)
    rclpy.init()
    witness = rclpy.create_node("witness")
    parameters = {"bag": str(bag), "output": str(tmp_path / "live"), "rate": 0.5}
    player = start_node("aloe_policy", "replay_node", parameters)  # waits for the policy
    seen = ("/joint_states", topics.TASK_STATE, topics.CHUNK_REQUEST, topics.EPISODE_EVENT)
    shown = (topics.CONTROL_STATE, topics.TRANSITION, RECORDED_CHUNK)
    wanted = {"/clock", *("/" + name.lstrip("/") for name in (*seen, *shown))}
    assert offered(witness, "replay_node", wanted) == wanted
    settings = {"policy": "scripted", "max_wait": 100.0, "use_sim_time": True}
    start_node("aloe_policy", "policy_node", settings, remap={topics.CHUNK: CHUNK})
    wanted = {f"/{CHUNK}", f"/{topics.POLICY_STATUS}"}
    assert offered(witness, "policy_node", wanted) == wanted
    witness.destroy_node()
    rclpy.shutdown()
    assert float(player.wait_for(r"played \d+ messages in ([\d.]+) s", timeout=120)[1]) >= 2.0
    assert player.wait() == 0
    numbers = summarise(tmp_path / "live" / "recorded")
    assert numbers["recorded_chunks"]["identical"] == numbers["proposals"] == len(read_episode(bag).chunks)


def test_configured_again_the_node_begins_anew(ros_domain, tmp_path):
    """Nothing of a play that was stopped remains: no publisher, no result that would end the next one, no question."""
    from aloe_policy.nodes.replay_node import ReplayNode

    bag = rig.record(tmp_path / "bags", "scripted", seconds=0.3)
    rclpy.init(args=["--ros-args", "-p", f"bag:={bag}", "-p", "autostart:=false"])
    node = ReplayNode()
    own = list(node.publishers)
    try:
        node.configure()
        played = {p.topic_name for p in node.publishers} - {p.topic_name for p in own}
        assert {"/clock", "/joint_states", f"/{topics.CHUNK_REQUEST}"} <= played
        node.activate()
        node._asked[1] = 0
        node.deactivate()
        assert node._result == 1  # stopped while it waited for a policy
        node.cleanup()
        assert list(node.publishers) == own
        node.configure(), node.activate()
        assert node._result is None
        assert node._asked == {}
        node.deactivate(), node.cleanup()
    finally:
        node.destroy_node()
        rclpy.shutdown()


@pytest.mark.slow
def test_a_bag_of_ros_itself(start_node, tmp_path):
    """Without recorded requests: asked at the same ticks, from the same observations, as without ROS."""
    rig.foreign_bag(tmp_path / "ros", drivers=1)
    policy = rig.save_policy(tmp_path / "policy", objects=0)
    parameters = {"bag": str(tmp_path / "ros"), "output": str(tmp_path / "live"), "max_wait": 200.0, "every": 12}
    player = start_node("aloe_policy", "replay_node", parameters)
    start_node("aloe_policy", "policy_node", {"policy": str(policy), "max_wait": 100.0}, remap={topics.CHUNK: CHUNK})
    player.wait_for("wrote", timeout=200)
    assert player.wait() == 0
    recording = Recording(tmp_path / "ros", ROBOT)
    sees = load_policy(str(policy), ROBOT)
    sees.cameras = ("overhead",)  # as the player does, wait for its first image
    asked = [r.stamp_ns for r in recording.asked([sees], every=12)]
    sees.cameras = ()
    found = messages(tmp_path / "live" / "ros", CHUNK)
    assert [stamp_to_ns(m.header.stamp) for m in found] == asked
    assert len(found) == 5
    for message in found:
        request = Request(asked[message.request_id - 1], 0, "ros", message.request_id, "", np.empty((0, 14)), 0)
        alone = propose(recording, sees, request, 1, seed=0)
        np.testing.assert_array_equal(np.reshape(message.positions, (-1, 14)), alone.positions)
    recording.close()


@pytest.mark.slow
def test_policy_and_critic_follow_the_instruction_that_a_bag_lacks(ros_domain, start_process, tmp_path):
    """A bag of ROS's own recorder has no events: the critic hears the instruction from the requests, and judges as without ROS."""
    torch.set_num_threads(1)
    rig.foreign_bag(tmp_path / "ros", drivers=1)
    policy = rig.save_policy(tmp_path / "policy", cameras=("overhead",), image_size=(64, 64), objects=0)
    critic = rig.save_toy_critic(tmp_path / "critic", "test", instruction_dim=INSTRUCTION_DIM)
    words = {"instruction": "insert the peg", "policy": policy, "critic": critic}
    arguments = [
        f"{key}:={value}" for key, value in {**words, "bag": tmp_path / "ros", "output": tmp_path / "live"}.items()
    ]
    process = start_process([sys.executable, "-m", "aloe_core.cli", "up", str(LAUNCH), *arguments], name="aloe up")
    assert process.wait(timeout=300) == 0

    options = [option for key, value in words.items() for option in (f"--{key}", str(value))]
    assert (
        cli.main(
            ["replay", str(tmp_path / "ros"), "--robot", "aloha_sim", "--output", str(tmp_path / "alone"), *options]
        )
        == 0
    )
    for topic, field in ((CHUNK, "positions"), (VALUE, "q"), (VALUE, "v")):
        live, alone = (
            [
                (stamp_to_ns(m.header.stamp), np.array(getattr(m, field)).tolist())
                for m in messages(tmp_path / where / "ros", topic)
            ]
            for where in ("live", "alone")
        )
        assert len(live) == 3
        assert live == alone


@pytest.mark.slow
def test_why_a_bag_is_not_played(start_node, tmp_path):
    bag = rig.record(tmp_path / "bags", "scripted", seconds=0.3)
    (tmp_path / "out" / bag.name).mkdir(parents=True)
    for parameters, why in (
        ({"bag": ""}, "name the folder of the bag to replay"),
        ({"bag": str(bag), "output": str(tmp_path / "out")}, "exists already"),
        ({"bag": str(bag), "rate": -1.0}, "a replay rate of -1.0 is not possible"),
        (
            {"bag": str(bag), "max_wait": 1.0},
            r"still no policy that is ready \(on policy/status, control/chunk_request\)",
        ),
    ):
        node = start_node("aloe_policy", "replay_node", parameters)
        node.wait_for(why, timeout=30)
        assert node.wait() == 1
