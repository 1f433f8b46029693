"""Finding bags, and reading their messages one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

from aloe_core.bag_format import METADATA_FILE, EpisodeInfo, Topic
from aloe_core.bag_images import deserialize
from aloe_core.bag_storage import open_storage
from aloe_core.errors import AloeError
from aloe_core.messages import typestore


@dataclass(frozen=True, slots=True)
class BagMessage:
    """A deserialized message: attributes as in ROS."""

    topic: str
    type: str
    log_time_ns: int
    message: Any


def find_bags(paths: Iterable[Path | str]) -> list[Path]:
    """Folders of all bags under `paths`: bags, folders that hold bags at any depth, glob patterns. Discarded episodes are left out.

    Raises:
        AloeError: no paths, or one of them leads to no bag.
    """
    found: dict[Path, None] = {}
    paths = list(paths)
    if not paths:
        raise AloeError("name at least one bag, or a folder that holds bags")
    for path in paths:
        text = str(path)
        candidates = [Path(p) for p in sorted(glob(text))] if any(c in text for c in "*?[") else [Path(path)]
        bags = [bag for candidate in candidates for bag in _bags_in(candidate)]
        if not bags:
            raise AloeError(f"no bags in {text}")
        found |= dict.fromkeys(bags)
    return list(found)


def _bags_in(path: Path) -> list[Path]:
    if path.is_file():
        return [path.parent] if path.suffix in (".mcap", ".db3") else []
    if _is_bag(path):
        return [path]
    files = [*path.rglob(METADATA_FILE), *path.rglob("*.mcap")]
    folders = {f.parent for f in files if _is_bag(f.parent)}
    return sorted(
        f for f in folders if not any(p == "discarded" or p.startswith(".") for p in f.relative_to(path).parts)
    )


def _is_bag(folder: Path) -> bool:
    return (folder / METADATA_FILE).is_file() or any(folder.glob("*.mcap"))


def read_info(folder: Path | str) -> EpisodeInfo:
    """What the bag says about its episode, without reading its messages.

    Raises:
        AloeError: no bag, or not one of ours.
    """
    storage = open_storage(Path(folder))
    try:
        return EpisodeInfo.from_text(storage.custom_data, f"bag {folder}")
    finally:
        storage.close()


def iter_messages(folder: Path | str, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
    """Deserialized messages in the order of recording.

    Args:
        topics: names as recorded or as in `aloe_core.topics` (`control/transition`); None: all topics whose type is known here.

    Raises:
        AloeError: no such topic, another version of a message type, or a damaged bag.
    """
    storage = open_storage(Path(folder))
    try:
        recorded = storage.topics()
        if topics is None:
            chosen = {t.name for t in recorded if t.type in typestore().fielddefs}
        else:
            chosen = set()
            for name in topics:
                topic = resolve(recorded, name, f"bag {folder}")
                if topic is None:
                    raise AloeError(f"bag {folder}: no topic {name}; it has: {', '.join(t.name for t in recorded)}")
                chosen.add(topic.name)
        for topic in recorded:
            if topic.name in chosen:
                check_type(topic, f"bag {folder}")
        for raw in storage.scan(chosen.__contains__):
            message = deserialize(raw.data, raw.type, f"bag {folder}: {raw.topic}")
            yield BagMessage(raw.topic, raw.type, raw.log_time_ns, message)
    finally:
        storage.close()


def resolve(recorded: Sequence[Topic], name: str, where: str) -> Topic | None:
    """The recorded topic that `name` means: the absolute name itself, else the one that ends with it (recorded under a namespace).

    Raises:
        AloeError: several topics end with it.
    """
    absolute = "/" + name.lstrip("/")
    for topic in recorded:
        if topic.name == absolute:
            return topic
    ending = [t for t in recorded if t.name.endswith(absolute)]
    if len(ending) > 1:
        raise AloeError(
            f"{where}: '{name}' may be any of {', '.join(t.name for t in ending)}; record one robot per bag"
        )
    return ending[0] if ending else None


@cache
def _hash(type: str) -> str:
    return typestore().hash_rihs01(type)


def check_type(topic: Topic, where: str) -> None:
    """Refuses a topic whose message type was defined differently when it was recorded."""
    if topic.type_hash and topic.type in typestore().fielddefs and topic.type_hash != _hash(topic.type):
        raise AloeError(
            f"{where}: {topic.name} was recorded with another version of {topic.type}; read it with the software that wrote it"
        )
