"""Writes one episode as one rosbag2 folder in MCAP storage, from serialized messages, without ROS.

Messages are written as they came over the wire and never deserialized. They are collected in chunks bounded in size and in time; a finished chunk is
handed to the operating system at once, so that a recorder killed by SIGKILL loses less than a second, and `aloe bags recover` restores the rest.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, cast

from mcap.opcode import Opcode
from mcap.writer import CompressionType, Writer
from rosbags.typesys import TypesysError

from aloe_core.bag_format import (
    METADATA_FILE,
    METADATA_RECORD,
    RELIABLE,
    ROSBAG2_KEY,
    ROSBAG2_RECORD,
    EpisodeInfo,
    TopicQos,
    TopicRecord,
    dump_yaml,
    mcap_path,
    replace_file,
    rosbag2_information,
)
from aloe_core.errors import AloeError
from aloe_core.messages import typestore
from aloe_core.vocabulary import Outcome, Termination

Compression = Literal["none", "lz4", "zstd"]
_COMPRESSION = {"none": CompressionType.NONE, "lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD}
_CHUNK = bytes([Opcode.CHUNK])
CHUNK_BYTES = 1 << 20  # our choice: rosbag2's and mcap's default; a chunk is the least a reader must decompress
CHUNK_SECONDS = 0.5  # [s] wall time; half of the second that a kill may cost


class _Output:
    """Unbuffered binary file: what `write` returned from is with the operating system and survives the death of this process.

    It is locked until it is closed, or this process dies: `recover` leaves alone what is being written.
    """

    _fd = -1

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._position = 0
        self.chunks = 0  # whole ones in the file

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._position += written
            view = view[written:]
        self.chunks += data[:1] == _CHUNK  # `mcap` writes a chunk by itself
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing is held back; `mcap` calls it."""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()  # a writer that was dropped, as after an error, holds no lock

    def sync(self) -> None:
        os.fsync(self._fd)


@dataclass(slots=True)
class _Topic:
    channel: int
    type: str
    qos: TopicQos
    type_hash: str
    count: int = 0


class BagWriter:
    """One episode's bag, open for writing.

        with BagWriter(bags / episode_id, info) as bag:
            bag.add_topic("/joint_states", "sensor_msgs/msg/JointState", RELIABLE)
            bag.write("/joint_states", "sensor_msgs/msg/JointState", cdr, log_time_ns)
            bag.close(Outcome.SUCCESS, Termination.TASK)

    Leaving the `with` block closes a bag that is still open; an exception leaves it as a kill would, for `aloe bags recover`. Not thread-safe: one
    thread writes.

    Args:
        folder: the bag's folder, `<bags>/<episode_id>`; must not exist, its parents are made.
        info: written into the file first, so that a killed recording still says what it is.
        compression: of MCAP chunks; the default is what `benchmarks/bench_bags.py` favours.
        chunk_bytes: a chunk is closed when it is larger [byte].
        chunk_seconds: a chunk is closed when its first message is older, wall time [s].
        final: where the caller moves the folder when the bag is whole; errors name it instead of `folder`.

    Raises:
        AloeError: the folder exists or cannot be made.
    """

    def __init__(
        self,
        folder: Path | str,
        info: EpisodeInfo,
        compression: Compression = "lz4",
        chunk_bytes: int = CHUNK_BYTES,
        chunk_seconds: float = CHUNK_SECONDS,
        final: Path | None = None,
    ) -> None:
        if compression not in _COMPRESSION:
            raise AloeError(f"bag compression '{compression}' is not one of: {', '.join(_COMPRESSION)}")
        self.folder = Path(folder)
        self.info = info
        self._final = final
        self._name = final or self.folder
        self.messages = 0  # taken by `write`,
        self.in_file = 0  # and how many of them, the first ones, are in the file in a whole chunk
        self._topics: dict[str, _Topic] = {}
        self._schemas: dict[tuple[str, str], int] = {}  # by type and definition
        self._chunk_seconds = chunk_seconds
        self._chunk_started: float | None = None  # monotonic [s] of the first message in the open chunk
        self._chunks = 0
        self._start_ns, self._end_ns = (1 << 63) - 1, 0
        self._failure: str | None = None
        self._closed = False
        try:
            self.folder.mkdir(parents=True)
            self._output = _Output(mcap_path(self.folder))
        except FileExistsError:
            raise _exists(self._name) from None
        except OSError as error:
            raise AloeError(f"cannot make the bag {self._name}: {error.strerror}") from None
        self._mcap = Writer(cast(IO[Any], self._output), chunk_size=chunk_bytes, compression=_COMPRESSION[compression])
        try:
            self._mcap.start(profile="ros2", library=f"aloe {info.software_version}")
            self._mcap.add_metadata(METADATA_RECORD, info.to_text())
        except OSError as error:
            raise self._fail(error) from None

    @property
    def size_bytes(self) -> int:
        """Size of the file so far [byte]."""
        return self._output.tell()

    @property
    def counts(self) -> dict[str, int]:
        """Messages written per topic."""
        return {topic: t.count for topic, t in self._topics.items()}

    def add_topic(
        self, topic: str, type: str, qos: TopicQos = RELIABLE, definition: str | None = None, type_hash: str = ""
    ) -> None:
        """Announces a topic with the quality of service it is offered with. Announcing it again with the same type changes nothing.

        Args:
            topic: absolute name.
            type: like `sensor_msgs/msg/JointState`.
            definition: `.msg` text with all dependencies (ros2msg schema) for a type that is neither ROS 2 Jazzy's nor ours.
            type_hash: REP-2011 hash that belongs to `definition`; may be empty.

        Raises:
            AloeError: the type is unknown and no definition is given, or the topic has another type already.
        """
        known = self._topics.get(topic)
        if known is not None:
            if known.type != type:
                raise AloeError(f"bag {self._name}: topic {topic} has type {known.type}, not {type}")
            return
        self._check_open()
        if definition is None:
            try:
                definition, _ = typestore().generate_msgdef(type, ros_version=2)
                type_hash = typestore().hash_rihs01(type)
            except (TypesysError, KeyError):
                raise AloeError(
                    f"bag {self._name}: message type {type} of {topic} is unknown; give its definition"
                ) from None
        try:
            schema = self._schemas.get((type, definition))
            if schema is None:
                schema = self._mcap.register_schema(type, "ros2msg", definition.encode())
                self._schemas[type, definition] = schema
            offered = {"offered_qos_profiles": dump_yaml([qos.to_rosbag2()]), "topic_type_hash": type_hash}
            channel = self._mcap.register_channel(topic, "cdr", schema, offered)
        except OSError as error:
            raise self._fail(error) from None
        self._topics[topic] = _Topic(channel, type, qos, type_hash)

    def write(self, topic: str, type: str, data: bytes, log_time_ns: int, publish_time_ns: int | None = None) -> None:
        """Appends one serialized (CDR) message; a topic that was not announced is taken to be reliable.

        Args:
            log_time_ns: when it was received [ns].
            publish_time_ns: when it was published [ns]; `log_time_ns` when unknown.

        Raises:
            AloeError: another type than the topic's, a bag that is closed, or the disk refuses (full).
        """
        entry = self._topics.get(topic)
        if entry is None or entry.type != type:
            self.add_topic(topic, type)
            entry = self._topics[topic]
        if self._closed:
            self._check_open()
        sequence = entry.count
        entry.count += 1
        self.messages += 1
        publish_time_ns = log_time_ns if publish_time_ns is None else publish_time_ns
        try:
            self._mcap.add_message(entry.channel, log_time_ns, data, publish_time_ns, sequence)
            self._look()
            self._start_ns, self._end_ns = min(self._start_ns, log_time_ns), max(self._end_ns, log_time_ns)
            now = time.monotonic()
            if self._chunk_started is None:
                self._chunk_started = now
            elif now - self._chunk_started >= self._chunk_seconds:
                self.flush()
        except OSError as error:
            raise self._fail(error) from None

    def flush_if_due(self) -> None:
        """Closes a chunk that has become too old; call it a few times a second while no messages come."""
        if self._chunk_started is not None and time.monotonic() - self._chunk_started >= self._chunk_seconds:
            self.flush()

    def flush(self) -> None:
        """Hands everything written so far to the operating system as a finished chunk."""
        self._check_open()
        try:
            self._mcap.flush()
        except OSError as error:
            raise self._fail(error) from None
        self._look()
        self._chunk_started = None

    def close(
        self,
        outcome: Outcome = Outcome.UNLABELLED,
        termination: Termination = Termination.NONE,
        extra: dict[str, str] | None = None,
    ) -> None:
        """Writes outcome, index and `metadata.yaml`. Closing twice changes nothing.

        Args:
            extra: further custom data, e.g. what an audit found.
        """
        if self._closed:
            return
        custom = (
            self.info.to_text()
            | {"outcome": outcome.name.lower(), "termination": termination.name.lower()}
            | (extra or {})
        )
        start_ns = self._start_ns if self.messages else 0
        topics = [TopicRecord(n, t.type, (t.qos.to_rosbag2(),), t.type_hash, t.count) for n, t in self._topics.items()]
        information = rosbag2_information(mcap_path(self.folder).name, topics, start_ns, self._end_ns, custom)
        try:
            self._mcap.flush()
            self._mcap.add_metadata(METADATA_RECORD, custom)
            self._mcap.add_metadata(ROSBAG2_RECORD, {"serialized_metadata": dump_yaml(information)})
            self._mcap.finish()
            self._output.sync()
            self._output.close()
            replace_file(self.folder / METADATA_FILE, dump_yaml({ROSBAG2_KEY: information}))
        except OSError as error:
            raise self._fail(error) from None
        self._look()
        self._closed = True

    def abandon(self) -> None:
        """Closes the file without index and `metadata.yaml`, as a kill would leave it. A closed bag stays as it is."""
        if self._closed:
            return
        try:
            self._mcap.flush()
        except OSError:
            pass  # the whole chunks before are kept
        self._look()
        self._closed = True
        self._output.close()

    def _look(self) -> None:
        """Notices that a chunk has come into the file; it holds all messages so far."""
        if self._output.chunks != self._chunks:
            self._chunks, self.in_file = self._output.chunks, self.messages

    def _check_open(self) -> None:
        if self._closed:
            raise AloeError(self._failure or f"bag {self._name} is closed")

    def _fail(self, error: OSError) -> AloeError:
        """Gives the bag up, keeping every whole chunk (recovery skips a torn one); later writes raise the same sentence."""
        self._look()
        self._closed = True
        self._output.close()
        self._failure = f"cannot write the bag {self._name}: {error.strerror or error}"
        if self._final is None:
            self._failure += f"; what was written before is kept, restore it with: aloe bags recover {self.folder}"
        return AloeError(self._failure)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


@contextmanager
def whole_bag(folder: Path, info: EpisodeInfo) -> Iterator[BagWriter]:
    """A bag that appears as `folder` when the block has ended, and not at all when the block raises.

    Until then it is in a hidden folder beside it; what belongs beside its file goes into `bag.folder`.

    Raises:
        AloeError: `folder` exists, or the disk refuses.
    """
    if folder.exists():
        raise _exists(folder)
    hidden = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)  # of a conversion that was killed
    try:
        with BagWriter(hidden / folder.name, info, final=folder) as bag:
            yield bag
        try:
            bag.folder.rename(folder)
        except OSError as error:
            raise AloeError(f"cannot make the bag {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _exists(folder: Path) -> AloeError:
    return AloeError(f"bag {folder} exists already; bags are never overwritten, choose another episode id")
