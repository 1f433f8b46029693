"""recorder_node as a process, loaded by others: what was published is what is in the bag, or the bag says why not."""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from diagnostic_msgs.msg import DiagnosticArray
from intervention_peer import LATCHED, Peer, node_here
from mcap.reader import make_reader
from rclpy.qos import qos_profile_sensor_data
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String

from aloe_core.bag_labels import read_labels
from aloe_core.bag_messages import iter_messages
from aloe_core.bag_recover import recover
from aloe_core.messages import header_msg, ros_make, stamp_to_ns
from aloe_core.vocabulary import Outcome
from aloe_intervention.nodes.recorder_node import RecorderNode
from aloe_msgs.msg import EpisodeEvent, PolicyVersion, RecorderStatus, Transition

LOAD = Path(__file__).with_name("recorder_load.py")
ROBOT = """
name: loaded
arms:
  - name: left
    joints: [{name: left_waist, min: -1, max: 1, max_velocity: 1, max_acceleration: 10, max_jerk: 100}]
    output: {topic: /left_controller/commands}
  - name: right
    joints: [{name: right_waist, min: -1, max: 1, max_velocity: 1, max_acceleration: 10, max_jerk: 100}]
    output: {topic: /right_controller/commands}
cameras:
  - {name: overhead, topic: /overhead, width: 640, height: 480, rate_hz: 30, source: mock}
  - {name: left_wrist, topic: /left_wrist, width: 640, height: 480, rate_hz: 30, source: mock}
  - {name: right_wrist, topic: /right_wrist, width: 640, height: 480, rate_hz: 30, source: mock}
"""


@pytest.fixture
def robot(tmp_path) -> Path:
    path = tmp_path / "loaded.yaml"
    path.write_text(ROBOT)
    return path


@pytest.fixture
def recorder(start_node, robot, tmp_path):
    def start(**parameters):
        base = {"robot": str(robot), "bags": str(tmp_path / "bags"), "min_free_gb": 0.001}
        node = start_node("aloe_intervention", "recorder_node", base | parameters)
        node.wait_for("recording .* topics")
        return node

    return start


class Director(Peer):
    """Starts and stops episodes, and sees what the recorder says."""

    def __init__(self) -> None:
        super().__init__("director")
        self.listen(RecorderStatus, "recorder/status")

    def event(self, kind: int, episode_id: str = "e1", **fields) -> None:
        event = EpisodeEvent(header=header_msg(ros_make, time.time_ns()), event=kind, episode_id=episode_id, **fields)
        self.publisher(EpisodeEvent, "episode/event", LATCHED).publish(event)

    def status(self, state: int, episode_id: str = "e1") -> RecorderStatus:
        return self.wait("recorder/status", lambda s: s.state == state and s.episode_id == episode_id)


@pytest.fixture
def director(ros_domain):
    director = Director()
    yield director
    director.close()


def heard(status: RecorderStatus, topic: str) -> int:
    """Messages of a topic that the recorder has written or given up."""
    return sum(t.count + t.dropped for t in status.topics if t.topic == topic)


def load(start_process, robot: Path, seconds: float):
    processes = []
    for role in ("cameras", "control"):
        processes.append(start_process([sys.executable, str(LOAD), role, str(robot), str(seconds)], name=role))
    return processes


def test_counts_equal_what_was_published(recorder, start_process, robot, tmp_path):
    recorder()
    published: dict[str, int] = {}
    for process in load(start_process, robot, seconds=2.0):
        assert process.wait(200.0) == 0, process.output
        published |= json.loads(process.lines[-1])["counts"]
    assert published["/overhead/image_raw/compressed"] == 60
    assert published["/joint_states"] > 90
    bag = tmp_path / "bags" / "load"
    audit = json.loads((bag / "audit.json").read_text())
    # On a machine that is busy enough DDS loses what a camera publishes now and then: then the audit says so, and nothing else is missing.
    lost = {t["topic"]: t["dropped"] for t in audit["topics"] if t["dropped"]}
    of_cameras = re.compile("/(image_raw/compressed|camera_info)$")
    assert all(of_cameras.search(topic) and count <= 0.1 * published[topic] for topic, count in lost.items()), lost
    published = {topic: count - lost.get(topic, 0) for topic, count in published.items()}

    with AnyReader([bag]) as reader:
        assert {c.topic: c.msgcount for c in reader.connections if c.msgcount} == published
        types = {c.topic: c.msgtype for c in reader.connections}
        assert types["/control/transition"] == "aloe_msgs/msg/Transition"
    with open(bag / "load_0.mcap", "rb") as stream:
        summary = make_reader(stream).get_summary()
        counts = summary.statistics.channel_message_counts
        assert {c.topic: counts[i] for i, c in summary.channels.items() if counts.get(i)} == published
        metadata = {m.name: m.metadata for m in make_reader(stream).iter_metadata()}
    info = metadata["aloe"]
    assert {k: info[k] for k in ("episode_id", "task", "instruction", "robot", "seed", "policy_version")} == {
        "episode_id": "load",
        "task": "load",
        "instruction": "load the recorder",
        "robot": "loaded",
        "seed": "4",
        "policy_version": "v1",
    }
    assert {t["topic"]: t["count"] for t in audit["topics"] if t["count"]} == published
    assert audit["outcome"] == "timeout"
    # How evenly the processes ran is the machine's affair, that nothing is missing is not.
    assert all("Hz instead of" in r or "nothing for" in r or (lost and "lost by DDS" in r) for r in audit["reasons"])


def test_a_killed_recorder_loses_at_most_a_second(recorder, start_process, robot, tmp_path, director):
    node = recorder()
    load(start_process, robot, seconds=60.0)
    bag = tmp_path / "bags" / "load"
    held = director.wait("recorder/status", lambda s: s.state == RecorderStatus.STATE_RECORDING and s.messages > 300)
    # One status a second: what the recorder had before its last second is on the disk.
    director.wait("recorder/status", lambda s: stamp_to_ns(s.header.stamp) > stamp_to_ns(held.header.stamp) + 2e9)
    node.stop(signal.SIGKILL)
    assert not (bag / "metadata.yaml").exists()
    original = (bag / "load_0.mcap").read_bytes()

    # Its successor recovers the bag, finds the episode still announced, does not go on with the bag and says so.
    again = recorder()
    again.wait_for(r"bag .*load is recovered: \d+ messages")
    with AnyReader([bag]) as reader:
        assert reader.message_count >= held.messages
    assert (bag / "load_0.mcap.unfinalized").read_bytes() == original
    again.wait_for("episode 'load' is not recorded: bag .* exists already")
    assert director.wait("recorder/status", lambda s: s.state == RecorderStatus.STATE_ERROR).episode_id == "load"


def test_latched_messages_and_the_first_observation_are_in_every_bag(recorder, director, tmp_path):
    recorder(extra_topics=["/note", "/never"])
    version = PolicyVersion(version="v7", iteration=3)
    director.publisher(PolicyVersion, "policy/version", LATCHED).publish(version)
    image = CompressedImage(header=header_msg(ros_make, 5), format="jpeg", data=b"old but the newest")
    director.publisher(CompressedImage, "/overhead/image_raw/compressed", qos_profile_sensor_data).publish(image)
    director.publisher(String, "/note", 10)  # matched: the recorder has discovered it
    for episode_id in ("e1", "e2"):
        director.event(EpisodeEvent.STARTED, episode_id, policy_version="v7")
        director.status(RecorderStatus.STATE_RECORDING, episode_id)
        director.publisher(String, "/note", 10).publish(String(data=episode_id))
        director.wait("recorder/status", lambda s: any(t.topic == "/note" and t.count == 1 for t in s.topics))
        director.event(EpisodeEvent.STOPPED, episode_id)
        status = director.status(RecorderStatus.STATE_IDLE, episode_id)
        assert "no transition was recorded" in status.message
        bag = tmp_path / "bags" / episode_id
        messages = [(m.topic, m.message) for m in iter_messages(bag)]
        assert [m.version for t, m in messages if t == "/policy/version"] == ["v7"]
        assert [m.header.stamp.nanosec for t, m in messages if t == "/overhead/image_raw/compressed"] == [5]
        assert [m.data for t, m in messages if t == "/note"] == [episode_id]
        assert [m.event for t, m in messages if t == "/episode/event"] == [EpisodeEvent.STARTED, EpisodeEvent.STOPPED]
        with open(bag / f"{episode_id}_0.mcap", "rb") as stream:
            assert {m.name: m.metadata for m in make_reader(stream).iter_metadata()}["aloe"]["iteration"] == "3"


def test_the_bag_waits_for_the_final_transition(recorder, director, tmp_path):
    recorder(settle_timeout=100.0)
    transitions = director.publisher(Transition, "control/transition", 10)
    joints = director.publisher(JointState, "/joint_states", 10)
    director.event(EpisodeEvent.STARTED)
    director.status(RecorderStatus.STATE_RECORDING)
    director.event(EpisodeEvent.STOPPED, outcome=EpisodeEvent.OUTCOME_SUCCESS)
    time.sleep(0.5)
    transitions.publish(Transition(header=header_msg(ros_make, 10), episode_id="e1", step=0, terminated=True))
    joints.publish(JointState(header=header_msg(ros_make, 20)))
    status = director.status(RecorderStatus.STATE_IDLE)
    assert (status.complete, status.dropped) == (True, 0), status.message
    audit = json.loads((tmp_path / "bags" / "e1" / "audit.json").read_text())
    assert (audit["complete"], audit["transitions"], audit["outcome"]) == (True, 1, "success")


def test_refusals_are_sentences(recorder, director, tmp_path):
    recorder(min_free_gb=1e9)
    for episode_id, sentence in (("e1", "GB free in"), ("../e2", "not safe")):
        director.event(EpisodeEvent.STARTED, episode_id)
        assert sentence in director.status(RecorderStatus.STATE_ERROR, episode_id).message
    assert list((tmp_path / "bags").iterdir()) == []


def test_a_full_disk_is_reported_and_loses_nothing_written_before(recorder, director, tmp_path):
    node = recorder()
    images = director.publisher(CompressedImage, "/overhead/image_raw/compressed", 200)
    director.event(EpisodeEvent.STARTED)
    director.status(RecorderStatus.STATE_RECORDING)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (1_300_000, 1_300_000))  # every file: no byte beyond this
    noise = np.random.default_rng(0)  # nothing that lz4 could make small
    for k in range(300):
        images.publish(CompressedImage(header=header_msg(ros_make, k), data=noise.bytes(20_000)))
        time.sleep(0.01)
        if k % 50 == 49:  # no more under way than the recorder's subscription can hold
            director.wait("recorder/status", lambda s, k=k: heard(s, "/overhead/image_raw/compressed") == k + 1)
    assert "cannot write the bag" in director.status(RecorderStatus.STATE_ERROR).message
    director.event(EpisodeEvent.STOPPED)
    node.wait_for("bag .* is not complete: cannot write the bag")
    audit = json.loads((tmp_path / "bags" / "e1" / "audit.json").read_text())
    recorded = next(t for t in audit["topics"] if t["topic"] == "/overhead/image_raw/compressed")
    assert recorded["count"] + recorded["dropped"] == 300
    assert recorded["dropped"] > 0
    assert node.returncode is None
    assert recover(tmp_path / "bags" / "e1").messages == audit["messages"] > 0


def test_an_event_with_an_unknown_outcome_stops_the_episode_unlabelled(ros_domain, robot, tmp_path):
    with node_here(RecorderNode, robot=str(robot), bags=str(tmp_path / "bags"), min_free_gb=0.001) as node:
        node.configure(), node.activate()
        node._on_event(EpisodeEvent(event=EpisodeEvent.STARTED, episode_id="e1"), 0)
        node._on_event(
            EpisodeEvent(event=EpisodeEvent.STOPPED, episode_id="e1", outcome=200, termination_reason=201), 0
        )
        assert node.recording.stopped
        node.shutdown()
    audit = json.loads((tmp_path / "bags" / "e1" / "audit.json").read_text())
    assert (audit["outcome"], audit["termination"]) == ("unlabelled", "none")


def test_low_space_during_an_episode_is_an_error_and_the_outcome_is_kept(ros_domain, robot, tmp_path, monkeypatch):
    free = 10 * 10**9
    monkeypatch.setattr("aloe_intervention.recording.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    bags = tmp_path / "bags"
    with node_here(RecorderNode, robot=str(robot), bags=str(bags), min_free_gb=4) as node:
        node.configure(), node.activate()

        def event(kind: int, episode_id: str, **fields) -> None:
            node._on_event(EpisodeEvent(event=kind, episode_id=episode_id, **fields), 0)

        def closed() -> None:
            deadline = time.monotonic() + 60.0
            while node.recording is not None or node.closing:
                assert time.monotonic() < deadline
                node._poll()
                time.sleep(0.01)

        event(EpisodeEvent.STARTED, "e1")
        free = 3 * 10**9  # too little for the next episode, enough for this one
        node._watch_space()
        assert (node.state, "min_free_gb" in node.message) == (RecorderStatus.STATE_ERROR, True)
        event(EpisodeEvent.STOPPED, "e1", outcome=EpisodeEvent.OUTCOME_FAILURE)
        closed()
        assert json.loads((bags / "e1" / "audit.json").read_text())["outcome"] == "failure"
        assert (node.state, "no transition" in node.message) == (RecorderStatus.STATE_ERROR, True)
        event(EpisodeEvent.STARTED, "e2")
        assert node.recording is None

        free = 10 * 10**9
        event(EpisodeEvent.STARTED, "e3")
        free = 10**9  # less than half
        node._watch_space()
        closed()
        event(EpisodeEvent.STOPPED, "e3", outcome=EpisodeEvent.OUTCOME_SUCCESS)
        audit = json.loads((bags / "e3" / "audit.json").read_text())
        assert (audit["outcome"], "closed before the episode ended" in audit["reasons"][0]) == ("unlabelled", True)
        assert [label.outcome for label in read_labels(bags / "e3")] == [Outcome.SUCCESS]
        node.shutdown()


def test_the_next_episode_may_start_while_messages_of_the_last_still_come(recorder, director, tmp_path):
    recorder()
    transitions = director.publisher(Transition, "control/transition", 10)
    joints = director.publisher(JointState, "/joint_states", 10)
    director.event(EpisodeEvent.STARTED, "e1")
    director.status(RecorderStatus.STATE_RECORDING, "e1")
    transitions.publish(Transition(header=header_msg(ros_make, 10), episode_id="e1", step=0, terminated=True))
    joints.publish(JointState(header=header_msg(ros_make, 20)))
    director.wait("recorder/status", lambda s: heard(s, "/control/transition") == heard(s, "/joint_states") == 1)
    director.event(EpisodeEvent.STOPPED, "e1", outcome=EpisodeEvent.OUTCOME_SUCCESS)
    director.event(EpisodeEvent.STARTED, "e2")
    director.status(RecorderStatus.STATE_RECORDING, "e2")
    # A label comes after the end: should the word of the end be lost, it tells.
    director.event(EpisodeEvent.LABELLED, "e2", outcome=EpisodeEvent.OUTCOME_FAILURE)
    director.status(RecorderStatus.STATE_IDLE, "e2")
    audits = [json.loads((tmp_path / "bags" / name / "audit.json").read_text()) for name in ("e1", "e2")]
    assert [(a["complete"], a["reasons"], a["outcome"]) for a in audits] == [
        (True, [], "success"),
        (False, ["no transition was recorded"], "failure"),
    ]


def test_diagnostics_tell_state_and_losses(recorder, director):
    recorder()
    director.listen(DiagnosticArray, "/diagnostics", 10)
    found = director.wait("/diagnostics", lambda m: m.status[0].name == "recorder_node").status[0]
    values = {v.key: v.value for v in found.values}
    assert (values["state"], values["dropped"], values["queued_bytes"]) == ("idle", "0", "0")


def test_an_interrupted_recorder_closes_its_bag(recorder, director, tmp_path):
    node = recorder()
    director.event(EpisodeEvent.STARTED)
    director.status(RecorderStatus.STATE_RECORDING)
    assert node.stop(signal.SIGINT) == 0
    audit = json.loads((tmp_path / "bags" / "e1" / "audit.json").read_text())
    assert "recorder_node ended during the episode" in audit["reasons"]
    assert (tmp_path / "bags" / "e1" / "metadata.yaml").is_file()


def test_best_effort_publishers_are_heard(recorder, director):
    recorder()
    images = director.publisher(CompressedImage, "/overhead/image_raw/compressed", qos_profile_sensor_data)
    director.event(EpisodeEvent.STARTED)
    director.status(RecorderStatus.STATE_RECORDING)
    images.publish(CompressedImage(header=header_msg(ros_make, 1)))
    director.wait(
        "recorder/status", lambda s: any(t.topic == "/overhead/image_raw/compressed" and t.count for t in s.topics)
    )
