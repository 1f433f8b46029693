"""A bag written beside another: what was recorded, with what a policy and a critic said about it in shadow mode.

The bag that was replayed is never touched. Messages are copied as they were serialized, with their times, and offered as they were, as far as `TopicQos` tells.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag2 import Reader

from aloe_core.bag_format import (
    RELIABLE,
    EpisodeInfo,
    Topic,
    TopicQos,
    dump_yaml,
)
from aloe_core.bag_labels import LABELS_FILE
from aloe_core.bag_mcap import McapStorage
from aloe_core.bag_messages import resolve
from aloe_core.bag_storage import Storage, open_storage, read_information
from aloe_core.bag_writer import BagWriter, whole_bag
from aloe_core.errors import AloeError
from aloe_core.messages import typestore
from aloe_core.vocabulary import Termination, outcome_from_text

CHUNK = "replay/chunk"  # aloe_msgs/ActionChunk: what the policy proposes in shadow mode
VALUE = "replay/value"  # aloe_msgs/CriticValue of those; `critic/value` is that of the recorded chunks
RECORDED_CHUNK = "replay/recorded_chunk"  # aloe_msgs/ActionChunk: the recorded `policy/chunk` while a bag is played
OWN_TOPICS = (CHUNK, VALUE)


@dataclass(frozen=True, slots=True)
class Addition:
    """A serialized message that the replayed bag gets in addition; `topic` as in `aloe_core.topics`."""

    topic: str
    type: str
    data: bytes
    log_time_ns: int


def recorded_qos(folder: Path, storage: Storage) -> dict[str, TopicQos]:
    """Quality of service that each topic was offered with when it was recorded; the first one where publishers differed."""
    information = read_information(folder)
    if information is None:
        return {topic.name: TopicQos.from_rosbag2(topic.qos) for topic in storage.topics()}
    found = {}
    for entry in information["topics_with_message_count"]:
        about = entry["topic_metadata"]
        profiles = about.get("offered_qos_profiles") or ""
        found[str(about["name"])] = TopicQos.from_rosbag2(
            profiles if isinstance(profiles, str) else dump_yaml(profiles)
        )
    return found


def episode_info(folder: Path, custom: Mapping[str, str], robot: str, robot_hash: str) -> EpisodeInfo:
    """What the bag says about its episode; for a bag of ROS's own recorder, named after its folder.

    Raises:
        AloeError: the bag names a robot with another hash.
    """
    if not custom.get("episode_id"):
        return EpisodeInfo(folder.resolve().name, robot=robot, robot_hash=robot_hash)
    info = EpisodeInfo.from_text(custom, f"bag {folder}")
    if info.robot_hash and info.robot_hash != robot_hash:
        raise AloeError(
            f"bag {folder} was recorded with robot '{info.robot}' (hash {info.robot_hash}), not with '{robot}' (hash {robot_hash})"
        )
    return info


def write_replayed(
    source: Path, target: Path, info: EpisodeInfo, additions: Sequence[Addition], extra: Mapping[str, str]
) -> list[str]:
    """Copies the bag `source` to the new folder `target` with `additions` sorted in by their time.

    Recorded topics that have the name of an addition, and those of an earlier replay, are not copied. A topic whose message type was defined differently
    when it was recorded keeps that definition. A label given later comes along. `target` appears when it is complete.

    Args:
        extra: custom data of the new bag, beside that of the old one.

    Returns:
        A sentence for each topic that could not be copied, because neither we nor the bag know how its message type was defined.

    Raises:
        AloeError: `target` exists, `source` is damaged, or the disk refuses.
    """
    storage = open_storage(source)
    try:
        recorded, qos = storage.topics(), recorded_qos(source, storage)
        where = f"bag {source}"
        replaced = {
            t.name for name in {*OWN_TOPICS, *(a.topic for a in additions)} if (t := resolve(recorded, name, where))
        }
        foreign = {t.name for t in recorded if not _as_ours(t)}
        definitions = {n: d for n, d in _definitions(source, storage).items() if n in foreign} if foreign else {}
        problems, copied = [], set()
        custom = dict(storage.custom_data)
        try:
            outcome = outcome_from_text(custom.pop("outcome", "unlabelled"))
            termination = Termination[custom.pop("termination", "none").upper()]
        except (ValueError, KeyError) as error:
            raise AloeError(f"bag {source}: custom data: {error}") from None
        left = {key: value for key, value in custom.items() if key not in info.to_text()}
        with whole_bag(target, info) as bag:
            for topic in recorded:
                if topic.name in replaced:
                    continue
                definition, type_hash = definitions.get(topic.name, (None, ""))
                if topic.name in foreign and not definition:
                    problems.append(f"{topic.name} is not copied: the definition of {topic.type} is not known")
                    continue
                offered = qos.get(topic.name, RELIABLE)
                bag.add_topic(topic.name, topic.type, offered, definition, type_hash or topic.type_hash)
                copied.add(topic.name)
            waiting = sorted(additions, key=lambda a: a.log_time_ns)  # stable: messages of one time keep their order
            at = 0
            for raw in storage.scan(copied.__contains__):
                while at < len(waiting) and waiting[at].log_time_ns < raw.log_time_ns:
                    _add(bag, waiting[at])
                    at += 1
                bag.write(raw.topic, raw.type, bytes(raw.data), raw.log_time_ns, raw.publish_time_ns)
            for addition in waiting[at:]:
                _add(bag, addition)
            bag.close(outcome, termination, {**left, **extra, "replayed_from": source.resolve().name})
            _copy_labels(source, bag.folder)
    finally:
        storage.close()
    return problems


def _copy_labels(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source / LABELS_FILE, target / LABELS_FILE)
    except FileNotFoundError:
        pass  # none was given
    except OSError as error:
        raise AloeError(f"cannot copy {source / LABELS_FILE}: {error.strerror}") from None


def _as_ours(topic: Topic) -> bool:
    """Whether its messages are as this software defines their type; taken for granted where the bag has no hash."""
    return topic.type in typestore().fielddefs and topic.type_hash in ("", typestore().hash_rihs01(topic.type))


def _add(bag: BagWriter, addition: Addition) -> None:
    bag.write("/" + addition.topic.lstrip("/"), addition.type, addition.data, addition.log_time_ns)


def _definitions(folder: Path, storage: Storage) -> dict[str, tuple[str, str]]:
    """Topic -> (its message type's definition in ros2msg form, type hash), as the bag carries them."""
    if isinstance(storage, McapStorage):
        found: list[Topic] = McapStorage(folder, storage.files, None).topics()
        return {t.name: (t.definition, t.type_hash) for t in found}
    with Reader(folder) as reader:
        return {
            c.topic: (c.msgdef.data, c.digest or "")
            for c in reader.connections
            if c.msgdef.format == MessageDefinitionFormat.MSG
        }
