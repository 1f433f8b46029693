"""What a bag of one episode looks like on disk: names, the episode's own information, quality of service, `metadata.yaml`.

`<bags>/<episode_id>/metadata.yaml` + `<episode_id>_0.mcap` is the layout of rosbag2 (metadata version 9, as in ROS 2 Jazzy). `metadata.yaml` is written last:
a folder without it is a recording that was killed (`aloe bags recover`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from aloe_core import __version__
from aloe_core.errors import AloeError
from aloe_core.yaml_file import FAULTS

FORMAT_VERSION = 1
METADATA_FILE = "metadata.yaml"
METADATA_RECORD = "aloe"  # name of the MCAP metadata record
ROSBAG2_RECORD = "rosbag2"  # MCAP metadata record in which rosbag2 looks when metadata.yaml is missing
ROSBAG2_KEY = "rosbag2_bagfile_information"
ROSBAG2_VERSION = 9  # metadata version of ROS 2 Jazzy
INFINITE = {"sec": 9223372036, "nsec": 854775807}


@dataclass(frozen=True, slots=True)
class TopicQos:
    """Quality of service that a recorded topic was offered with; `depth` in messages, history is always keep-last."""

    reliability: Literal["reliable", "best_effort"] = "reliable"
    durability: Literal["volatile", "transient_local"] = "volatile"
    depth: int = 10

    def to_rosbag2(self) -> dict[str, Any]:
        """The entry of `offered_qos_profiles` in `metadata.yaml`."""
        return {
            "history": "keep_last",
            "depth": self.depth,
            "reliability": self.reliability,
            "durability": self.durability,
            "deadline": dict(INFINITE),
            "lifespan": dict(INFINITE),
            "liveliness": "automatic",
            "liveliness_lease_duration": dict(INFINITE),
            "avoid_ros_namespace_conventions": False,
        }

    @classmethod
    def from_rosbag2(cls, text: str) -> TopicQos:
        """Reads `offered_qos_profiles` of an MCAP channel; the default where there is none. Numbers are those of rosbag2 before version 9.

        rosbag2 writes depth 0 (and history unknown): it offers what it discovered of the publishers, and DDS does not tell their depth. It is then the default.
        """
        try:
            profiles = yaml.safe_load(text) or [{}]
            reliability = profiles[0].get("reliability", "reliable") in ("best_effort", 2)
            durability = profiles[0].get("durability", "volatile") in ("transient_local", 1)
            depth = int(profiles[0].get("depth", cls().depth))
        except FAULTS:
            return cls()
        return cls(
            "best_effort" if reliability else "reliable",
            "transient_local" if durability else "volatile",
            depth if depth > 0 else cls().depth,
        )


RELIABLE = TopicQos()
COMMAND = TopicQos(depth=1)
LATCHED = TopicQos(durability="transient_local", depth=1)
SENSOR = TopicQos(reliability="best_effort", depth=2)


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """What a bag says about its episode; kept as text in `metadata.yaml` (custom data) and in the MCAP metadata record `aloe`.

    Attributes:
        seed: seed of the reset; -1: none.
        robot: name of the robot description; `robot_hash` is its `RobotDescription.hash`.
        policy_version: version at the start of the episode; empty: none.
        iteration: improvement iteration the episode was collected in; 0: before any improvement.
    """

    episode_id: str
    task: str = ""
    instruction: str = ""
    robot: str = ""
    robot_hash: str = ""
    policy_version: str = ""
    seed: int = -1
    iteration: int = 0
    software_version: str = __version__
    format_version: int = FORMAT_VERSION

    def to_text(self) -> dict[str, str]:
        """All fields as strings."""
        return {key: str(value) for key, value in asdict(self).items()}

    @classmethod
    def from_text(cls, data: Mapping[str, str], where: str) -> EpisodeInfo:
        """Reads what `to_text` gave; unknown keys are ignored, for they may be newer than this software.

        Raises:
            AloeError: no `episode_id`, a number that is none, or a newer format; the message begins with `where`.
        """
        if not data.get("episode_id"):
            raise AloeError(f"{where}: no episode_id in the bag's information; it was not recorded by ALOE")
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in data:
                continue
            text = data[field.name]
            try:
                values[field.name] = int(text) if field.type == "int" else str(text)
            except (TypeError, ValueError):
                raise AloeError(f"{where}: {field.name} is {text!r}, not a number") from None
        info = cls(**values)
        if info.format_version > FORMAT_VERSION:
            raise AloeError(
                f"{where}: written in format {info.format_version}, this software reads up to {FORMAT_VERSION}; update it"
            )
        return info


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """One topic of a bag as `metadata.yaml` lists it."""

    topic: str
    type: str
    qos: Sequence[Mapping[str, Any]]
    type_hash: str
    count: int


Place = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Topic:
    """A recorded topic. `count` is -1 while unknown (killed recording); `type_hash` is empty if the bag has none."""

    name: str
    type: str
    type_hash: str
    count: int
    definition: str = ""
    qos: str = ""


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A serialized message. `data` is valid while the storage is open; `place` is what `fetch` takes."""

    topic: str
    type: str
    log_time_ns: int
    publish_time_ns: int
    data: memoryview
    place: Place


def iteration_of(version: str) -> int | None:
    """Improvement iteration in a policy version's name "<run>-<iteration>-<8 hex digits>" (`PolicyVersion.version`); None for other names."""
    match = re.fullmatch(r".+-(\d{1,9})-[0-9a-f]{8}", version)
    return int(match[1]) if match else None


def mcap_path(folder: Path) -> Path:
    """The storage file of a bag written by us."""
    return folder / f"{folder.name}_0.mcap"


def rosbag2_information(
    file_name: str, topics: Sequence[TopicRecord], start_ns: int, end_ns: int, custom_data: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `metadata.yaml` for a bag of one MCAP file."""
    count = sum(t.count for t in topics)
    starting, duration = {"nanoseconds_since_epoch": start_ns}, {"nanoseconds": max(0, end_ns - start_ns)}
    return {
        "version": ROSBAG2_VERSION,
        "storage_identifier": "mcap",
        "duration": dict(duration),
        "starting_time": dict(starting),
        "message_count": count,
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": t.topic,
                    "type": t.type,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": [dict(q) for q in t.qos],
                    "type_description_hash": t.type_hash,
                },
                "message_count": t.count,
            }
            for t in topics
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file_name],
        "files": [{"path": file_name, "starting_time": starting, "duration": duration, "message_count": count}],
        "custom_data": dict(custom_data),
        "ros_distro": "jazzy",
    }


class _NoAliases(yaml.SafeDumper):
    """yaml-cpp, which rosbag2 reads with, gets the same data twice rather than an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(data: Any) -> str:
    """YAML text without aliases, keys in the given order."""
    return yaml.dump(data, Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=10_000)


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a reader or a power cut sees the whole of it or the one before."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def topic_of(entry: Mapping[str, Any]) -> Topic:
    """One entry of `topics_with_message_count`; raises KeyError, TypeError or ValueError if it is none."""
    about = entry["topic_metadata"]
    type_hash = about.get("type_description_hash") or ""
    qos = _offered(about.get("offered_qos_profiles"))
    return Topic(str(about["name"]), str(about["type"]), str(type_hash), int(entry["message_count"]), qos=qos)


def _offered(profiles: Any) -> str:
    """What `TopicQos.from_rosbag2` takes: text since ever in MCAP channels, in `metadata.yaml` before version 9, a list since."""
    if isinstance(profiles, str):
        return profiles
    first = profiles[0] if isinstance(profiles, list) and profiles and isinstance(profiles[0], Mapping) else {}
    known = {key: first.get(key) for key in ("reliability", "durability", "depth")}
    return json.dumps([{key: value for key, value in known.items() if isinstance(value, (str, int))}])


def custom_data_of(information: Mapping[str, Any]) -> dict[str, str]:
    """Custom data of `metadata.yaml` as strings."""
    return {str(key): str(value) for key, value in (information.get("custom_data") or {}).items()}
