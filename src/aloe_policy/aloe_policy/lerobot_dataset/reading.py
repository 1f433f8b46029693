"""Reads a LeRobotDataset (format v3) episode by episode; ours, with everything a bag holds, or anybody's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from pydantic import TypeAdapter, ValidationError

from aloe_core.errors import AloeError
from aloe_core.robot import explain
from aloe_policy.lerobot_dataset import layout
from aloe_policy.lerobot_dataset.video import read_frames


@dataclass(frozen=True)
class DatasetEpisode:
    """One episode of T frames.

    Attributes:
        index: its number in the dataset.
        columns: feature -> `[T]` or `[T, D]`, videos left out.
        task: its text.
        once: our row in `aloe/episodes`; empty for a dataset that is not ours.
        chunks: our rows in `aloe/chunks`.
        videos: feature -> (file, start [s]).
    """

    index: int
    columns: Mapping[str, np.ndarray]
    task: str
    once: Mapping[str, Any]
    chunks: list[dict[str, Any]]
    videos: Mapping[str, tuple[Path, float]]

    def __len__(self) -> int:
        return len(self.columns["index"])


class DatasetReader:
    """A dataset on disk.

    Attributes:
        features: of `info.json`.
        fps: frames per second.
        about: our `meta/aloe.json`, or None for a dataset that is not ours.

    Raises:
        AloeError: not a LeRobotDataset, another version of the format, or damaged; the message names the file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        info = layout.read_json(root / layout.INFO_FILE)
        where = root / layout.INFO_FILE
        version = str(info.get("codebase_version")) if isinstance(info, dict) else "none"
        if not version.startswith("v3."):
            raise AloeError(f"{where}: format {version} cannot be read, only v3; convert it with LeRobot's own script")
        try:
            self.fps = int(info["fps"])
            self.features: dict[str, dict] = {
                str(key): {"dtype": str(f["dtype"]), "shape": [int(n) for n in f["shape"]], "names": f.get("names")}
                for key, f in info["features"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AloeError(f"{where}: fps or features are missing or wrong ({error!r})") from None
        for key, expected in (("data_path", layout.DATA_PATH), ("video_path", layout.VIDEO_PATH)):
            if info.get(key) not in (expected, None):
                raise AloeError(f"{where}: {key} is '{info[key]}', not '{expected}'")
        about = root / layout.ALOE_FILE
        self.about: dict[str, Any] | None = layout.read_json(about) if about.exists() else None
        if self.about is not None and self.about.get("format") != layout.FORMAT:
            raise AloeError(f"{about}: format {self.about.get('format')} cannot be read, only {layout.FORMAT}")
        tasks = _read(root / layout.TASKS_FILE)
        text = "task" if "task" in tasks.column_names else tasks.column_names[-1]
        self._tasks = {int(row["task_index"]): str(row[text]) for row in tasks.to_pylist()}

    def cameras(self) -> list[str]:
        """Names of the cameras that have videos."""
        keys = (key for key, feature in self.features.items() if feature["dtype"] == "video")
        return [key.removeprefix(layout.IMAGES) for key in keys if key.startswith(layout.IMAGES)]

    def episodes(self) -> Iterator[DatasetEpisode]:
        """All episodes in order, one in memory at a time."""
        files = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise AloeError(f"{self.root}: no episode table in meta/episodes")
        for file in files:
            names = [n for n in _schema(file).names if not n.startswith("stats/")]
            for batch in _batches(file, names):
                for row in batch.to_pylist():
                    yield self._episode(row, file)

    def frames(self, episode: DatasetEpisode, camera: str) -> Iterator[np.ndarray]:
        """The episode's images uint8 `[h, w, 3]` RGB, one per frame."""
        path, start_s = episode.videos[layout.IMAGES + camera]
        return read_frames(path, start_s, len(episode), self.fps)

    def _episode(self, row: Mapping[str, Any], file: Path) -> DatasetEpisode:
        try:
            index = int(row["episode_index"])
            place = {name: int(row[f"data/{name}"]) for name in ("chunk_index", "file_index")}
            data = self.root / layout.DATA_PATH.format(**place)
            once_file, chunk_file = (
                self.root / pattern.format(**place) for pattern in (layout.ALOE_EPISODES_PATH, layout.ALOE_CHUNKS_PATH)
            )
            videos = {}
            for camera in self.cameras():
                key = layout.IMAGES + camera
                video = {name: int(row[f"videos/{key}/{name}"]) for name in ("chunk_index", "file_index")}
                path = self.root / layout.VIDEO_PATH.format(video_key=key, **video)
                videos[key] = (path, float(row[f"videos/{key}/from_timestamp"]))
        except (KeyError, TypeError, ValueError) as error:
            raise AloeError(f"{file}: column {error} is missing or wrong") from None
        table = _read(data, index)
        if table.num_rows != row["length"]:
            raise AloeError(
                f"{data}: episode {index} has {table.num_rows} frames, its table says {row['length']}; copy the dataset again"
            )
        columns = {n: self._column(table, n, data) for n, f in self.features.items() if f["dtype"] in layout.NUMBERS}
        once, chunks = {}, []
        if self.about is not None:
            for ours, schema in ((once_file, layout.ALOE_EPISODES), (chunk_file, layout.ALOE_CHUNKS)):
                if not _schema(ours).equals(schema):
                    raise AloeError(f"{ours}: other columns than this software writes; copy the dataset again")
            found = _read(once_file, index).to_pylist()
            if len(found) != 1:
                raise AloeError(f"{once_file}: {len(found)} rows of episode {index}, not one")
            once, chunks = found[0], _read(chunk_file, index).to_pylist()
        task = self._tasks.get(int(columns["task_index"][0]), "") if table.num_rows else ""
        return DatasetEpisode(index, columns, task, once, chunks, videos)

    def _column(self, table: pa.Table, name: str, file: Path) -> np.ndarray:
        if name not in table.column_names:
            raise AloeError(f"{file}: column '{name}' is missing")
        column, shape = table.column(name).combine_chunks(), self.features[name]["shape"]
        nested = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        values = (column.flatten() if nested else column).to_numpy(zero_copy_only=False)
        if values.size != table.num_rows * int(np.prod(shape)):
            raise AloeError(f"{file}: column '{name}' does not have the shape {shape} that info.json gives")
        return values.reshape(-1) if shape == [1] else values.reshape(table.num_rows, *shape)


def decode(kind: Any, text: Any, file: Path, column: str) -> Any:
    """JSON kept inside a table of ours, as the type `kind`.

    Raises:
        AloeError: it is not JSON or not of that type.
    """
    try:
        return TypeAdapter(kind).validate_json(text or "")
    except ValidationError as error:
        raise AloeError(f"{file}: column '{column}': {explain(error)}") from None


def _read(file: Path, episode_index: int | None = None) -> pa.Table:
    """A table, or its rows of one episode; other row groups are not read."""
    chosen = None if episode_index is None else [("episode_index", "=", episode_index)]
    try:
        return pq.read_table(file, filters=chosen, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise AloeError(f"{file}: not readable: {error}") from None


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise AloeError(f"{file}: not readable: {error}") from None


def _batches(file: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=100, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise AloeError(f"{file}: not readable: {error}") from None
