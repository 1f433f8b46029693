"""Bags as other tools see them, and a writer that refuses clearly."""

import errno
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability

from aloe_core.bag_format import COMMAND, LATCHED, SENSOR, EpisodeInfo, TopicQos
from aloe_core.bag_messages import find_bags
from aloe_core.bag_recover import recover
from aloe_core.bag_storage import open_storage
from aloe_core.bag_writer import BagWriter, whole_bag
from aloe_core.errors import AloeError
from aloe_core.messages import bag_make, joint_state_msg, typestore
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome, Termination

JOINTS = "sensor_msgs/msg/JointState"


def joints_cdr(ns: int = 0) -> bytes:
    message = joint_state_msg(bag_make, ns, ("a", "b"), np.arange(2.0))
    return typestore().serialize_cdr(message, JOINTS).tobytes()


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_other_readers_see_every_message(tmp_path: Path, compression: str) -> None:
    episode = SyntheticEpisode(load_robot("aloha_sim"), steps=60, cameras=("overhead",), human=(10, 20))
    info = episode.write(tmp_path / "e", compression)
    written = [(topic, ns) for topic, _, _, ns in episode.messages(info)]

    with AnyReader([tmp_path / "e"]) as reader:
        assert sorted((c.topic, t) for c, t, _ in reader.messages()) == sorted(written)
        stamps = [
            reader.deserialize(data, c.msgtype).step for c, _, data in reader.messages() if "transition" in c.topic
        ]
        assert stamps == list(range(60))

    with open(tmp_path / "e" / "e_0.mcap", "rb") as stream:
        reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
        summary = reader.get_summary()
        assert summary.statistics.message_count == len(written)
        decoded = list(reader.iter_decoded_messages(topics=["/control/transition"]))
        assert [m.decoded_message.step for m in decoded] == list(range(60))
        assert {s.encoding for s in summary.schemas.values()} == {"ros2msg"}


def test_metadata_carries_information_and_quality_of_service(tmp_path: Path) -> None:
    info = EpisodeInfo(
        "e", task="t", instruction="put: 'it' {there}", robot="r", robot_hash="h", policy_version="v", seed=7
    )
    with BagWriter(tmp_path / "e", info) as bag:
        bag.add_topic("/latched", "std_msgs/msg/String", LATCHED)
        bag.add_topic("/image", "sensor_msgs/msg/Image", SENSOR)
        bag.add_topic("/command", "std_msgs/msg/Float64MultiArray", COMMAND)
        bag.write("/joint_states", JOINTS, joints_cdr(), 5, 4)
        bag.close(Outcome.FAILURE, Termination.OPERATOR, {"note": "x"})
    data = yaml.safe_load((tmp_path / "e" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert data["custom_data"] == info.to_text() | {"outcome": "failure", "termination": "operator", "note": "x"}
    assert EpisodeInfo.from_text(data["custom_data"], "bag") == info
    with AnyReader([tmp_path / "e"]) as reader:
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
        assert qos["/latched"].durability == QosDurability.TRANSIENT_LOCAL
        assert qos["/image"].reliability == QosReliability.BEST_EFFORT
        assert (qos["/command"].depth, qos["/joint_states"].depth) == (1, 10)
    with open(tmp_path / "e" / "e_0.mcap", "rb") as stream:
        reader = make_reader(stream)
        first, last, rosbag2 = reader.iter_metadata()
        (message,) = [m for _, _, m in reader.iter_messages()]
    assert first.metadata == info.to_text()
    assert last.metadata["outcome"] == "failure"
    assert yaml.safe_load(rosbag2.metadata["serialized_metadata"]) == data
    assert (message.log_time, message.publish_time) == (5, 4)


@pytest.mark.parametrize("qos", [TopicQos(), LATCHED, SENSOR, COMMAND])
def test_quality_of_service_survives_the_text_form(qos: TopicQos) -> None:
    assert TopicQos.from_rosbag2(yaml.safe_dump([qos.to_rosbag2()])) == qos
    undiscovered = {**qos.to_rosbag2(), "history": "unknown", "depth": 0}  # as rosbag2 records a foreign publisher
    assert TopicQos.from_rosbag2(yaml.safe_dump([undiscovered])) == replace(qos, depth=10)


def test_message_hashes_are_those_of_ros(tmp_path: Path) -> None:
    """The hash by which readers know the version of a message is the one ROS itself computes."""
    JointState = pytest.importorskip("sensor_msgs.msg").JointState
    from aloe_msgs.msg import Transition

    for message in (JointState, Transition):
        package = message.__module__.split(".")[0]
        described = Path(sys.prefix) / "share" / package / "msg" / f"{message.__name__}.json"
        if not described.is_file():
            pytest.skip("type descriptions are not installed beside Python")
        assert typestore().hash_rihs01(f"{package}/msg/{message.__name__}") in described.read_text()


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with pytest.raises(AloeError, match="exists already"):
        BagWriter(tmp_path / "e", EpisodeInfo("e"))
    assert list((tmp_path / "e").iterdir()) == []


def test_refusals_name_topic_and_type(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "e", EpisodeInfo("e")) as bag:
        bag.write("/a", JOINTS, joints_cdr(), 1)
        with pytest.raises(AloeError, match=r"/a has type sensor_msgs/msg/JointState, not std_msgs/msg/String"):
            bag.write("/a", "std_msgs/msg/String", b"", 2)
        with pytest.raises(AloeError, match=r"my_msgs/msg/Odd of /odd is unknown"):
            bag.add_topic("/odd", "my_msgs/msg/Odd")
        bag.add_topic("/odd", "my_msgs/msg/Odd", definition="uint8 x\n")
        bag.write("/odd", "my_msgs/msg/Odd", b"\x00\x01\x00\x00\x05", 3)
    with pytest.raises(AloeError, match="is closed"):
        bag.write("/a", JOINTS, joints_cdr(), 4)
    with pytest.raises(AloeError, match="is closed"):
        bag.flush()
    bag.close()  # again: nothing happens
    assert bag.counts == {"/a": 1, "/odd": 1}
    with pytest.raises(AloeError, match="compression 'gzip'"):
        BagWriter(tmp_path / "f", EpisodeInfo("f"), compression="gzip")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(AloeError, match="cannot make the bag"):
        BagWriter(tmp_path / "file" / "g", EpisodeInfo("g"))


def test_a_chunk_is_bounded_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bag = BagWriter(tmp_path / "e", EpisodeInfo("e"), "none", chunk_seconds=0.5)
    bag.write("/a", JOINTS, joints_cdr(), 1)
    empty = bag.size_bytes
    now = 0.49
    bag.write("/a", JOINTS, joints_cdr(), 2)
    bag.flush_if_due()
    assert bag.size_bytes == empty  # still young: kept in memory
    now = 0.5
    bag.flush_if_due()
    assert (tmp_path / "e" / "e_0.mcap").stat().st_size == bag.size_bytes > empty
    before = bag.size_bytes
    now = 10.0
    bag.flush_if_due()  # nothing new
    assert bag.size_bytes == before
    bag.write("/a", JOINTS, joints_cdr(), 3)
    now = 10.6
    bag.write("/a", JOINTS, joints_cdr(), 4)  # a write closes an old chunk as well
    assert bag.size_bytes > before


def test_leaving_the_block_closes_the_bag(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "e", EpisodeInfo("e")) as bag:
        bag.write("/a", JOINTS, joints_cdr(), 1)
    with AnyReader([tmp_path / "e"]) as reader:
        assert reader.message_count == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_a_recording_that_was_killed(tmp_path: Path, error: type[BaseException]) -> None:
    def records_and_fails() -> None:
        with BagWriter(tmp_path / "e", EpisodeInfo("e")) as bag:
            bag.write("/a", JOINTS, joints_cdr(), 1)
            raise error

    with pytest.raises(error):
        records_and_fails()
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["e_0.mcap"]
    storage = open_storage(tmp_path / "e")
    assert (storage.finalised, "outcome" in storage.custom_data) == (False, False)
    recovery = recover(tmp_path / "e")
    assert (recovery.needed, recovery.messages, recovery.damage) == (True, 1, ())


def test_a_whole_bag_appears_at_once_or_not_at_all(tmp_path: Path) -> None:
    def writes(fails: bool) -> None:
        with whole_bag(tmp_path / "bags" / "e", EpisodeInfo("e")) as bag:
            bag.write("/a", JOINTS, joints_cdr(), 1)
            bag.close()
            (bag.folder / "labels.jsonl").write_text("")
            assert find_bags_in(tmp_path) == []
            if fails:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        writes(fails=True)
    assert list((tmp_path / "bags").iterdir()) == []
    writes(fails=False)
    assert [p.name for p in (tmp_path / "bags").iterdir()] == ["e"]
    assert sorted(p.name for p in (tmp_path / "bags" / "e").iterdir()) == ["e_0.mcap", "labels.jsonl", "metadata.yaml"]
    with AnyReader([tmp_path / "bags" / "e"]) as reader:
        assert reader.message_count == 1
    with pytest.raises(AloeError, match=rf"bag {tmp_path}/bags/e exists already"):
        writes(fails=False)
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(AloeError, match=rf"cannot make the bag {tmp_path}/file/e: Not a directory"),
        whole_bag(tmp_path / "file" / "e", EpisodeInfo("e")),
    ):
        pass


def find_bags_in(folder: Path) -> list[Path]:
    try:
        return find_bags([folder])
    except AloeError:
        return []


def test_a_whole_bag_that_the_disk_refuses_promises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def writes() -> None:
        with whole_bag(tmp_path / "e", EpisodeInfo("e")) as bag:
            monkeypatch.setattr(os, "write", full)
            bag.write("/a", JOINTS, joints_cdr(), 1)
            bag.flush()

    with pytest.raises(AloeError) as caught:
        writes()
    monkeypatch.undo()
    assert str(caught.value) == f"cannot write the bag {tmp_path / 'e'}: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_one_type_may_have_two_definitions(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "e", EpisodeInfo("e")) as bag:
        bag.add_topic("/old", JOINTS, definition="uint8 x\n", type_hash="RIHS01_0")
        bag.add_topic("/older", JOINTS, definition="uint8 x\n", type_hash="RIHS01_0")
        bag.add_topic("/new", JOINTS)
        for topic in ("/old", "/older", "/new"):
            bag.write(topic, JOINTS, joints_cdr(), 1)
    with open(tmp_path / "e" / "e_0.mcap", "rb") as stream:
        summary = make_reader(stream).get_summary()
    assert len(summary.schemas) == 2
    found = {c.topic: summary.schemas[c.schema_id].data for c in summary.channels.values()}
    assert found["/old"] == found["/older"] == b"uint8 x\n"
    assert b"float64[] velocity" in found["/new"]


def test_an_empty_bag_is_a_bag(tmp_path: Path) -> None:
    BagWriter(tmp_path / "e", EpisodeInfo("e")).close()
    with AnyReader([tmp_path / "e"]) as reader:
        assert reader.message_count == 0


def test_a_full_disk_is_one_clear_sentence_and_loses_no_whole_chunk(tmp_path: Path) -> None:
    """A real refusal by the kernel: the size of files is limited."""
    script = """
        import resource, sys, pathlib
        from aloe_core.bag_writer import BagWriter
        from aloe_core.bag_format import EpisodeInfo
        from aloe_core.errors import AloeError
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        bag = BagWriter(pathlib.Path(sys.argv[1]), EpisodeInfo("e", task="t"), "none", chunk_bytes=10_000)
        sentences = []
        for k in range(1000):
            try:
                bag.write("/a", "std_msgs/msg/String", b"x" * 1000, k)
            except AloeError as error:
                sentences.append(str(error))
        bag.close()
        assert len(set(sentences)) == 1, sentences
        print(len(sentences), sentences[0])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "e")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    refused, sentence = result.stdout.split(" ", 1)
    assert sentence.startswith(
        f"cannot write the bag {tmp_path / 'e'}: File too large; what was written before is kept"
    )

    recovery = recover(tmp_path / "e")
    assert 1000 - int(refused) - 12 <= recovery.messages <= 1000 - int(refused)  # a chunk holds ten
    with AnyReader([tmp_path / "e"]) as reader:
        assert [t for _, t, _ in reader.messages()] == list(range(recovery.messages))
