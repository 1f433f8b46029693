"""The bag beside a replayed one: every message under the definition it was recorded with, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcap.reader import make_reader

from aloe_core import topics
from aloe_core.bag_format import EpisodeInfo
from aloe_core.bag_labels import LABELS_FILE, Label, append_label, read_labels
from aloe_core.bag_messages import iter_messages
from aloe_core.bag_storage import open_storage
from aloe_core.bag_writer import BagWriter
from aloe_core.errors import AloeError
from aloe_core.messages import typestore
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_policy.replayed_bag import CHUNK, Addition, write_replayed

EPISODE = SyntheticEpisode(load_robot("aloha_sim"), steps=5)
CHUNK_TYPE = "aloe_msgs/msg/ActionChunk"
OLD_DEFINITION, OLD_HASH = "float64 limit\nuint8 state\n", "RIHS01_" + "0" * 64
OLD_DATA = b"\x00\x01\x00\x00" + bytes(range(16))


def record(folder: Path, old: dict[str, str], keep_definition: bool = True) -> EpisodeInfo:
    """A bag in which each topic of `old` holds one message of another definition of its type."""
    info = EPISODE.info(folder.name)
    with BagWriter(folder, info) as bag:
        for topic, type, message, ns in EPISODE.messages(info):
            if topic not in old:
                bag.write(topic, type, typestore().serialize_cdr(message, type).tobytes(), ns)
        for topic, type in old.items():
            bag.add_topic(topic, type, definition=OLD_DEFINITION if keep_definition else "", type_hash=OLD_HASH)
            bag.write(topic, type, OLD_DATA, 2 * 10**9)
    return info


def definitions(folder: Path) -> dict[str, tuple[bytes, str]]:
    with open(folder / f"{folder.name}_0.mcap", "rb") as stream:
        summary = make_reader(stream).get_summary()
    channels = summary.channels.values()
    return {c.topic: (summary.schemas[c.schema_id].data, c.metadata["topic_type_hash"]) for c in channels}


def test_a_topic_of_another_definition_keeps_it(tmp_path: Path) -> None:
    recorded = f"/{topics.CHUNK}"
    info = record(tmp_path / "old", {"/control/safety": "aloe_msgs/msg/SafetyStatus", recorded: CHUNK_TYPE})
    chunk = next(m for topic, _, m, _ in EPISODE.messages(info) if topic == recorded)
    addition = Addition(CHUNK, CHUNK_TYPE, typestore().serialize_cdr(chunk, CHUNK_TYPE).tobytes(), 10**9)
    assert write_replayed(tmp_path / "old", tmp_path / "new", info, [addition], {}) == []
    found = definitions(tmp_path / "new")
    assert found["/control/safety"] == found[recorded] == (OLD_DEFINITION.encode(), OLD_HASH)
    assert found[f"/{CHUNK}"] == (
        typestore().generate_msgdef(CHUNK_TYPE, ros_version=2)[0].encode(),
        typestore().hash_rihs01(CHUNK_TYPE),
    )
    assert {n: d for n, d in found.items() if n != f"/{CHUNK}"} == definitions(tmp_path / "old")
    for name in ("/control/safety", recorded):
        with pytest.raises(AloeError, match=f"{name} was recorded with another version of aloe_msgs/msg/"):
            list(iter_messages(tmp_path / "new", [name]))
    assert len(list(iter_messages(tmp_path / "new", [CHUNK]))) == 1
    raw = {m.topic: bytes(m.data) for m in open_storage(tmp_path / "new").scan(lambda name: True)}
    assert raw["/control/safety"] == raw[recorded] == OLD_DATA


def test_a_topic_of_an_unknown_definition_is_not_copied(tmp_path: Path) -> None:
    info = record(tmp_path / "old", {"/control/safety": "aloe_msgs/msg/SafetyStatus"}, keep_definition=False)
    problems = write_replayed(tmp_path / "old", tmp_path / "new", info, [], {})
    assert problems == ["/control/safety is not copied: the definition of aloe_msgs/msg/SafetyStatus is not known"]
    assert definitions(tmp_path / "new").keys() == definitions(tmp_path / "old").keys() - {"/control/safety"}


def test_a_copy_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "old", tmp_path / "bags" / "new"
    info = SyntheticEpisode(EPISODE.robot, steps=60).write(source, "none", chunk_bytes=4096)
    append_label(source, Label(Outcome.FAILURE, 1, "judge"))
    file = source / "old_0.mcap"
    sound = file.read_bytes()
    damaged = bytearray(sound)
    damaged[len(damaged) // 2] ^= 0xFF
    file.write_bytes(damaged)
    with pytest.raises(AloeError, match="checksum"):
        write_replayed(source, target, info, [], {})
    assert list((tmp_path / "bags").iterdir()) == []
    file.write_bytes(sound)
    assert write_replayed(source, target, info, [], {}) == []
    assert [p.name for p in (tmp_path / "bags").iterdir()] == ["new"]
    assert sorted(p.name for p in target.iterdir()) == [LABELS_FILE, "metadata.yaml", "new_0.mcap"]
    assert read_labels(target) == read_labels(source)
    with pytest.raises(AloeError, match="new exists already"):
        write_replayed(source, target, info, [], {})
