"""The files of a dataset that grows by one episode at a time: data, videos, episode table, statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from aloe_policy.lerobot_dataset import layout
from aloe_policy.lerobot_dataset.statistics import KEYS, Stats, merge_all
from aloe_policy.lerobot_dataset.video import VideoWriter

MIB = 1 << 20
EPISODES_PER_FILE = (
    200  # our choice: what a writer keeps about each row group until its file is closed stays below some 20 MB
)
EPISODES_PER_ROW_GROUP = 10  # rows of the episode table held back before they are written


@dataclass
class _Place:
    """Which file of a kind is being written."""

    number: int = 0

    @property
    def indices(self) -> dict[str, int]:
        return {"chunk_index": self.number // layout.CHUNKS_SIZE, "file_index": self.number % layout.CHUNKS_SIZE}


class DatasetFiles:
    """Writes episodes one after the other; a file is closed at the end of the episode that fills it.

    Args:
        root: the dataset's folder; exists and is empty.
        features: of `info.json`.
        fps: frames per second.
    """

    def __init__(self, root: Path, features: Mapping[str, dict], fps: int) -> None:
        self.root, self.features, self.fps = root, features, fps
        self.episodes = self.frames = 0
        self.stats: dict[str, Stats] = {}
        self._place = _Place()
        self._tables: dict[str, pq.ParquetWriter] = {}  # those that are rolled over together, by path pattern
        self._row_groups = 0
        self._videos: dict[str, tuple[_Place, VideoWriter | None]] = {}
        self._video_starts: dict[str, int] = {}  # first frame of the episode being written
        self._episode_rows: list[dict[str, Any]] = []
        self._episode_schema = _episode_schema(features)

    def add_frame(self, key: str, size: tuple[int, int], image: np.ndarray) -> None:
        """Appends an image uint8 `[h, w, 3]` to the video of feature `key`; `size` is (height, width) [pixel]."""
        place, writer = self._videos.get(key, (_Place(), None))
        if writer is None:
            path = self.root / layout.VIDEO_PATH.format(video_key=key, **place.indices)
            writer = VideoWriter(path, size, self.fps)
            self._videos[key] = (place, writer)
        self._video_starts.setdefault(key, writer.frames)
        writer.add(image)

    def add_episode(
        self,
        table: pa.Table,
        tasks: Sequence[str],
        stats: Mapping[str, Stats],
        once: Mapping[str, Any],
        chunks: Sequence[Mapping[str, Any]],
    ) -> None:
        """Writes the data of an episode whose frames have been added.

        Args:
            table: its data, `layout.data_schema`.
            tasks: texts of its tasks.
            stats: by feature.
            once, chunks: rows of `layout.ALOE_EPISODES` and `layout.ALOE_CHUNKS`.
        """
        row: dict[str, Any] = {
            "episode_index": self.episodes,
            "tasks": list(tasks),
            "length": table.num_rows,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + table.num_rows,
        }
        for kind in ("data", "meta/episodes"):
            row |= {f"{kind}/{key}": value for key, value in self._place.indices.items()}
        for key in list(self._video_starts):
            row |= {f"videos/{key}/{name}": value for name, value in self._end_video(key).items()}
        row |= {f"stats/{key}/{name}": value.tolist() for key, found in stats.items() for name, value in found.items()}
        self._episode_rows.append(row)
        self._write(layout.DATA_PATH, table)
        self._write(layout.ALOE_EPISODES_PATH, pa.Table.from_pylist([dict(once)], layout.ALOE_EPISODES))
        self._write(layout.ALOE_CHUNKS_PATH, pa.Table.from_pylist([dict(c) for c in chunks], layout.ALOE_CHUNKS))
        self._row_groups += 1
        if len(self._episode_rows) == EPISODES_PER_ROW_GROUP:
            self._flush_episodes()
        size = (self.root / layout.DATA_PATH.format(**self._place.indices)).stat().st_size
        if self._row_groups == EPISODES_PER_FILE or size >= layout.DATA_FILE_MB * MIB:
            self._close_tables()
            self._place = _Place(self._place.number + 1)
        merge_all(self.stats, stats)
        self.episodes += 1
        self.frames += table.num_rows

    def close(self, tasks: Sequence[str], robot_type: str) -> None:
        """Finishes every file and writes `info.json`, `stats.json` and `tasks.parquet`."""
        self._close_tables()
        for _, writer in self._videos.values():
            if writer is not None:
                writer.close()
        pq.write_table(layout.tasks_table(list(tasks)), self.root / layout.TASKS_FILE)
        info = {
            "codebase_version": layout.CODEBASE_VERSION,
            "robot_type": robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(tasks),
            "chunks_size": layout.CHUNKS_SIZE,
            "data_files_size_in_mb": layout.DATA_FILE_MB,
            "video_files_size_in_mb": layout.VIDEO_FILE_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH if self._videos else None,
            "features": dict(self.features),
        }
        stats = {key: {name: value.tolist() for name, value in found.items()} for key, found in self.stats.items()}
        for file, content in ((layout.INFO_FILE, info), (layout.STATS_FILE, stats)):
            (self.root / file).write_text(json.dumps(content, indent=1) + "\n")

    def _write(self, pattern: str, table: pa.Table) -> None:
        """Appends one row group to the current file of a kind."""
        if pattern not in self._tables:
            path = self.root / pattern.format(**self._place.indices)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._tables[pattern] = pq.ParquetWriter(path, table.schema)
        self._tables[pattern].write_table(table)

    def _close_tables(self) -> None:
        self._flush_episodes()
        for writer in self._tables.values():
            writer.close()
        self._tables.clear()
        self._row_groups = 0

    def _end_video(self, key: str) -> dict[str, float]:
        """Ends the episode in the video of `key`; where it is and between which times [s]."""
        place, writer = self._videos[key]
        assert writer is not None
        start = self._video_starts.pop(key)
        found = {**place.indices, "from_timestamp": start / self.fps, "to_timestamp": writer.frames / self.fps}
        if writer.path.stat().st_size >= layout.VIDEO_FILE_MB * MIB:
            writer.close()
            self._videos[key] = (_Place(place.number + 1), None)
        return found

    def _flush_episodes(self) -> None:
        if self._episode_rows:
            self._write(layout.EPISODES_PATH, pa.Table.from_pylist(self._episode_rows, self._episode_schema))
            self._episode_rows.clear()


def _episode_schema(features: Mapping[str, dict]) -> pa.Schema:
    whole, real = pa.int64(), pa.float64()
    fields = [("episode_index", whole), ("tasks", pa.list_(pa.string())), ("length", whole)]
    fields += [(f"data/{name}", whole) for name in ("chunk_index", "file_index")]
    fields += [(name, whole) for name in ("dataset_from_index", "dataset_to_index")]
    for key, feature in features.items():
        if feature["dtype"] == "video":
            fields += [(f"videos/{key}/{name}", whole) for name in ("chunk_index", "file_index")]
            fields += [(f"videos/{key}/{name}", real) for name in ("from_timestamp", "to_timestamp")]
    for key, feature in features.items():
        kind = pa.list_(pa.list_(pa.list_(real))) if feature["dtype"] == "video" else pa.list_(real)
        fields += [(f"stats/{key}/{name}", pa.list_(whole) if name == "count" else kind) for name in KEYS]
    fields += [(f"meta/episodes/{name}", whole) for name in ("chunk_index", "file_index")]
    return pa.schema(fields)
