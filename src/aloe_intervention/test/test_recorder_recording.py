"""Recording without ROS: nothing blocks, nothing is lost without being counted, and the audit says why a bag is not complete."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
import time
from array import array
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.highlevel import AnyReader

from aloe_core.bag_format import EpisodeInfo, TopicQos
from aloe_core.bag_recover import lock, recover
from aloe_core.bag_writer import BagWriter
from aloe_core.errors import AloeError
from aloe_core.messages import bag_make, has_header, header_stamp_ns, joint_state_msg, typestore
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Outcome, Termination
from aloe_intervention.recording import EpisodeRecording, Message, Recent, check_space
from aloe_intervention.recording_audit import TopicTally, TransitionRow
from aloe_intervention.recording_recovery import recover_unfinished
from aloe_intervention.recording_topics import (
    TopicSpec,
    discovered_topic,
    matching_qos,
    recorded_topics,
)

JOINTS = TopicSpec("/joint_states", "sensor_msgs/msg/JointState", 50.0, observation=True)
COMMANDS = TopicSpec("/left/commands", "std_msgs/msg/Float64MultiArray", 50.0)
TICK = 20_000_000  # [ns]


def joint_state(stamp_ns: int) -> bytes:
    message = joint_state_msg(bag_make, stamp_ns, ("waist",), np.zeros(1))
    return bytes(typestore().serialize_cdr(message, "sensor_msgs/msg/JointState"))


def open_recording(folder: Path, writer: BagWriter | None = None, **more) -> EpisodeRecording:
    topics = {s.name: (s, TopicQos()) for s in (JOINTS, COMMANDS)}
    return EpisodeRecording(folder, EpisodeInfo("e1"), topics, JOINTS.name, writer=writer, **more)


def record(recording: EpisodeRecording, ticks: int, skip: range = range(0), last_final: bool = True) -> None:
    """A proper episode of `ticks` transitions and the observation after the last; joint states `skip` are missing."""
    for k in range(ticks + 1):
        stamp = 1_000_000_000 + k * TICK
        if k not in skip:
            recording.put(Message(JOINTS.name, joint_state(stamp), stamp, stamp))
        recording.put(Message(COMMANDS.name, b"\x00\x01\x00\x00" + bytes(20), stamp, stamp))
        if k < ticks:
            recording.transitions.add(k, stamp, last_final and k == ticks - 1)


def finished(recording: EpisodeRecording):
    recording.stop(Outcome.SUCCESS, Termination.TASK, 0.0)
    recording.finish()
    assert recording.join(30.0)
    return recording.audit


class GatedWriter(BagWriter):
    """A disk that writes nothing before `gate` opens."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, EpisodeInfo("e1"))
        self.gate = threading.Event()

    def write(self, *arguments) -> None:
        assert self.gate.wait(30.0)
        super().write(*arguments)


class FullDisk(BagWriter):
    """A disk that is full when `room` messages are on it."""

    def __init__(self, folder: Path, room: int) -> None:
        super().__init__(folder, EpisodeInfo("e1"))
        self.room = room

    def write(self, *arguments) -> None:
        self.room -= 1
        if self.room < 0:
            self.flush()
            raise AloeError("cannot write the bag: No space left on device")
        super().write(*arguments)


def test_a_whole_episode_is_complete(tmp_path):
    recording = open_recording(tmp_path / "e1")
    record(recording, 100)
    audit = finished(recording)
    assert audit.reasons == ()
    assert (audit.transitions, audit.duration, audit.messages, audit.outcome) == (100, 99 * 0.02, 202, "success")
    joints = audit.topics[0]
    assert (joints.count, joints.rate, joints.dropped) == (101, pytest.approx(50.0), 0)
    assert joints.max_gap == pytest.approx(0.02)
    written = json.loads((tmp_path / "e1" / "audit.json").read_text())
    assert (written["complete"], written["topics"][0]["count"]) == (True, 101)
    assert (tmp_path / "e1" / "metadata.yaml").is_file()


@pytest.mark.parametrize(
    ("skip", "reason"),
    [
        (range(40, 47), "nothing for 0.160 s at 50 Hz"),
        (range(80, 101), "40.0 Hz instead of 50 Hz"),
        (range(0, 101), "/joint_states: 0.0 Hz instead of 50 Hz"),
        (range(0, 8), "nothing for 0.160 s at 50 Hz"),
    ],
)
def test_silence_in_a_topic_is_named(tmp_path, skip, reason):
    recording = open_recording(tmp_path / "e1")
    record(recording, 100, skip)
    (found,) = finished(recording).reasons
    assert reason in found


def test_missing_transitions_are_named(tmp_path):
    recording = open_recording(tmp_path / "e1")
    record(recording, 10, last_final=False)
    recording.transitions.add(12, 1_000_000_000 + 12 * TICK, False)
    reasons = finished(recording).reasons
    assert "transitions: steps 10 .. 11 are missing" in reasons
    assert "the final transition is missing" in reasons


def test_no_transition_at_all_is_named(tmp_path):
    assert "no transition was recorded" in finished(open_recording(tmp_path / "e1")).reasons


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_a_row_of_transitions_is_whole_exactly_if_none_is_missing(kept):
    row = TransitionRow()
    for step, keep in enumerate(kept):
        if keep:
            row.add(step, step * TICK, step == len(kept) - 1)
    assert (row.problems == []) == all(kept)


def test_a_full_queue_drops_and_counts_without_blocking(tmp_path):
    writer = GatedWriter(tmp_path / "e1")
    data = joint_state(0)
    recording = open_recording(writer.folder, writer, queue_bytes=10 * len(data))
    for k in range(30):  # would never return if it blocked: the disk stands still
        recording.put(Message(JOINTS.name, joint_state(k * TICK), 0, 0))
    assert recording.dropped == 20
    writer.gate.set()
    audit = finished(recording)
    assert (audit.topics[0].count, audit.topics[0].dropped_by_queue) == (10, 20)
    assert "/joint_states: 0 messages lost by DDS, 20 that could not be written" in audit.reasons


def test_losses_reported_by_dds_are_counted(tmp_path):
    recording = open_recording(tmp_path / "e1")
    record(recording, 100)
    recording.lost(JOINTS.name, 3)
    audit = finished(recording)
    assert (audit.complete, audit.topics[0].lost_by_dds, audit.topics[0].dropped) == (False, 3, 3)


def test_a_full_disk_is_told_and_everything_after_it_counted(tmp_path):
    recording = open_recording(tmp_path / "e1", FullDisk(tmp_path / "e1", room=50))
    record(recording, 100)
    audit = finished(recording)
    assert recording.failure == "cannot write the bag: No space left on device"
    assert audit.reasons[0] == recording.failure
    assert audit.messages == 50
    assert sum(t.count + t.dropped for t in audit.topics) == 202
    assert json.loads((tmp_path / "e1" / "audit.json").read_text())["complete"] is False


@pytest.mark.parametrize("share", [0.35, 0.45, 0.55, 0.7, 0.9, 0.99])
def test_what_a_full_disk_refused_is_not_counted_as_recorded(tmp_path, monkeypatch, share):
    """Wherever the disk ends, in a chunk, in its index or in the index of the bag: what recovery finds is what was counted."""

    def recorded(folder: Path) -> EpisodeRecording:
        recording = open_recording(folder, BagWriter(folder, EpisodeInfo("e1"), "none", chunk_bytes=2_000))
        record(recording, 100)
        finished(recording)
        return recording

    left, write = round(share * recorded(tmp_path / "whole").bytes), os.write

    def limited(fd: int, data) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, data[:left])
        left -= written
        return written

    folder = tmp_path / "e1"
    monkeypatch.setattr("aloe_core.bag_writer.os.write", limited)
    recording = recorded(folder)
    monkeypatch.undo()
    audit = recording.audit
    assert recording.failure.startswith("cannot write the bag")
    assert sum(t.count + t.dropped for t in audit.topics) == 202
    recovered = recover(folder).messages
    assert (audit.messages, sum(t.bytes for t in audit.topics)) == (recovered, message_bytes(folder))


def message_bytes(folder: Path) -> int:
    with AnyReader([folder]) as reader:
        return sum(len(data) for _, _, data in reader.messages())


@pytest.mark.parametrize("where", ["write", "close"])
def test_no_error_of_the_writer_ends_its_thread_without_a_word(tmp_path, monkeypatch, where):
    def fail(*arguments):
        raise struct.error("'Q' format requires 0 <= number <= 18446744073709551615")

    writer = BagWriter(tmp_path / "e1", EpisodeInfo("e1"))
    monkeypatch.setattr(writer, where, fail)
    recording = open_recording(writer.folder, writer)
    record(recording, 10)
    audit = finished(recording)
    assert recording.failure.startswith("cannot write the bag: error: 'Q' format requires")
    assert audit.reasons[0] == recording.failure
    assert sum(t.count + t.dropped for t in audit.topics) == 22
    assert recording.queued == (0, 0)


def test_what_comes_late_after_a_failure_is_counted_as_well(tmp_path):
    recording = open_recording(tmp_path / "e1", FullDisk(tmp_path / "e1", room=0), settle_s=1.0)
    recording.put(Message(JOINTS.name, joint_state(0), 0, 0))
    recording.stop(Outcome.UNLABELLED, Termination.FAULT, 10.0, published_ns=100)
    while not recording.failure:
        time.sleep(0.01)
    for k in range(1, 20):  # published before STOPPED, and processed after it
        assert not recording.settled(10.0 + k / 10)
        recording.put(Message(JOINTS.name, joint_state(k), k, k))
    assert not recording.settled(12.0)
    assert recording.settled(13.0)
    recording.finish()
    assert recording.join(30.0)
    assert recording.audit.topics[0].dropped == 20


def test_settled_waits_for_the_last_transition_and_the_observation_after_it(tmp_path):
    recording = open_recording(tmp_path / "e1", settle_s=1.0)
    assert not recording.settled(0.0)
    recording.put(Message(JOINTS.name, joint_state(TICK), 0, 0))
    recording.transitions.add(0, TICK, False)
    recording.stop(Outcome.SUCCESS, Termination.TASK, 10.0)
    recording.stop(Outcome.FAILURE, Termination.OPERATOR, 10.5)  # the first word counts
    assert not recording.settled(10.1)
    recording.transitions.add(1, 2 * TICK, True)
    assert not recording.settled(10.2)
    recording.put(Message(JOINTS.name, joint_state(3 * TICK), 0, 0))
    assert not recording.settled(10.3)
    assert not recording.settled(10.35)  # lingers for what other topics have under way
    assert recording.settled(10.45)
    recording.finish()
    assert recording.join(30.0)
    assert recording.audit.outcome == "success"


def test_settled_gives_up_after_its_time(tmp_path):
    recording = open_recording(tmp_path / "e1", settle_s=1.0)
    recording.stop(Outcome.UNLABELLED, Termination.FAULT, 10.0)
    assert not recording.settled(10.9)
    assert recording.settled(11.0)
    recording.finish()
    assert recording.join(30.0)


def test_settled_waits_as_long_as_what_was_published_before_the_stop_still_comes_in(tmp_path):
    """On a busy machine the word that an episode has stopped overtakes seconds of its messages."""
    recording = open_recording(tmp_path / "e1", settle_s=1.0)
    recording.stop(Outcome.SUCCESS, Termination.TASK, 10.0, published_ns=100 * TICK)
    for step in range(5):
        assert not recording.settled(10.0 + 0.8 * step)
        recording.transitions.add(step, step * TICK, False)
    assert not recording.settled(14.0)
    recording.put(Message(JOINTS.name, joint_state(6 * TICK), 0, publish_ns=99 * TICK))
    assert not recording.settled(14.9)
    recording.put(Message(JOINTS.name, joint_state(7 * TICK), 0, publish_ns=101 * TICK))  # not of the episode: no news
    assert not recording.settled(15.8)
    assert recording.settled(15.95)
    recording.finish()
    assert recording.join(30.0)


def test_settled_ends_even_if_a_clock_is_late(tmp_path):
    recording = open_recording(tmp_path / "e1", settle_s=1.0)
    recording.stop(Outcome.SUCCESS, Termination.TASK, 10.0, published_ns=100 * TICK)
    for tenth in range(99):
        recording.put(Message(JOINTS.name, joint_state(tenth), 0, publish_ns=tenth))
        assert not recording.settled(10.0 + tenth / 10)
    assert recording.settled(20.0)
    recording.finish()
    assert recording.join(30.0)


def test_messages_from_before_the_start_are_recorded_but_not_rated(tmp_path):
    recording = open_recording(tmp_path / "e1")
    recording.put(Message(JOINTS.name, joint_state(5), 5, 5), before_start=True)
    record(recording, 50)
    audit = finished(recording)
    assert audit.complete
    assert (audit.topics[0].count, audit.topics[0].rate) == (52, pytest.approx(50.0))


def test_a_bag_begins_with_what_the_first_observation_may_need():
    recent = Recent()
    latched = TopicSpec("/policy/version", "aloe_msgs/msg/PolicyVersion", latched=True)
    camera = TopicSpec("/cam", "sensor_msgs/msg/CameraInfo", 30.0, observation=True)
    for k in range(60):  # two seconds, ending now
        recent.add(camera, Message("/cam", str(k).encode(), k * 33_000_000, 0))
        recent.add(COMMANDS, Message(COMMANDS.name, b"", k * 33_000_000, 0))
    recent.add(latched, Message("/policy/version", b"old", 1, 0))
    recent.add(latched, Message("/policy/version", b"new", 2, 0))
    start = recent.at_start(60 * 33_000_000)
    assert [m.data for m in start if m.topic == "/policy/version"] == [b"new"]
    assert [m.log_ns // 33_000_000 for m in start if m.topic == "/cam"] == list(range(51, 60))
    assert len(start) == 10
    late = recent.at_start(10**12)  # the camera died long ago: its newest image is still what an observation would hold
    assert [m.log_ns // 33_000_000 for m in late if m.topic == "/cam"] == [59]
    assert recent.newest("/cam") == late[-1]
    assert recent.newest("/nothing") is None


def test_an_observation_that_is_repeated_while_time_stands_still_is_kept_once():
    recent = Recent()
    state = TopicSpec("/joint_states", "sensor_msgs/msg/JointState", 50.0, observation=True)
    for stamp in (0, 20_000_000):
        for repetition in range(3000):
            recent.add(state, Message("/joint_states", str(stamp).encode(), stamp, repetition))
    assert [(m.log_ns, m.publish_ns) for m in recent.at_start(20_000_000)] == [(0, 2999), (20_000_000, 2999)]


def test_an_existing_bag_is_left_alone(tmp_path):
    (tmp_path / "e1").mkdir()
    with pytest.raises(AloeError, match="exists already"):
        open_recording(tmp_path / "e1")


def test_too_little_space_says_what_to_do(tmp_path):
    assert check_space(tmp_path, 0) > 0
    with pytest.raises(AloeError, match=r"GB free in .* min_free_gb"):
        check_space(tmp_path, 1 << 62)


def test_slow_cameras_are_not_gaps_of_the_control_loop():
    """A 25 Hz camera beside a 50 Hz loop whose first tick lies between two images."""
    tally = TopicTally("/cam", TopicSpec("/cam", "sensor_msgs/msg/CameraInfo", 25.0))
    tally._stamps = array("q", range(0, 50 * 2 * TICK, 2 * TICK))
    report = tally.report((TICK, 98 * TICK))
    assert report.problem == ""
    assert report.rate == pytest.approx(25.0, rel=0.03)


# -- what another recorder has left --


def leave(folder: Path, messages: int = 20) -> BagWriter:
    """A bag in the state in which a recorder writes it."""
    writer = BagWriter(folder, EpisodeInfo(folder.name))
    for k in range(messages):
        writer.write(JOINTS.name, JOINTS.type, joint_state(k), k)
    writer.flush()
    return writer


def test_what_a_recorder_left_is_recovered_and_what_one_writes_is_left_alone(tmp_path):
    leave(tmp_path / "killed").abandon()
    leave(tmp_path / "whole").close()
    leave(tmp_path / ".hidden").abandon()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "foreign_0.mcap").write_bytes((tmp_path / "killed" / "killed_0.mcap").read_bytes()[:8])
    original = (tmp_path / "killed" / "killed_0.mcap").read_bytes()
    live = leave(tmp_path / "live")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "killed"}
    (recovered, done), (left, says) = recover_unfinished(tmp_path, 0)
    assert (recovered, "killed is recovered: 20 messages; the original is kept as killed_0.mcap" in done) == (
        True,
        True,
    )
    assert (left, "is being written, or recovered, by another process" in says) == (False, True)
    assert (tmp_path / "killed" / "killed_0.mcap.unfinalized").read_bytes() == original
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "killed"}
    live.write(JOINTS.name, JOINTS.type, joint_state(99), 99)
    live.close()
    assert list(recover_unfinished(tmp_path, 0)) == []
    with AnyReader([tmp_path / "live"]) as reader:
        assert reader.message_count == 21


def test_unfinished_bags_stay_where_there_is_no_room_or_somebody_else_recovers(tmp_path):
    leave(tmp_path / "killed").abandon()
    assert ["GB free in" in says for done, says in recover_unfinished(tmp_path, 1 << 62) if not done] == [True]
    with ExitStack() as other:
        assert lock(tmp_path, other)
        assert next(recover_unfinished(tmp_path, 0))[1].endswith("another process is recovering there")
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["killed_0.mcap"]
    assert [done for done, _ in recover_unfinished(tmp_path, 0)] == [True]


# -- topics --


def test_stamps_are_read_from_the_bytes():
    for stamp in (0, 1, 1_234_567_890_123_456_789):
        assert header_stamp_ns(joint_state(stamp)) == stamp
    big_endian = b"\x00\x00\x00\x00" + (12).to_bytes(4, "big") + (34).to_bytes(4, "big")
    assert header_stamp_ns(big_endian) == 12_000_000_034


def test_every_type_we_record_is_known_and_its_header_too():
    for robot in ("aloha_sim", "bimanual_ur5e"):
        for spec in recorded_topics(load_robot(robot), simulation=True, images="both"):
            fields = [name for name, _ in typestore().fielddefs[spec.type][1]]
            assert has_header(spec.type) == (fields[0] == "header")
    assert has_header("aloe_msgs/msg/Transition")
    assert not has_header("std_msgs/msg/Float64MultiArray")
    assert not has_header("nobody/msg/Knows")


def test_topics_follow_the_robot_description():
    specs = {s.name: s for s in recorded_topics(load_robot("bimanual_ur5e"), simulation=False)}
    assert specs["/overhead/image_raw/compressed"].expected_rate == 30.0
    assert specs["/left_gripper_controller/commands"].expected_rate == 50.0
    assert "sim/task_state" not in specs
    assert "/overhead/image_raw" not in specs
    assert specs["episode/event"].latched
    assert not any("image" in s.name for s in recorded_topics(load_robot("aloha_sim"), True, "none"))


def test_extra_topics_need_one_known_type():
    assert discovered_topic("/wrench", ["geometry_msgs/msg/WrenchStamped"]).type == "geometry_msgs/msg/WrenchStamped"
    with pytest.raises(AloeError, match="several types"):
        discovered_topic("/x", ["a/msg/A", "b/msg/B"])
    with pytest.raises(AloeError, match="definition is unknown"):
        discovered_topic("/x", ["a/msg/A"])


@pytest.mark.parametrize(
    ("offers", "latched", "reliability", "durability"),
    [
        ([], False, "reliable", "volatile"),
        ([], True, "reliable", "transient_local"),
        ([(True, True)], False, "reliable", "transient_local"),
        ([(True, True), (False, False)], True, "best_effort", "volatile"),
    ],
)
def test_quality_of_service_is_the_strongest_that_all_offer(offers, latched, reliability, durability):
    qos = matching_qos(TopicSpec("/x", "sensor_msgs/msg/JointState", latched=latched), offers)
    assert (qos.reliability, qos.durability) == (reliability, durability)
