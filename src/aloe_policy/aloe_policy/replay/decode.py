"""One bag -> the rows and images it adds to a store; runs in a process of its own."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core.bag_reader import EpisodeRecord, read_episode
from aloe_core.bag_storage import read_information
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

DATA_SUFFIXES = (".mcap", ".db3", ".zstd")
HASH_BLOCK = 1 << 20


@dataclass(frozen=True)
class Job:
    """One bag to be decoded into the folder `work`."""

    folder: Path
    work: Path
    robot: RobotDescription
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    known: frozenset[str]  # content hashes already in the store


@dataclass(frozen=True)
class Decoded:
    """What a job gave: `reason` says why the bag is left out; `arrays` is None for a bag that is known already."""

    folder: Path
    content: str = ""
    fingerprint: str = ""
    reason: str = ""
    arrays: dict[str, np.ndarray] | None = None
    facts: dict[str, Any] | None = None


def fingerprint(folder: Path) -> str:
    """Names, sizes and times of a bag's data files: unchanged as long as nobody writes to them."""
    stats = [(f.name, f.stat()) for f in _data_files(folder)]
    return ";".join(f"{name}:{s.st_size}:{s.st_mtime_ns}" for name, s in stats)


def content_hash(folder: Path) -> str:
    """32 hex digits over the bag's messages, wherever it lies and whatever it was labelled since."""
    digest = hashlib.blake2b(digest_size=16)
    for file in _data_files(folder):
        with open(file, "rb") as stream:
            while block := stream.read(HASH_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _data_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix in DATA_SUFFIXES)


def decode(job: Job) -> Decoded:
    """Reads one bag; images are decoded, resized and written to `job.work/image_<camera>.bin`, a frame at a time."""
    try:
        try:
            mark, content = fingerprint(job.folder), content_hash(job.folder)
        except OSError as error:
            raise AloeError(f"bag {job.folder}: not readable: {error.strerror}") from None
        if content in job.known:
            return Decoded(job.folder, content, mark)
        if read_information(job.folder) is None:
            raise AloeError(f"bag {job.folder} was killed while recording: run aloe bags recover")
        record = read_episode(job.folder, job.robot)
        if not len(record):
            raise AloeError(f"bag {job.folder}: {record.problems[0]}")
        arrays = _rows(record)
        frames = {}
        if job.cameras:
            job.work.mkdir(parents=True)
            columns = []
            for camera in job.cameras:
                index, frames[camera] = _write_images(record, camera, job)
                columns.append(index)
            arrays["image_index"] = np.stack(columns, axis=1)
    except AloeError as error:
        return Decoded(job.folder, reason=str(error))
    return Decoded(job.folder, content, mark, arrays=arrays, facts=_facts(record, frames))


def _rows(record: EpisodeRecord) -> dict[str, np.ndarray]:
    """T + 1 rows of every array but the images."""

    def repeat_last(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, values[-1:]])

    versions = list(dict.fromkeys(record.policy_version))
    version = np.array([versions.index(v) for v in record.policy_version], np.int32)
    rows = {
        "state": np.concatenate([record.state, record.final_state[None]]),
        "action": repeat_last(record.executed),
        "proposal": np.concatenate([record.proposal, np.full_like(record.proposal[-1:], np.nan)]),
        "source": repeat_last(record.source),
        "step": np.append(record.step, record.step[-1] + 1),
        "stamp_ns": np.append(record.stamps_ns, record.final_stamp_ns),
        "intervention_id": repeat_last(record.intervention_id.astype(np.int32)),
        "version": repeat_last(version),
    }
    if record.object_state is not None and record.final_object_state is not None:
        rows["object_state"] = np.concatenate([record.object_state, record.final_object_state[None]])
    return rows


def _write_images(record: EpisodeRecord, camera: str, job: Job) -> tuple[np.ndarray, int]:
    """Writes each image that some tick shows once; (index of each tick's image int64 `[T + 1]`, number of images)."""
    track = record.cameras.get(camera)
    if track is None:
        there = ", ".join(record.cameras) or "none"
        raise AloeError(f"bag {record.folder}: no images of camera '{camera}' (it has: {there})")
    ticks = record.camera_index[camera]
    if (ticks < 0).any():
        raise AloeError(
            f"bag {record.folder}: camera '{camera}' has no image for its first {int((ticks < 0).sum())} ticks"
        )
    used, index = np.unique(ticks, return_inverse=True)
    with open(job.work / f"image_{camera}.bin", "wb") as stream:
        for frame in used:
            stream.write(np.ascontiguousarray(track.decode(int(frame), job.image_size)).data)
    return index.astype(np.int64), len(used)


def _facts(record: EpisodeRecord, frames: dict[str, int]) -> dict[str, Any]:
    versions = tuple(dict.fromkeys(record.policy_version))
    iterations = [record.iterations[v] for v in versions if v in record.iterations]
    return {
        "bag": os.fspath(record.folder),
        "episode_id": record.info.episode_id,
        "task": record.info.task,
        "instruction": record.info.instruction,
        "seed": record.info.seed,
        "steps": len(record),
        "frames": frames,
        "recorded_outcome": int(record.recorded_outcome),
        "complete": record.complete,
        "versions": versions,
        "iteration": max(iterations, default=record.info.iteration),
        "problems": tuple(record.problems),
    }
