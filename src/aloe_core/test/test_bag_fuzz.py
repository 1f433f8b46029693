"""Whatever is in a bag's files, reading them ends, and ends well or in an AloeError."""

import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aloe_core.bag_audit import verify
from aloe_core.bag_reader import iter_messages, read_episode
from aloe_core.bag_recover import recover
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode

ROBOT = load_robot("aloha_sim")
FUZZ = settings(
    max_examples=int(os.environ.get("ALOE_FUZZ", "25")), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["none", "lz4", "zstd"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "e"
    SyntheticEpisode(ROBOT, steps=12, cameras=("overhead",), image_size=(16, 16)).write(
        folder, request.param, chunk_bytes=4000
    )
    return folder


def readable(folder: Path) -> None:
    """Reads everything that can be read; any exception but a sentence fails the test."""
    for read in (_images, lambda f: list(iter_messages(f)), verify):
        sentence = ""
        try:
            read(folder)
        except AloeError as error:
            sentence = str(error)
        assert "\n" not in sentence


def _images(folder: Path) -> None:
    record = read_episode(folder, ROBOT)
    for camera in record.cameras:
        for t in range(len(record) + 1):
            record.image(camera, t)


def changed(sound: Path, tmp_path: Path, name: str, change: Callable[[bytearray], bytes]) -> Path:
    folder = tmp_path / "e"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    file = folder / name
    file.write_bytes(change(bytearray(file.read_bytes())))
    return folder


def garbled(data: st.DataObject) -> Callable[[bytearray], bytes]:
    def change(content: bytearray) -> bytes:
        for _ in range(data.draw(st.integers(1, 4), "places")):
            at = data.draw(st.integers(0, len(content) - 1), "at")
            junk = data.draw(st.binary(min_size=1, max_size=9), "junk")
            content[at : at + len(junk)] = junk
        return bytes(content)

    return change


@FUZZ
@given(data=st.data())
def test_garbled_mcap(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    readable(changed(sound, tmp_path, "e_0.mcap", garbled(data)))


@FUZZ
@given(data=st.data())
def test_truncated_mcap(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    readable(changed(sound, tmp_path, "e_0.mcap", lambda c: bytes(c[: data.draw(st.integers(0, len(c)), "size")])))


@FUZZ
@given(data=st.data())
def test_garbled_recording_that_was_killed(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    def change(content: bytearray) -> bytes:
        garbled_content = garbled(data)(content)
        return garbled_content[: data.draw(st.integers(0, len(content)), "size")]

    folder = changed(sound, tmp_path, "e_0.mcap", change)
    (folder / "metadata.yaml").unlink()
    readable(folder)
    try:
        recover(folder)
    except AloeError:
        return
    readable(folder)


@FUZZ
@given(data=st.data())
def test_garbled_metadata(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    readable(changed(sound, tmp_path, "metadata.yaml", garbled(data)))


@settings(FUZZ, max_examples=10)
@given(junk=st.binary(max_size=200))
def test_junk_in_place_of_a_file(sound: Path, tmp_path: Path, junk: bytes) -> None:
    for name in ("e_0.mcap", "metadata.yaml", "labels.jsonl"):
        folder = tmp_path / "e"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        (folder / name).write_bytes(junk)
        readable(folder)


PEAK = """
    import sys
    from pathlib import Path
    from aloe_core.bag_reader import read_episode
    from aloe_core.errors import AloeError
    from aloe_core.robot import load_robot

    def peak() -> int:  # of this process [KiB]
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    robot, before = load_robot("aloha_sim"), peak()
    try:
        read_episode(Path(sys.argv[1]), robot)
    except AloeError as error:
        print(peak() - before, error)
"""


def _without_size(data: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()  # does not know how much will come
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize("compress", [zstandard.compress, _without_size, lz4.frame.compress])
def test_a_chunk_is_not_decompressed_beyond_what_it_declares(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    folder = tmp_path / "e"
    SyntheticEpisode(ROBOT, steps=2).write(folder)
    name, body = b"lz4" if compress is lz4.frame.compress else b"zstd", compress(bytes(1 << 27))
    chunk = struct.pack("<QQQII", 0, 1, 1000, 0, len(name)) + name + struct.pack("<Q", len(body)) + body
    magic = b"\x89MCAP0\r\n"
    records = struct.pack("<BQ", 6, len(chunk)) + chunk + struct.pack("<BQ", 15, 4) + bytes(4)
    (folder / "e_0.mcap").write_bytes(magic + records + magic)
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(folder)]
    used, sentence = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert "e_0.mcap: the chunk at byte 17 is damaged" in sentence
    assert int(used) < 1 << 15  # of 131072 KiB


@pytest.mark.parametrize(
    "text",
    [
        "rosbag2_bagfile_information: {}",
        "rosbag2_bagfile_information:",
        "[]",
        "- 1\n- 2",
        "a: &a [*a]",
        "rosbag2_bagfile_information: {topics_with_message_count: [], relative_file_paths: [], storage_identifier: mcap}",
        "rosbag2_bagfile_information: {topics_with_message_count: [], relative_file_paths: [1], storage_identifier: x}",
        "rosbag2_bagfile_information: {topics_with_message_count: 5, relative_file_paths: [a], storage_identifier: mcap}",
        "x: 2020-13-45",
        "? [a, b]\n: c",
        "!!python/object/apply:os.system ['true']",
        "[" * 3000,
    ],
)
def test_metadata_that_is_something_else(sound: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(sound, tmp_path / "e")
    (folder / "metadata.yaml").write_text(text)
    with pytest.raises(AloeError, match="e"):
        read_episode(folder, ROBOT)


def write_sqlite(folder: Path) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer

    from aloe_core.messages import typestore

    episode = SyntheticEpisode(ROBOT, steps=12, cameras=("overhead",), image_size=(16, 16))
    with Writer(folder, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = {}
        for topic, type, message, ns in episode.messages(episode.info("e")):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, type, typestore=typestore())
            writer.write(connections[topic], ns, typestore().serialize_cdr(message, type))


@pytest.mark.parametrize(
    "change", ["timestamp = x'07'", "timestamp = 'now'", "timestamp = 0.5", "data = 'text'", "data = 7"]
)
def test_sqlite_with_values_of_other_types(tmp_path: Path, change: str) -> None:
    import sqlite3

    write_sqlite(tmp_path / "e")
    (file,) = (tmp_path / "e").glob("*.db3")
    with sqlite3.connect(file) as database:
        database.execute(f"UPDATE messages SET {change} WHERE id = 20")
    database.close()
    with pytest.raises(AloeError, match=r"e: not readable \(TypeError: /\S+: a message whose time or content"):
        read_episode(tmp_path / "e", ROBOT)


def test_garbled_sqlite(tmp_path: Path) -> None:
    import random

    write_sqlite(tmp_path / "sound")
    rng = random.Random(0)
    for k in range(40):
        folder = shutil.copytree(tmp_path / "sound", tmp_path / str(k))
        (file,) = folder.glob("*.db3")
        content = bytearray(file.read_bytes())
        if k % 2:
            del content[rng.randrange(len(content)) :]
        for _ in range(5 * (k % 2 == 0)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content)
        readable(folder)
