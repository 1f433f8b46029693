"""Writing and reading bags: three 640x480 cameras, raw and JPEG, and the state topics of a control loop.

Baselines: `rosbags` writing the same messages without compression, and reading them, in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from result import Result
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer

from aloe_core.bag_format import EpisodeInfo
from aloe_core.bag_reader import read_episode
from aloe_core.bag_storage import open_storage
from aloe_core.bag_writer import BagWriter, Compression
from aloe_core.messages import bag_make, compressed_image_msg, header_msg, typestore
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode

Message = tuple[str, str, bytes]
RAW, JPEG = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def run() -> list[Result]:
    """The benchmark."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, messages, repeats in (("raw", _raw(), 100), ("JPEG", _jpeg(), 100)):
            baseline = _write_rosbags(folder / f"rosbags_{kind}", messages, repeats)
            for compression in ("none", "lz4", "zstd"):
                bag = folder / f"{kind}_{compression}"
                rate = _write(bag, messages, repeats, compression)
                results.append(Result(f"bags: write {kind} 640x480, {compression}", rate, "MB/s", baseline))
            results.append(_read(folder / f"{kind}_none", f"bags: scan {kind} 640x480, checksums verified"))
        results += _state(folder)
    return results


def _raw() -> list[Message]:
    pixels = _picture()
    message = bag_make(
        RAW,
        header=header_msg(bag_make, 0),
        height=480,
        width=640,
        encoding="rgb8",
        is_bigendian=0,
        step=1920,
        data=pixels.reshape(-1),
    )
    data = typestore().serialize_cdr(message, RAW).tobytes()
    return [(f"/camera{c}/image_raw", RAW, data) for c in range(3)]


def _jpeg() -> list[Message]:
    messages = []
    for k in range(30):  # all different, or a compressor would find the repetition
        jpeg = cv2.imencode(".jpg", _picture(k))[1].tobytes()
        data = typestore().serialize_cdr(compressed_image_msg(bag_make, 0, "", jpeg), JPEG).tobytes()
        messages.append((f"/camera{k % 3}/image_raw/compressed", JPEG, data))
    return messages


def _picture(seed: int = 0) -> np.ndarray:
    """Smooth shapes with a camera's noise: a JPEG of it is about as large as one of a workshop."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def _write(folder: Path, messages: list[Message], repeats: int, compression: Compression) -> float:
    """[MB/s] including the close."""
    started = time.perf_counter()
    with BagWriter(folder, EpisodeInfo("bench"), compression) as bag:
        for k in range(repeats):
            for topic, type, data in messages:
                bag.write(topic, type, data, k * 33_333_333)
    return _megabytes(messages, repeats) / (time.perf_counter() - started)


def _write_rosbags(folder: Path, messages: list[Message], repeats: int) -> float:
    started = time.perf_counter()
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        types = {topic: type for topic, type, _ in messages}
        connections = {t: writer.add_connection(t, type, typestore=typestore()) for t, type in types.items()}
        for k in range(repeats):
            for topic, _, data in messages:
                writer.write(connections[topic], k * 33_333_333, data)
    return _megabytes(messages, repeats) / (time.perf_counter() - started)


def _megabytes(messages: list[Message], repeats: int) -> float:
    return repeats * sum(len(data) for _, _, data in messages) / 1e6


def _read(folder: Path, name: str) -> Result:
    size = sum(f.stat().st_size for f in folder.glob("*.mcap")) / 1e6

    def ours() -> None:
        storage = open_storage(folder)
        assert sum(len(m.data) for m in storage.scan(lambda topic: True)) > 0
        storage.close()

    def theirs() -> None:
        with AnyReader([folder]) as reader:
            assert sum(len(data) for _, _, data in reader.messages()) > 0

    return Result(name, size / _seconds(ours), "MB/s", size / _seconds(theirs))


def _seconds(function: Callable[[], None]) -> float:
    """Best of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def _state(folder: Path) -> list[Result]:
    """An episode of states only: its size by compression, and how fast it becomes arrays."""
    episode = SyntheticEpisode(load_robot("aloha_sim"), steps=1000)
    size = {}
    for compression in ("none", "lz4", "zstd"):
        episode.write(folder / f"state_{compression}", compression)
        size[compression] = sum(f.stat().st_size for f in (folder / f"state_{compression}").iterdir()) / 1000
    seconds = _seconds(lambda: _check(folder / "state_lz4"))
    return [
        Result("bags: state topics, lz4", size["lz4"], "byte/step", size["none"]),
        Result("bags: state topics, zstd", size["zstd"], "byte/step", size["none"]),
        Result("bags: read_episode", 1000 / seconds, "steps/s"),
    ]


def _check(folder: Path) -> None:
    assert len(read_episode(folder)) == 1000
