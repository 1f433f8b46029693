"""Bags -> replay store -> random chunks, with three 640x480 JPEG cameras kept at 224x224.

Baselines: 300 s/GB is what users of other stacks ask for (our goal is 60); random chunks, in the same run, against the same images decoded straight from
the bags, and against the same episodes as a LeRobotDataset (written by `to_lerobot`): through LeRobot itself where it is installed, and in any case from the
dataset's own files with nothing in between, open videos and actions in memory, which is the least that any reader of it can cost. LeRobot decodes by PyAV
here and gives its images in full size. It is installed by `make lerobot`; then `.venv-lerobot/bin/python benchmarks/run.py replay`, as for the numbers below.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from result import Result

from aloe_core.bag_reader import EpisodeRecord, read_episode
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_policy.lerobot_dataset.export import to_lerobot
from aloe_policy.lerobot_dataset.reading import DatasetEpisode, DatasetReader
from aloe_policy.replay import ChunkSamples, ReplayStore

ROBOT = load_robot("aloha_sim")
CAMERAS = ("overhead", "left_wrist", "right_wrist")
SIZE = (224, 224)
HORIZON = 32
BATCH = 64
WISHED = 300.0  # [s/GB]


class Filmed(SyntheticEpisode):
    """Episodes whose images have the size of a workshop's."""

    _jpegs: tuple[bytes, ...] = ()

    def jpeg(self, camera: str, tick: int) -> bytes:
        if not Filmed._jpegs:
            rng = np.random.default_rng(0)
            smooth = [cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (640, 480)) for _ in range(5)]
            noisy = [np.clip(s + rng.normal(0, 4, s.shape), 0, 255).astype(np.uint8) for s in smooth]
            Filmed._jpegs = tuple(cv2.imencode(".jpg", n)[1].tobytes() for n in noisy)
        return Filmed._jpegs[(tick + CAMERAS.index(camera)) % len(Filmed._jpegs)]


def run() -> list[Result]:
    """The benchmark."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bags = [folder / "bags" / f"e{k}" for k in range(6)]
        for k, bag in enumerate(bags):
            Filmed(ROBOT, steps=150, seed=k, cameras=CAMERAS, image_every=1).write(bag)
        results = []
        for workers in (1, 2):
            store = ReplayStore(folder / f"store{workers}")
            report = store.ingest(bags, ROBOT, CAMERAS, SIZE, workers=workers)
            rate = report.seconds / (report.bag_bytes / 1e9)
            results.append(Result(f"replay: ingest, {workers} processes", rate, "s/GB", WISHED))
        started = time.perf_counter()
        store.ingest(bags, ROBOT, CAMERAS, SIZE)
        results.append(Result("replay: ingest of known bags", (time.perf_counter() - started) / 6 * 1e3, "ms/bag"))
        results += _chunks(store, bags, folder)
        results += _memory(folder)
    return results


def _chunks(store: ReplayStore, bags: list[Path], folder: Path) -> list[Result]:
    samples = ChunkSamples(store, HORIZON)
    rng = np.random.default_rng(0)
    rounds = [rng.integers(len(samples), size=BATCH) for _ in range(40)]
    for index in rounds:
        store.chunk_batch(samples.start[index], HORIZON)  # into the page cache
    started = time.perf_counter()
    for index in rounds:
        store.chunk_batch(samples.start[index], HORIZON)
    stored = len(rounds) * BATCH / (time.perf_counter() - started)
    started = time.perf_counter()
    for index in rounds:
        samples.batch(index)
    with_next = len(rounds) * BATCH / (time.perf_counter() - started)
    records = [read_episode(bag, ROBOT) for bag in bags]
    picks = list(zip(rng.integers(6, size=60), rng.integers(100, size=60), strict=True))
    direct = _rate(lambda e, t: _from_bag(records[e], t), picks)
    dataset = folder / "dataset"
    to_lerobot(bags, dataset, "aloe/benchmark", ROBOT)
    results = [
        Result("replay: random chunks, 3 images", stored, "chunks/s", direct),
        Result("replay: critic samples, 6 images", with_next, "samples/s", direct / 2),
        Result("replay: against a dataset's mp4 and parquet", stored, "chunks/s", _rate(_files(dataset), picks)),
    ]
    if importlib.util.find_spec("lerobot") is None:
        print("LeRobot is not installed: no comparison with its LeRobotDataset")
    else:
        results.append(
            Result("replay: against LeRobotDataset", stored, "chunks/s", _rate(_through_lerobot(dataset), picks))
        )
    return results


def _rate(read: Callable[[int, int], object], picks: list[tuple[int, int]]) -> float:
    """Calls of `read(episode, tick)` a second, after a few that open files and fill caches."""
    for e, t in picks[:5]:
        read(int(e), int(t))
    started = time.perf_counter()
    for e, t in picks:
        read(int(e), int(t))
    return len(picks) / (time.perf_counter() - started)


def _files(dataset: Path) -> Callable[[int, int], object]:
    """Reads a chunk from a dataset's files: a seek to the key frame before, frames decoded up to the one wanted, resized."""
    reader = DatasetReader(dataset)
    episodes = list(reader.episodes())
    videos: dict[Path, InputContainer] = {}

    def frame(episode: DatasetEpisode, camera: str, t: int) -> np.ndarray:
        path, start_s = episode.videos[f"observation.images.{camera}"]
        if path not in videos:
            videos[path] = av.open(str(path))
            videos[path].streams.video[0].thread_count = 1
        video = videos[path]
        stream = video.streams.video[0]
        assert stream.time_base is not None
        wanted = round((start_s + t / reader.fps) / stream.time_base)
        video.seek(wanted, stream=stream)
        found = next(f for f in video.decode(stream) if f.pts is not None and f.pts >= wanted)
        return cv2.resize(found.to_ndarray(format="rgb24"), SIZE[::-1], interpolation=cv2.INTER_AREA)

    def read(e: int, t: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        images = {camera: frame(episodes[e], camera, t) for camera in CAMERAS}
        return images, episodes[e].columns["action"][t : t + HORIZON]

    return read


def _through_lerobot(dataset: Path) -> Callable[[int, int], object]:
    """Reads a chunk through LeRobot; its images keep their size."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    reader = DatasetReader(dataset)
    starts = np.cumsum([0, *(len(episode) for episode in reader.episodes())])
    ahead = [k / reader.fps for k in range(HORIZON)]
    frames = LeRobotDataset("aloe/benchmark", root=dataset, delta_timestamps={"action": ahead})
    return lambda e, t: frames[int(starts[e]) + t]


def _from_bag(record: EpisodeRecord, t: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {camera: record.image(camera, t, SIZE) for camera in CAMERAS}, record.executed[t : t + HORIZON]


MEMORY = """
import re, sys
import numpy as np
from aloe_policy.replay import ChunkSamples, ReplayStore
store = ReplayStore(sys.argv[1])
samples = ChunkSamples(store, 32)
rng = np.random.default_rng(0)
for _ in range(50):
    samples.batch(rng.integers(len(samples), size=32))
print(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""


def _memory(folder: Path) -> list[Result]:
    """Anonymous memory of a process that draws samples, at 1 and 10 times the data."""
    used = []
    for scale in (1, 10):
        bags = folder / f"bags{scale}"
        for k in range(3 * scale):
            SyntheticEpisode(ROBOT, steps=200, seed=k, cameras=CAMERAS, image_every=4).write(bags / f"e{k}")
        store = ReplayStore(folder / f"memory{scale}")
        store.ingest([bags], ROBOT, CAMERAS, (96, 96))
        command = [sys.executable, "-c", MEMORY, str(store.root)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        match = re.search(r"\d+", out)
        assert match is not None
        used.append(int(match.group()) / 1024)
    return [Result("replay: memory at 10 times the data", used[1], "MiB", used[0])]
