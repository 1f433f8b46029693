"""What a frozen encoder makes of the store's images, computed once and memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core.bag_format import replace_file
from aloe_core.errors import AloeError
from aloe_policy.replay.layout import FEATURES_FILE, locked, map_array, read_json

Encode = Callable[[np.ndarray], np.ndarray]


def update_features(
    root: Path,
    encoder: str,
    images: Mapping[str, np.ndarray],
    encode: Encode,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> None:
    """Brings the features of `encoder` up to the number of images; see `ReplayStore.cache_features`. What a kill leaves behind is computed again."""
    with locked(root):
        known = read_json(root / FEATURES_FILE) or {}
        entries: dict[str, Any] = known.setdefault(encoder, {})
        starts = {camera: entries.get(camera, {"frames": 0})["frames"] for camera in images}
        # Nothing is missing where another process, which saw more images, was first.
        done, total = 0, sum(max(len(frames) - starts[camera], 0) for camera, frames in images.items())
        for camera, frames in images.items():
            start = starts[camera]
            shape = tuple(entries[camera]["shape"]) if camera in entries else None
            with open(_file(root, encoder, camera), "ab") as file:
                if shape is not None:
                    file.truncate(2 * start * int(np.prod(shape, dtype=np.int64)))
                else:
                    file.truncate(0)
                for at in range(start, len(frames), batch_size):
                    values = np.asarray(encode(np.array(frames[at : at + batch_size])))
                    shape = values.shape[1:] if shape is None else shape
                    if values.shape[1:] != shape or len(values) != len(frames[at : at + batch_size]):
                        raise AloeError(
                            f"encoder '{encoder}' gave features of shape {values.shape[1:]}, before it was {shape}"
                        )
                    with np.errstate(over="ignore"):  # infinity is refused below
                        half = values.astype(np.float16)
                    if not np.isfinite(half).all():
                        raise AloeError(
                            f"encoder '{encoder}' gave features that are not finite in 16 bits for camera '{camera}'"
                        )
                    file.write(half.tobytes())
                    done += len(values)
                    on_progress(done, total)
                file.flush()
                os.fsync(file.fileno())
            if shape is not None:
                entries[camera] = {"shape": list(shape), "frames": max(len(frames), start)}
        replace_file(root / FEATURES_FILE, json.dumps(known))


def feature_arrays(root: Path, encoder: str, frames: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Camera -> memory map float16 `[frames, ...]`; see `ReplayStore.features`."""
    entries = (read_json(root / FEATURES_FILE) or {}).get(encoder, {})
    arrays = {}
    for camera, count in frames.items():
        entry = entries.get(camera, {"frames": 0})
        if entry["frames"] < count:
            raise AloeError(
                f"store {root}: features of encoder '{encoder}' are there for {entry['frames']} of {count} images of camera '{camera}'"
            )
        arrays[camera] = map_array(_file(root, encoder, camera), np.dtype(np.float16), (count, *entry["shape"]))
    return arrays


def _file(root: Path, encoder: str, camera: str) -> Path:
    return root / f"feature_{camera}_{encoder}.bin"
