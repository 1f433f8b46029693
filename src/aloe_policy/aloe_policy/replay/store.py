"""The replay store: every tick of every ingested episode, memory-mapped, any of them in O(1).

    store = ReplayStore(root)
    report = store.ingest(["bags"], robot, cameras=("overhead",), image_size=(128, 128), workers=2)
    batch = store.chunk_batch(rows, horizon=50)

A *row* is one observation; an episode of T transitions has T + 1 rows, the last one being the observation after the last transition. A *segment* is a stretch
of transitions recorded without a gap: row `stop` of a segment is the observation after its last transition. Chunks never leave a segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome
from aloe_policy.replay.features import Encode, feature_arrays, update_features
from aloe_policy.replay.ingest import IngestReport, Progress, ingest
from aloe_policy.replay.layout import INDEX_FILE, Index, StoredEpisode, StoreSpec, map_array, read_labels

__all__ = ["ReplayStore"]


class ReplayStore:
    """A store opened for reading; `ingest` brings it up to date.

    Attributes:
        root: its folder.
        episodes: one entry per episode.
        arrays: name -> memory map `[rows, ...]`, see `StoreSpec.arrays`.
        images: camera -> memory map uint8 `[frames, height, width, 3]`, RGB.
        segments: int64 `[S, 3]`: first row, row after the last transition, number of the episode.
    """

    def __init__(self, root: Path | str) -> None:
        """Opens the store in `root`, or an empty one if there is none yet.

        Raises:
            AloeError: damaged, or of another version.
        """
        self.root = Path(root)
        self.reload()

    def reload(self) -> None:
        """Sees what has been ingested since, also by other processes."""
        index = Index.read(self.root)
        self._spec = index.spec if index is not None else None
        self.episodes: list[StoredEpisode] = index.episodes if index is not None else []
        self._labels = read_labels(self.root)
        self.arrays: dict[str, np.ndarray] = {}
        self.images: dict[str, np.ndarray] = {}
        if index is not None:
            spec = index.spec
            for name, (dtype, shape) in spec.arrays().items():
                self.arrays[name] = map_array(self.root / f"{name}.bin", dtype, (index.rows, *shape))
            for camera in spec.cameras:
                shape = (index.frames(camera), *spec.image_size, 3)
                self.images[camera] = map_array(self.root / f"image_{camera}.bin", np.dtype(np.uint8), shape)
        self.segments = self._segments()

    def ingest(
        self,
        bags: Iterable[Path | str],
        robot: RobotDescription,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = (224, 224),
        object_state: bool = True,
        workers: int = 1,
        on_progress: Progress = lambda done, total: None,
    ) -> IngestReport:
        """Adds what is new in `bags` and reads their labels again. Bags that cannot be used are listed in the report, with the reason; the others are used.

        Args:
            bags: bags, folders that hold bags, or patterns.
            robot: robot they must have been recorded with.
            cameras: cameras to keep; empty for states only.
            image_size: (height, width) [pixel] to which images are resized.
            object_state: keep privileged object state where the bags have it.
            workers: processes that decode.
            on_progress: called with (bags done, bags).

        Raises:
            AloeError: no bags; the store was made for another robot, other cameras or another size; another process does not stop writing it; the disk refuses.
        """
        report = ingest(self.root, bags, robot, cameras, image_size, object_state, workers, on_progress)
        self.reload()
        return report

    @property
    def spec(self) -> StoreSpec:
        """What the store is made for.

        Raises:
            AloeError: nothing has been ingested yet.
        """
        if self._spec is None:
            raise AloeError(f"store {self.root} is empty: no {INDEX_FILE}; ingest bags first")
        return self._spec

    @property
    def rows(self) -> int:
        """Observations in the store."""
        return len(self.arrays["state"]) if self.arrays else 0

    def outcome(self, episode: int) -> Outcome:
        """How an episode ended, by its newest label."""
        entry = self.episodes[episode]
        return self._labels.get(entry.content, Outcome(entry.recorded_outcome))

    def starts(self, episodes: Sequence[int] | None = None) -> np.ndarray:
        """Rows at which a chunk may start, int64 `[n]`, in order; of some episodes only when given."""
        segments = self.segments
        if episodes is not None:
            segments = segments[np.isin(segments[:, 2], np.asarray(episodes, np.int64))]
        parts = [np.arange(start, stop) for start, stop, _ in segments]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def segment_of(self, rows: np.ndarray) -> np.ndarray:
        """Number of the segment of each row, int64 `[B]`."""
        return np.searchsorted(self.segments[:, 0], rows, side="right") - 1

    def episode_of(self, rows: np.ndarray) -> np.ndarray:
        """Number of the episode of each row, int64 `[B]`."""
        return self.segments[self.segment_of(rows), 2]

    def reaches_end(self, rows: np.ndarray) -> np.ndarray:
        """Whether the segment of each row ends with a complete episode, bool `[B]`; others end before a gap, or where a recording was killed."""
        _, stop, number = self.segments[self.segment_of(rows)].T
        ends = np.array([e.start + e.steps if e.complete else -1 for e in self.episodes], np.int64)
        return stop == ends[number]

    def observe(self, rows: np.ndarray, encoder: str | None = None, images: bool | None = None) -> dict[str, Any]:
        """Observations at rows `[B]`, the last ones of episodes included.

        Args:
            encoder: hand out the cached features of this encoder.
            images: hand out images; None: unless there is an encoder.

        Returns:
            state float32 `[B, A]`; object_state float32 `[B, O]` if the store has it; images: camera -> uint8 `[B, height, width, 3]`; features: camera ->
            float16 `[B, ...]`; stamp_ns int64 `[B]`; episode int64 `[B]`.
        """
        batch: dict[str, Any] = {
            "state": self.arrays["state"][rows],
            "stamp_ns": self.arrays["stamp_ns"][rows],
            "episode": self.episode_of(rows),
        }
        if "object_state" in self.arrays:
            batch["object_state"] = self.arrays["object_state"][rows]
        if self.images:
            frames = self.arrays["image_index"][rows]
            kept = {} if encoder is None else {"features": self.features(encoder)}
            if images or (images is None and encoder is None):
                kept["images"] = self.images
            for what, of_camera in kept.items():
                batch[what] = {camera: of_camera[camera][frames[:, c]] for c, camera in enumerate(self.spec.cameras)}
        return batch

    def chunk_batch(
        self,
        rows: np.ndarray,
        horizon: int,
        stop: np.ndarray | None = None,
        encoder: str | None = None,
        images: bool | None = None,
    ) -> dict[str, Any]:
        """Observations at rows `[B]` and the chunks executed from there on.

        Args:
            horizon: H, rows of a chunk.
            stop: int64 `[B]`, one past the last row a chunk may hold (fragments); None: to the end of the segment.
            encoder, images: see `observe`.

        Returns:
            What `observe` returns, and action, proposal float32 `[B, H, A]` (beyond the end the last row is repeated; proposals are NaN where there was none)
            and action_mask bool `[B, H]`, true where the action was executed inside the fragment.
        """
        end = self.segments[self.segment_of(rows), 1] if stop is None else stop
        at = rows[:, None] + np.arange(horizon)
        inside = np.minimum(at, np.maximum(end, rows + 1)[:, None] - 1)
        batch = self.observe(rows, encoder, images)
        batch["action"] = self.arrays["action"][inside]
        batch["proposal"] = self.arrays["proposal"][inside]
        batch["action_mask"] = at < end[:, None]
        return batch

    def cache_features(
        self, encoder: str, encode: Encode, batch_size: int = 32, on_progress: Progress = lambda done, total: None
    ) -> None:
        """Computes what a frozen encoder makes of every image that it has not seen yet, and keeps it as float16.

        Args:
            encoder: name of the encoder and its weights; part of file names.
            encode: uint8 `[n, height, width, 3]` RGB -> `[n, ...]`.
            on_progress: called with (images done, images).

        Raises:
            AloeError: a name that is none, another shape than before, or values that are not finite.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", encoder):
            raise AloeError(f"encoder id '{encoder}' may hold letters, digits, '.', '-' and '_' only")
        update_features(self.root, encoder, self.images, encode, batch_size, on_progress)

    def features(self, encoder: str) -> dict[str, np.ndarray]:
        """Camera -> memory map float16 `[frames, ...]`.

        Raises:
            AloeError: `cache_features` has not been called for all images.
        """
        return feature_arrays(self.root, encoder, {camera: len(images) for camera, images in self.images.items()})

    def _segments(self) -> np.ndarray:
        """Episodes cut where ticks are missing: the observation after a transition is there for every transition kept."""
        segments = []
        for number, episode in enumerate(self.episodes):
            start, end = episode.start, episode.start + episode.steps
            steps = self.arrays["step"][start : end + 1]
            for gap in np.flatnonzero(np.diff(steps) != 1):
                segments.append((start, episode.start + int(gap), number))
                start = episode.start + int(gap) + 1
            segments.append((start, end, number))
        return np.array(segments, np.int64).reshape(-1, 3)
