"""Restores a recording that was killed: what is whole in the file is written again, with index and `metadata.yaml`."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from aloe_core import topics as names
from aloe_core.bag_format import METADATA_FILE, EpisodeInfo, RawMessage, Topic, TopicQos, mcap_path
from aloe_core.bag_images import deserialize
from aloe_core.bag_mcap import McapStorage
from aloe_core.bag_messages import check_type
from aloe_core.bag_storage import open_storage
from aloe_core.bag_writer import BagWriter
from aloe_core.errors import AloeError
from aloe_core.vocabulary import EventType, Outcome, Termination

ORIGINAL_SUFFIX = ".unfinalized"
WORK_FOLDER = ".recovering"
EVENT_TYPE = "aloe_msgs/msg/EpisodeEvent"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` did.

    Attributes:
        needed: False if the bag was closed properly and nothing was changed.
        messages: messages in the recovered bag.
        originals: where the killed recording is kept.
        damage: parts that could not be read, a sentence each.
    """

    folder: Path
    needed: bool
    messages: int
    originals: tuple[Path, ...]
    damage: tuple[str, ...]


def recover(folder: Path | str) -> Recovery:
    """Makes a killed recording a proper bag, in place; the original stays beside it as `*.unfinalized`.

    Killed itself at any moment, it can be run again: the recovered file replaces the other in one step, `metadata.yaml` comes last.

    Raises:
        AloeError: no MCAP bag, nothing readable in it, another process writes or recovers it, or the disk refuses.
    """
    folder = Path(folder).resolve()
    with ExitStack() as open_files:
        storage = open_storage(folder)
        open_files.callback(storage.close)
        if storage.finalised or not isinstance(storage, McapStorage):
            return Recovery(folder, False, 0, (), ())
        for path in (folder, *storage.files):
            if lock(path, open_files) is False:
                raise AloeError(f"bag {folder} is being written, or recovered, by another process; it is left alone")
        if (folder / METADATA_FILE).exists():  # meanwhile
            return Recovery(folder, False, 0, (), ())
        return _recover(folder, storage)


def lock(path: Path, until: ExitStack) -> bool | None:
    """Whether nobody else has locked `path`, which then is locked until `until` closes; None: this file system has no locks, nobody can tell.

    Raises:
        AloeError: `path` cannot be opened.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise AloeError(f"{path}: not readable: {error.strerror}") from None
    until.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _recover(folder: Path, storage: McapStorage) -> Recovery:
    work = folder / WORK_FOLDER
    shutil.rmtree(work, ignore_errors=True)  # of a recovery that was killed
    damage: list[str] = []
    try:
        messages = _rewrite(storage, work / folder.name, damage)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if messages == 0:
        shutil.rmtree(work)
        raise AloeError(
            f"bag {folder}: no whole message in it, nothing can be recovered; the files are left as they are"
        )
    originals = tuple(_keep(file) for file in storage.files)
    os.replace(mcap_path(work / folder.name), mcap_path(folder))
    for file in storage.files:
        if file != mcap_path(folder):
            file.unlink()
    os.replace(work / folder.name / METADATA_FILE, folder / METADATA_FILE)
    shutil.rmtree(work)
    return Recovery(folder, True, messages, originals, tuple(damage))


def _rewrite(storage: McapStorage, target: Path, damage: list[str]) -> int:
    """Copies every whole message into a new bag; returns their number."""
    custom = storage.custom_data
    where = f"bag {storage.folder}"
    info = EpisodeInfo.from_text(custom, where) if custom.get("episode_id") else EpisodeInfo("", software_version="")
    outcome, termination = Outcome.UNLABELLED, Termination.NONE
    with BagWriter(target, info) as bag:
        for raw, topic in storage.scan_with_topics(damage):
            bag.add_topic(raw.topic, raw.type, TopicQos.from_rosbag2(topic.qos), topic.definition, topic.type_hash)
            bag.write(raw.topic, raw.type, bytes(raw.data), raw.log_time_ns, raw.publish_time_ns)
            try:
                outcome, termination = _ending(raw, topic, info.episode_id, where) or (outcome, termination)
            except AloeError as error:
                damage.append(str(error))
        found = f"{bag.messages} messages" + (f", {len(damage)} parts could not be read" if damage else "")
        bag.close(outcome, termination, {"recovered": found})
        return bag.messages


def _ending(raw: RawMessage, topic: Topic, episode_id: str, where: str) -> tuple[Outcome, Termination] | None:
    """How the episode ended, if `raw` is the event that says so.

    Raises:
        AloeError: an event that cannot be read, or with an outcome or a reason that does not exist.
    """
    if raw.type != EVENT_TYPE or not raw.topic.endswith("/" + names.EPISODE_EVENT):
        return None
    check_type(topic, where)
    event = deserialize(raw.data, raw.type, f"{where}: {raw.topic}")
    if event.episode_id != episode_id or event.event != EventType.STOPPED:
        return None
    try:
        return Outcome(event.outcome), Termination(event.termination_reason)
    except ValueError as error:
        raise AloeError(f"{where}: {raw.topic}: {error}") from None


def _keep(file: Path) -> Path:
    """A second name for the original, so that replacing the first loses nothing."""
    kept, number = file.with_name(file.name + ORIGINAL_SUFFIX), 1
    while kept.exists():
        kept, number = file.with_name(f"{file.name}{ORIGINAL_SUFFIX}.{number}"), number + 1
    try:
        os.link(file, kept)
    except OSError:  # a file system without hard links, such as exFAT
        shutil.copy2(file, kept)
    return kept
