"""What a replay store holds on disk.

    index.json            what the store is made for, and one entry per episode; replaced as a whole, it alone says what is valid
    labels.json           outcomes given after recording, by content hash; a new label changes nothing else
    features.json         how many images of each camera each encoder has seen
    <array>.bin           rows of all episodes, one after the other
    image_<camera>.bin    uint8 [frames, height, width, 3], each image once
    feature_<camera>_<encoder>.bin

An episode of T transitions has T + 1 rows: the last one is the observation after the last transition, whose action repeats the last action.
Data are only ever appended, and what lies beyond the lengths in index.json does not exist; so a reader never sees half an episode, and a killed
ingest leaves nothing behind that the next one does not overwrite.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome

FORMAT = 1
INDEX_FILE = "index.json"
LABELS_FILE = "labels.json"
FEATURES_FILE = "features.json"
LOCK_FILE = ".lock"
LARGEST_SIDE = 8192  # [pixel] as for cameras
LOCK_SECONDS = 60.0  # longest wait for another process that writes the store
LOCK_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class StoreSpec:
    """What a store is made for; fixed when its first bag is ingested.

    Attributes:
        image_size: (height, width) [pixel] of stored images; (0, 0) without cameras.
        object_size: numbers of privileged object state per row; 0: none.
    """

    robot: str
    robot_hash: str
    action_names: tuple[str, ...]
    arms: int
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    object_size: int

    @classmethod
    def of(
        cls, robot: RobotDescription, cameras: Sequence[str], image_size: tuple[int, int], object_size: int
    ) -> StoreSpec:
        """The store for a robot.

        Raises:
            AloeError: the robot has no such camera, or the size is none.
        """
        for camera in cameras:
            robot.camera(camera)
        if cameras and not all(1 <= side <= LARGEST_SIDE for side in image_size):
            raise AloeError(
                f"image size {tuple(image_size)} is not (height, width) between 1 and {LARGEST_SIDE} pixels"
            )
        size = (int(image_size[0]), int(image_size[1])) if cameras else (0, 0)
        return cls(robot.name, robot.hash, robot.action_names, len(robot.arms), tuple(cameras), size, object_size)

    def arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Name -> dtype and shape of one row."""
        actions = len(self.action_names)
        arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
            "state": (np.float32, (actions,)),  # measured [rad], openings [0..1]
            "action": (np.float32, (actions,)),  # executed
            "proposal": (np.float32, (actions,)),  # NaN: none
            "source": (np.uint8, (self.arms,)),  # `Source` per arm
            "step": (np.int64, ()),  # tick of the episode
            "stamp_ns": (np.int64, ()),
            "intervention_id": (np.int32, ()),
            "version": (np.int32, ()),  # index into the episode's policy versions
        }
        if self.object_size:
            arrays["object_state"] = (np.float32, (self.object_size,))
        if self.cameras:
            arrays["image_index"] = (np.int64, (len(self.cameras),))  # frame per camera
        return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in arrays.items()}


@dataclass(frozen=True)
class StoredEpisode:
    """One episode of the store.

    Attributes:
        content: hash of the bag's data.
        bag: folder it was read from.
        start: its first row; rows `start .. start + steps` are its observations, the last one without an action.
        steps: T, number of transitions.
        frames: images per camera.
        recorded_outcome: how it ended by the recording alone.
        complete: the last transition ends the episode.
        versions: policy versions that `version` rows point into.
        iteration: improvement iteration it was collected in.
        problems: what is incomplete, as read from the bag.
    """

    content: str
    bag: str
    episode_id: str
    task: str
    instruction: str
    seed: int
    start: int
    steps: int
    frames: dict[str, int]
    recorded_outcome: int
    complete: bool
    versions: tuple[str, ...]
    iteration: int
    problems: tuple[str, ...] = ()


@dataclass
class Index:
    """Content of index.json. `files`: bag folder -> [size and time of its data files, content hash], so that a known bag is not read again."""

    spec: StoreSpec
    episodes: list[StoredEpisode] = field(default_factory=list)
    files: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.episodes[-1].start + self.episodes[-1].steps + 1 if self.episodes else 0

    def frames(self, camera: str) -> int:
        """Images of one camera."""
        return sum(e.frames.get(camera, 0) for e in self.episodes)

    def to_text(self) -> str:
        """JSON."""
        episodes = [asdict(e) for e in self.episodes]
        return json.dumps({"format": FORMAT, "spec": asdict(self.spec), "episodes": episodes, "files": self.files})

    @classmethod
    def read(cls, root: Path) -> Index | None:
        """The index of the store at `root`; None if there is none.

        Raises:
            AloeError: damaged, or written by another version.
        """
        data = read_json(root / INDEX_FILE)
        if data is None:
            return None
        if data.get("format") != FORMAT:
            raise AloeError(
                f"{root / INDEX_FILE}: format {data.get('format')}, not {FORMAT}; delete {root} and ingest again"
            )
        try:
            spec = data["spec"]
            for key in ("action_names", "cameras", "image_size"):
                spec[key] = tuple(spec[key])
            episodes = [
                StoredEpisode(**{**e, "versions": tuple(e["versions"]), "problems": tuple(e["problems"])})
                for e in data["episodes"]
            ]
            return cls(StoreSpec(**spec), episodes, data["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise AloeError(f"{root / INDEX_FILE}: damaged ({error}); delete {root} and ingest again") from None


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no file.

    Raises:
        AloeError: not JSON.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise AloeError(f"{file}: not readable: {error}") from None
    if not isinstance(data, dict):
        raise AloeError(f"{file}: not a JSON object")
    return data


def read_labels(root: Path) -> dict[str, Outcome]:
    """Outcomes given after recording, by content hash."""
    data: Mapping[str, Any] = read_json(root / LABELS_FILE) or {}
    return {content: Outcome[name.upper()] for content, name in data.items()}


def map_array(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A file's first rows as a read-only memory map.

    Raises:
        AloeError: the file is missing or too short.
    """
    if shape[0] == 0:
        return np.empty(shape, dtype)
    try:
        return np.asarray(np.memmap(file, dtype, "r", shape=shape))  # a plain array: indexing a subclass costs more
    except (OSError, ValueError) as error:
        raise AloeError(f"{file}: {error}; delete {file.parent} and ingest again") from None


@contextmanager
def locked(root: Path, timeout: float = LOCK_SECONDS, busy: str = "") -> Iterator[None]:
    """One writer at a time, others wait for it; the lock goes with the process, however it ends.

    Args:
        timeout: longest wait [s].
        busy: what to say after that time; empty: that the store is being written.

    Raises:
        AloeError: another process still writes there after that time.
    """
    root.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with open(root / LOCK_FILE, "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise AloeError(busy or f"store {root} is being written by another process") from None
            time.sleep(LOCK_POLL_SECONDS)
        yield
