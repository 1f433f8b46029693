"""Killing a recorder at any moment costs less than a second, and recovery loses nothing that is in the file."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader

from aloe_core import bag_recover
from aloe_core.bag_format import RELIABLE, EpisodeInfo
from aloe_core.bag_reader import find_bags, read_episode
from aloe_core.bag_recover import lock, recover
from aloe_core.bag_storage import open_storage
from aloe_core.bag_writer import BagWriter
from aloe_core.errors import AloeError
from aloe_core.messages import typestore
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome, Termination

WRITER = """
    import os, pathlib, sys, time
    from aloe_core.bag_format import EpisodeInfo
    from aloe_core.bag_writer import BagWriter
    bag = BagWriter(pathlib.Path(sys.argv[1]), EpisodeInfo("e", task="t"), sys.argv[2])
    payload = b"\\x00\\x01\\x00\\x00" + os.urandom(2000)
    while True:  # log times are wall time, so that a test sees what is lost in seconds
        now_ns = time.time_ns()
        bag.write("/a", "std_msgs/msg/UInt8MultiArray", payload, now_ns)
        print(bag.messages, now_ns, flush=True)
        time.sleep(0.002)
"""


@pytest.mark.parametrize(("compression", "seed"), [("none", 0), ("lz4", 1), ("zstd", 2)])
def test_sigkill_loses_at_most_the_last_second(tmp_path: Path, compression: str, seed: int) -> None:
    folder = tmp_path / "e"
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), compression]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # it writes
    time.sleep(random.Random(seed).uniform(0.6, 1.8))
    process.send_signal(signal.SIGKILL)
    lines = process.communicate()[0].splitlines()
    reported, written_ns = map(int, lines[-1].split())  # the pipe holds what was printed before the kill

    assert not (folder / "metadata.yaml").exists()
    recovery = recover(folder)
    assert recovery.needed
    assert recovery.damage == ()
    with AnyReader([folder]) as reader:
        times = [t for _, t, _ in reader.messages()]
        assert len(times) == reader.message_count == recovery.messages <= reported + 1
    assert times[-1] > written_ns - 1_000_000_000
    with open(folder / "e_0.mcap", "rb") as stream:
        assert make_reader(stream, validate_crcs=True).get_summary().statistics.message_count == recovery.messages
    assert recovery.originals[0].name == "e_0.mcap.unfinalized"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bags") / "e"
    SyntheticEpisode(load_robot("aloha_sim"), steps=200, cameras=("overhead",)).write(folder, "none", False, 20_000)
    return folder


def test_recovery_restores_episode_outcome_and_original(tmp_path: Path, killed: Path) -> None:
    folder = shutil.copytree(killed, tmp_path / "e")
    raw = (folder / "e_0.mcap").read_bytes()
    assert read_episode(folder).problems == ["the recording was killed: run aloe bags recover"]
    recovery = recover(folder)
    assert recovery.originals[0].read_bytes() == raw
    record = read_episode(folder)
    assert (len(record), record.outcome, record.termination) == (200, Outcome.SUCCESS, Termination.TASK)
    assert record.info == read_episode(killed).info
    assert record.problems == []  # the event STOPPED is there, so nothing before it was lost
    assert sorted(p.name for p in folder.iterdir()) == ["e_0.mcap", "e_0.mcap.unfinalized", "metadata.yaml"]
    assert not recover(folder).needed


@pytest.mark.parametrize("seed", range(8))
def test_a_file_torn_anywhere_keeps_every_whole_chunk(tmp_path: Path, killed: Path, seed: int) -> None:
    folder = shutil.copytree(killed, tmp_path / "e")
    file = folder / "e_0.mcap"
    whole = recover(shutil.copytree(killed, tmp_path / "whole" / "e")).messages
    size = file.stat().st_size
    os.truncate(file, random.Random(seed).randrange(size // 2, size))
    recovery = recover(folder)
    assert whole * 0.4 < recovery.messages <= whole
    assert recovery.damage == ()  # a torn end is what a kill leaves, not damage
    with AnyReader([folder]) as reader:
        assert reader.message_count == recovery.messages


def test_a_damaged_chunk_in_the_middle_is_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    episode = SyntheticEpisode(load_robot("aloha_sim"), steps=400)
    written = len(episode.messages(episode.write(folder, "none", False, 20_000)))
    data = bytearray((folder / "e_0.mcap").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "e_0.mcap").write_bytes(data)
    with pytest.raises(AloeError, match=r"e_0.mcap: the chunk at byte \d+ is damaged \(checksum\)"):
        read_episode(folder)
    recovery = recover(folder)
    assert len(recovery.damage) == 1
    assert "checksum" in recovery.damage[0]
    assert written * 0.8 < recovery.messages < written
    assert any("are missing" in problem for problem in read_episode(folder).problems)


EVENT = "aloe_msgs/msg/EpisodeEvent"


def _wrong_outcome(bag: BagWriter, stopped: bytes) -> None:
    event = typestore().deserialize_cdr(stopped, EVENT)
    event.outcome = 9
    bag.write("/episode/event", EVENT, typestore().serialize_cdr(event, EVENT).tobytes(), 10**12)


def _short_event(bag: BagWriter, stopped: bytes) -> None:
    bag.write("/episode/event", EVENT, stopped[:7], 10**12)


def _other_definition(bag: BagWriter, stopped: bytes) -> None:
    bag.add_topic("/old/episode/event", EVENT, RELIABLE, "uint8 event\n", "RIHS01_" + "0" * 64)
    bag.write("/old/episode/event", EVENT, b"\0\1\0\0\2", 10**12)


def _other_type(bag: BagWriter, stopped: bytes) -> None:
    text = typestore().types["std_msgs/msg/String"](data="x")
    data = typestore().serialize_cdr(text, "std_msgs/msg/String").tobytes()
    bag.write("/other/episode/event", "std_msgs/msg/String", data, 10**12)


@pytest.mark.parametrize(
    ("add", "damage"),
    [
        (_wrong_outcome, "/episode/event: 9 is not a valid Outcome"),
        (_short_event, "/episode/event: not a aloe_msgs/msg/EpisodeEvent"),
        (_other_definition, "/old/episode/event was recorded with another version of aloe_msgs/msg/EpisodeEvent"),
        (_other_type, None),
    ],
)
def test_an_event_that_says_nothing_does_not_stop_the_recovery(
    tmp_path: Path, add: Callable[[BagWriter, bytes], None], damage: str | None
) -> None:
    folder = tmp_path / "e"
    episode = SyntheticEpisode(load_robot("aloha_sim"), steps=5)
    info = episode.info("e")
    bag = BagWriter(folder, info)
    for topic, type, message, ns in episode.messages(info):
        stopped = typestore().serialize_cdr(message, type).tobytes()
        bag.write(topic, type, stopped, ns)
    add(bag, stopped)  # the last one was STOPPED
    bag.abandon()
    recovery = recover(folder)
    assert recovery.messages == bag.messages
    assert [damage in sentence for sentence in recovery.damage] == ([] if damage is None else [True])
    assert sorted(p.name for p in folder.iterdir()) == ["e_0.mcap", "e_0.mcap.unfinalized", "metadata.yaml"]
    custom = open_storage(folder).custom_data
    assert (custom["outcome"], custom["termination"]) == ("success", "task")
    assert ("1 parts could not be read" in custom["recovered"]) == (damage is not None)


def test_a_recovery_that_fails_leaves_the_recording_as_it_was(
    tmp_path: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(killed, tmp_path / "e")

    def full(*args: object) -> None:
        raise AloeError("no space")

    monkeypatch.setattr(BagWriter, "write", full)
    with pytest.raises(AloeError, match="no space"):
        recover(folder)
    assert [p.name for p in folder.iterdir()] == ["e_0.mcap"]


@pytest.mark.parametrize("step", ["link", "replace"])
def test_a_recovery_that_is_killed_can_be_repeated(
    tmp_path: Path, killed: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(killed, tmp_path / "e")
    raw = (folder / "e_0.mcap").read_bytes()
    real, calls = getattr(os, step), []

    def dies(*args: object) -> None:
        calls.append(args)
        if Path(str(args[-1])).parent == folder and len(calls) >= 2 - (step == "link"):
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(bag_recover.os, step, dies)
    with pytest.raises(KeyboardInterrupt):
        recover(folder)
    monkeypatch.undo()
    assert find_bags([tmp_path]) == [folder]  # still there
    assert recover(folder).needed
    assert read_episode(folder).problems == []
    assert any(p.read_bytes() == raw for p in folder.glob("*.unfinalized*"))


def test_a_file_torn_in_its_first_chunk_is_left_as_it_is(tmp_path: Path, killed: Path) -> None:
    folder = shutil.copytree(killed, tmp_path / "e")
    os.truncate(folder / "e_0.mcap", 5000)
    with pytest.raises(AloeError, match="no whole message in it"):
        recover(folder)
    assert [p.name for p in folder.iterdir()] == ["e_0.mcap"]


def test_a_bag_that_is_being_written_or_recovered_is_left_alone(tmp_path: Path, killed: Path) -> None:
    with BagWriter(tmp_path / "live", EpisodeInfo("live")) as bag:
        bag.write("/a", "std_msgs/msg/String", b"\x00\x01\x00\x00\x01\x00\x00\x00\x00", 1)
        bag.flush()
        with pytest.raises(AloeError, match=r"bag .*live is being written, or recovered, by another process"):
            recover(tmp_path / "live")
        assert [p.name for p in (tmp_path / "live").iterdir()] == ["live_0.mcap"]
    folder = shutil.copytree(killed, tmp_path / "e")
    with ExitStack() as other:
        assert lock(folder, other)
        with pytest.raises(AloeError, match="by another process"):
            recover(folder)
    assert recover(folder).needed


def test_nothing_to_recover_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="is not a bag"):
        recover(tmp_path)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "e_0.mcap").write_bytes(b"")
    with pytest.raises(AloeError, match="not readable"):
        recover(tmp_path / "e")
