"""What a LeRobotDataset of ours looks like on disk: files, features, columns.

LeRobot's own keys are `observation.state`, `action`, `observation.images.<camera>`, `next.reward`, `next.done`, `next.truncated` and the five indices.
Everything else begins with `aloe.`, a prefix LeRobot never feeds to a policy (it takes what begins with `observation` or `action`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

CODEBASE_VERSION = "v3.0"
FORMAT = 1  # of our own additions; raised when older readers would misread them
CHUNKS_SIZE = 1000  # files per folder
DATA_FILE_MB = 100  # a data file is closed after the episode that makes it larger [MiB]
VIDEO_FILE_MB = 200  # a video file likewise [MiB]
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{FILE}.parquet"
INFO_FILE = "meta/info.json"
STATS_FILE = "meta/stats.json"
TASKS_FILE = "meta/tasks.parquet"
ALOE_FILE = "meta/aloe.json"  # robot, policy versions
ALOE_EPISODES_PATH = f"aloe/episodes/{FILE}.parquet"  # what an episode has once: outcome, labels, final observation
ALOE_CHUNKS_PATH = f"aloe/chunks/{FILE}.parquet"  # the policy's chunks

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
SCALARS = {  # EpisodeRecord's arrays [T] under our names; whole numbers, none below 0
    "step": "aloe.step",
    "stamps_ns": "aloe.stamp_ns",
    "fragment": "aloe.fragment",
    "chunk_id": "aloe.chunk_id",
    "chunk_step": "aloe.chunk_step",
    "intervention_id": "aloe.intervention_id",
}


@dataclass(frozen=True)
class Shapes:
    """What may differ between datasets; fixed by the first episode.

    Attributes:
        cameras: name -> (height, width) [pixel].
        object_dim, sim_dim: O and S of the simulator's state; 0 for a real robot.
    """

    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    object_dim: int = 0
    sim_dim: int = 0


def features(robot: RobotDescription, shapes: Shapes, codec: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    """The `features` of `info.json`; `codec` is what `info.json` says of each camera's video."""
    names, arms = list(robot.action_names), list(robot.arm_names)
    out = {STATE: _feature("float32", len(names), names), ACTION: _feature("float32", len(names), names)}
    for camera, size in shapes.cameras.items():
        out[IMAGES + camera] = {
            "dtype": "video",
            "shape": [*size, 3],
            "names": ["height", "width", "channels"],
            "info": dict(codec[camera]),
        }
    out |= {"next.reward": _feature("float32"), "next.done": _feature("bool"), "next.truncated": _feature("bool")}
    out |= {name: _feature("int64") for name in SCALARS.values()}
    out["aloe.source"] = _feature("int64", len(arms), arms)  # aloe_core.vocabulary.Source per arm
    out["aloe.proposal"] = _feature("float32", len(names), names)  # NaN: none
    out["aloe.policy_version"] = _feature("int64")  # index into policy_versions of meta/aloe.json; -1: none
    out["aloe.outcome"] = _feature("int64")  # of the episode: aloe_core.vocabulary.Outcome
    out["aloe.safety_limited"] = _feature("bool")
    out["aloe.advantage"] = _feature("float32")  # NaN: not given
    if shapes.object_dim:
        out["aloe.object_state"] = _feature("float32", shapes.object_dim)
    if shapes.sim_dim:
        out["aloe.sim_state"] = _feature("float64", shapes.sim_dim)
    if shapes.cameras:
        out["aloe.image_stamp_ns"] = _feature("int64", len(shapes.cameras), list(shapes.cameras))  # 0: no image yet
    out |= {name: _feature("float32" if name == "timestamp" else "int64") for name in INDICES}
    return out


def _feature(dtype: str, size: int = 1, names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [size], "names": names}


_ARROW = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
NUMBERS = frozenset(_ARROW)  # dtypes of features that are read; texts are left out


def data_schema(columns: Mapping[str, dict]) -> pa.Schema:
    """Columns of the data files: vectors as lists of fixed size, single numbers as such; videos have none."""
    fields = []
    for name, feature in columns.items():
        if feature["dtype"] != "video":
            size, kind = feature["shape"][0], _ARROW[feature["dtype"]]
            fields.append(pa.field(name, kind if size == 1 else pa.list_(kind, size)))
    return pa.schema(fields)


def tasks_table(tasks: list[str]) -> pa.Table:
    """`tasks.parquet`; LeRobot reads it with pandas and takes the task's text from the index."""
    described = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


ALOE_EPISODES = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("info", pa.string()),  # JSON of EpisodeInfo.to_text()
        ("outcome", pa.string()),  # with which the bag was closed
        ("termination", pa.string()),
        ("labels", pa.list_(pa.string())),  # JSON: [outcome, stamp_ns, who, message]
        ("events", pa.list_(pa.string())),  # JSON: [stamp_ns, event, outcome, termination, message]
        ("iterations", pa.string()),  # JSON: policy version -> improvement iteration
        ("final_stamp_ns", pa.int64()),
        ("final_state", pa.list_(pa.float32())),
        ("final_object_state", pa.list_(pa.float32())),
        (
            "final_images",
            pa.list_(pa.struct([("camera", pa.string()), ("stamp_ns", pa.int64()), ("data", pa.binary())])),
        ),
    ]
)
ALOE_CHUNKS = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("stamp_ns", pa.int64()),
        ("dt_ns", pa.int64()),
        ("chunk_id", pa.uint64()),
        ("request_id", pa.uint64()),
        ("policy_version", pa.string()),
        ("inference_latency_s", pa.float64()),
        ("horizon", pa.int64()),
        ("positions", pa.list_(pa.float32())),  # row-major [horizon, A]
        ("cameras", pa.list_(pa.string())),
        ("camera_stamps_ns", pa.list_(pa.int64())),
    ]
)


def read_json(path: Path) -> Any:
    """A JSON file of a dataset.

    Raises:
        AloeError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise AloeError(
            f"{path.parent.parent} is not a LeRobotDataset: it has no {path.parent.name}/{path.name}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AloeError(f"{path}: not JSON: {error}") from None
