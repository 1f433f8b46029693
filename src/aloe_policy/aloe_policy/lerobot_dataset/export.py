"""Bags -> LeRobotDataset. One episode is in memory at a time; its images are decoded one by one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from aloe_core.bag_labels import read_labels
from aloe_core.bag_reader import EpisodeRecord, find_bags, read_episode
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_policy.lerobot_dataset import layout
from aloe_policy.lerobot_dataset.files import DatasetFiles
from aloe_policy.lerobot_dataset.layout import Shapes
from aloe_policy.lerobot_dataset.statistics import IMAGES_PER_EPISODE, ImageStats, Stats, vector_stats
from aloe_policy.lerobot_dataset.video import video_info

Report = Callable[[str], None]


def to_lerobot(
    bags: Sequence[Path | str],
    output: Path | str,
    repo_id: str,
    robot: RobotDescription | None = None,
    advantages: Mapping[str, np.ndarray] | None = None,
    report: Report = lambda line: None,
) -> int:
    """Writes the episodes of `bags` as a new dataset; returns their number.

    Args:
        bags: bags, folders that hold bags, or patterns.
        output: the dataset's folder; must not exist. It appears when it is complete.
        repo_id: the dataset's name, "<user>/<name>".
        robot: the robot they were recorded with; None takes the description that the first bag names.
        advantages: episode id -> float `[T]`; NaN is written where there is none.
        report: is told one line per episode.

    Raises:
        AloeError: the output exists, a bag cannot be read, or the episodes do not fit into one dataset; the message names the bag.
    """
    output = Path(output)
    if output.exists():
        raise AloeError(f"{output} exists already; datasets are never overwritten, choose another folder")
    folders = find_bags(bags)
    new = output.with_name(f".{output.name}.new-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)  # of an export that was killed
    try:
        new.mkdir(parents=True)
        export: _Export | None = None
        for folder in folders:
            record = read_episode(folder, robot or (export.robot if export else None))
            if not len(record):
                report(f"{folder}: left out, it has no transitions")
                continue
            if export is None:
                export = _Export(new, record, repo_id)
            export.add(record, (advantages or {}).get(record.info.episode_id))
            notes = f" ({'; '.join(record.problems)})" if record.problems else ""
            report(f"{folder}: {len(record)} frames, {record.outcome.name.lower()}{notes}")
        if export is None:
            raise AloeError(f"none of the {len(folders)} bags has transitions")
        export.close()
        new.rename(output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return export.episodes


class _Export:
    """A dataset being written; the first episode fixes robot, cameras and sizes."""

    def __init__(self, root: Path, first: EpisodeRecord, repo_id: str) -> None:
        self.root, self.robot, self.repo_id = root, first.robot, repo_id
        rate = self.robot.control_rate_hz
        if rate != round(rate):
            raise AloeError(
                f"robot '{self.robot.name}' is controlled at {rate} Hz; a LeRobotDataset needs a whole number of frames per second"
            )
        self.fps = round(rate)
        self.shapes = _shapes(first)
        codec = {camera: video_info(size, self.fps) for camera, size in self.shapes.cameras.items()}
        self.features = layout.features(self.robot, self.shapes, codec)
        self.files = DatasetFiles(root, self.features, self.fps)
        self.schema = layout.data_schema(self.features)
        self.versions: dict[str, int] = {}
        self.tasks: dict[str, int] = {}

    @property
    def episodes(self) -> int:
        return self.files.episodes

    def add(self, record: EpisodeRecord, advantage: np.ndarray | None) -> None:
        where = f"bag {record.folder}"
        if _shapes(record) != self.shapes:
            raise AloeError(
                f"{where} has other cameras, image sizes or simulator states than the first one "
                f"({_shapes(record)}, not {self.shapes}); export them into different datasets"
            )
        if advantage is not None and np.shape(advantage) != (len(record),):
            raise AloeError(f"{where}: {np.size(advantage)} advantages for {len(record)} steps")
        columns = self._columns(record, advantage)
        stats: dict[str, Stats] = {}
        for name, values in columns.items():
            found = vector_stats(values.reshape(len(record), -1))
            if found is not None:
                stats[name] = found
        for camera in self.shapes.cameras:
            stats[layout.IMAGES + camera] = self._video(record, camera)
        task = record.info.instruction or record.info.task
        chunks = [{"episode_index": self.episodes, **row} for row in _chunk_rows(record)]
        self.files.add_episode(self._table(columns), [task], stats, _once(record, self.episodes), chunks)

    def close(self) -> None:
        """Writes everything that is known only at the end."""
        self.files.close(list(self.tasks), self.robot.name)
        about = {
            "format": layout.FORMAT,
            "robot": self.robot.name,
            "robot_hash": self.robot.hash,
            "policy_versions": list(self.versions),
        }
        (self.root / layout.ALOE_FILE).write_text(json.dumps(about, indent=1) + "\n")
        (self.root / "README.md").write_text(
            f"---\ntags:\n- LeRobot\n- robotics\nconfigs:\n- config_name: default\n  data_files: data/*/*.parquet\n---\n# {self.repo_id}\n\n"
            f"{self.episodes} episodes, {self.files.frames} frames of robot `{self.robot.name}`, written by ALOE for ROS 2 "
            f"in the LeRobotDataset format {layout.CODEBASE_VERSION}.\n"
        )

    def _columns(self, record: EpisodeRecord, advantage: np.ndarray | None) -> dict[str, np.ndarray]:
        """Every column, `[T]` or `[T, D]`."""
        count = len(record)
        task = record.info.instruction or record.info.task
        for version in record.policy_version:
            if version:
                self.versions.setdefault(version, len(self.versions))
        out = {layout.STATE: record.state, layout.ACTION: record.executed, "next.reward": record.reward}
        out["next.done"] = record.terminated | record.truncated
        out["next.truncated"] = record.truncated
        out |= {name: getattr(record, key) for key, name in layout.SCALARS.items()}
        out["aloe.source"] = record.source.astype(np.int64)
        out["aloe.proposal"] = record.proposal
        out["aloe.policy_version"] = np.array([self.versions.get(v, -1) for v in record.policy_version], np.int64)
        out["aloe.outcome"] = np.full(count, int(record.outcome), np.int64)
        out["aloe.safety_limited"] = record.safety_limited
        out["aloe.advantage"] = np.asarray(np.full(count, np.nan) if advantage is None else advantage, np.float32)
        if self.shapes.object_dim:
            out["aloe.object_state"] = np.asarray(record.object_state, np.float32)
        if self.shapes.sim_dim:
            out["aloe.sim_state"] = np.asarray(record.sim_state, np.float64)
        if self.shapes.cameras:
            out["aloe.image_stamp_ns"] = np.stack([_image_stamps(record, c)[:count] for c in self.shapes.cameras], 1)
        frame = np.arange(count)
        out["timestamp"] = (frame / self.fps).astype(np.float32)
        out["frame_index"] = frame
        out["episode_index"] = np.full(count, self.episodes)
        out["index"] = self.files.frames + frame
        out["task_index"] = np.full(count, self.tasks.setdefault(task, len(self.tasks)))
        return out

    def _table(self, columns: Mapping[str, np.ndarray]) -> pa.Table:
        arrays = []
        for entry in self.schema:
            values = np.ascontiguousarray(columns[entry.name])
            if pa.types.is_fixed_size_list(entry.type):
                flat = pa.array(values.reshape(-1), entry.type.value_type)
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, entry.type.list_size))
            else:
                arrays.append(pa.array(values.reshape(-1), entry.type))
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _video(self, record: EpisodeRecord, camera: str) -> Stats:
        """Appends the episode's images to the camera's video: per tick the one the policy saw, black before the first."""
        stats, size = ImageStats(), self.shapes.cameras[camera]
        every = -(-len(record) // IMAGES_PER_EPISODE)
        image, shown = np.zeros((*size, 3), np.uint8), -1
        for t, index in enumerate(record.camera_index[camera][: len(record)].tolist()):
            if index != shown:
                image, shown = record.image(camera, t, size), index
            self.files.add_frame(layout.IMAGES + camera, size, image)
            if t % every == 0:
                stats.add(image)
        return stats.stats()


def _shapes(record: EpisodeRecord) -> Shapes:
    sizes = {}
    for camera, track in record.cameras.items():
        height, width = track.decode(0).shape[:2]
        sizes[camera] = (height, width)
    objects, sim = record.object_state, record.sim_state
    return Shapes(sizes, 0 if objects is None else objects.shape[1], 0 if sim is None else sim.shape[1])


def _image_stamps(record: EpisodeRecord, camera: str) -> np.ndarray:
    """int64 `[T + 1]`: stamp of the image at each tick [ns]; 0: none yet."""
    index = record.camera_index[camera]
    return np.where(index < 0, 0, record.cameras[camera].stamps_ns[index])


def _once(record: EpisodeRecord, episode_index: int) -> dict[str, Any]:
    """The row of `layout.ALOE_EPISODES`."""
    last = len(record)
    images = []
    for camera, track in record.cameras.items():
        index = int(record.camera_index[camera][last])
        if index >= 0 and index != record.camera_index[camera][last - 1]:
            encoded = track.encoded(index)
            if encoded.ndim == 1:  # images recorded uncompressed have no bytes that could be kept
                images.append({"camera": camera, "stamp_ns": int(track.stamps_ns[index]), "data": encoded.tobytes()})
    objects = record.final_object_state
    return {
        "episode_index": episode_index,
        "info": json.dumps(record.info.to_text()),
        "outcome": record.recorded_outcome.name.lower(),
        "termination": record.termination.name.lower(),
        "labels": [
            json.dumps([x.outcome.name.lower(), x.stamp_ns, x.who, x.message]) for x in read_labels(record.folder)
        ],
        "events": [
            json.dumps([e.stamp_ns, int(e.event), int(e.outcome), int(e.termination), e.message]) for e in record.events
        ],
        "iterations": json.dumps(record.iterations),
        "final_stamp_ns": record.final_stamp_ns,
        "final_state": record.final_state,
        "final_object_state": None if objects is None else objects,
        "final_images": images,
    }


def _chunk_rows(record: EpisodeRecord) -> list[dict[str, Any]]:
    """Rows of `layout.ALOE_CHUNKS`."""
    return [
        {
            "stamp_ns": c.stamp_ns,
            "dt_ns": c.dt_ns,
            "chunk_id": c.chunk_id,
            "request_id": c.request_id,
            "policy_version": c.policy_version,
            "inference_latency_s": c.inference_latency_s,
            "horizon": c.horizon,
            "positions": c.positions.reshape(-1),
            "cameras": list(c.camera_stamps_ns),
            "camera_stamps_ns": list(c.camera_stamps_ns.values()),
        }
        for c in record.chunks
    ]
