"""MCAP files read from front to back, which needs no index and hence works for a killed recording as well.

Files are memory-mapped; checksums of chunks are verified on the way. A message is named by its place in the file, so that images can be fetched later one by
one, without a copy where chunks are not compressed.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Metadata, Schema

from aloe_core.bag_format import METADATA_FILE, METADATA_RECORD, Place, RawMessage, Topic, custom_data_of, topic_of
from aloe_core.errors import AloeError

MAGIC = b"\x89MCAP0\r\n"
_HEAD = struct.Struct("<BQ")  # opcode, length of the body
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_CHUNK = struct.Struct("<QQQII")  # first time, last time, size, CRC, length of the compression's name
MAX_CHUNK = 1 << 32  # [byte] our choice: a larger chunk is a damaged length, not data
CACHED_CHUNKS = 8


class McapStorage:
    """One or several MCAP files in the order of recording."""

    def __init__(self, folder: Path, files: list[Path], information: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.files = files
        self._maps = [_map(file) for file in files]
        ended = all(m[-len(MAGIC) :] == MAGIC and len(m) > 2 * len(MAGIC) for m in self._maps)
        if information is not None and not ended:
            raise AloeError(
                f"bag {folder}: {files[-1].name} ends abruptly although {METADATA_FILE} is there; it was truncated later"
            )
        self.finalised = information is not None
        self.complete = ended
        self._information = information
        self._chunks: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self.custom_data = self._record_data() if information is None else custom_data_of(information)

    def topics(self) -> list[Topic]:
        if self._information is not None:
            return [topic_of(entry) for entry in self._information["topics_with_message_count"]]
        found: dict[str, Topic] = {}
        for index in range(len(self.files)):
            channels: dict[int, Topic] = {}
            for _ in self._walk(index, channels, lambda topic: False, []):
                pass
            found |= {t.name: t for t in channels.values()}
        return list(found.values())

    def scan(self, wanted: Callable[[str], bool], damage: list[str] | None = None) -> Iterator[RawMessage]:
        for index in range(len(self.files)):
            yield from self._walk(index, {}, wanted, damage)

    def scan_with_topics(self, damage: list[str]) -> Iterator[tuple[RawMessage, Topic]]:
        """Every message that can still be read, with its topic's definition and QoS: for recovery."""
        for index in range(len(self.files)):
            channels: dict[int, Topic] = {}
            by_name: dict[str, Topic] = {}
            for message in self._walk(index, channels, lambda topic: True, damage):
                if message.topic not in by_name:
                    by_name = {t.name: t for t in channels.values()}
                yield message, by_name[message.topic]

    def fetch(self, place: Place) -> memoryview:
        index, chunk, offset, length = place
        data = memoryview(self._maps[index]) if chunk < 0 else self._chunk(index, chunk)
        return data[offset : offset + length]

    def close(self) -> None:
        self._chunks.clear()
        self._maps.clear()  # the maps close when the last message that points into them is gone

    def _record_data(self) -> dict[str, str]:
        """The newest MCAP metadata record of ours: a killed recording has the one written at its start."""
        data: dict[str, str] = {}
        for index in range(len(self.files)):
            for opcode, at, length in self._records(index, None):
                if opcode == Opcode.METADATA:
                    record = self._parse(Metadata, self._maps[index], at, length, index)
                    if record.name == METADATA_RECORD:
                        data |= record.metadata
        return data

    def _records(self, index: int, damage: list[str] | None) -> Iterator[tuple[int, int, int]]:
        """(opcode, start, length) of every whole top-level record of the data section."""
        data = self._maps[index]
        end = len(data) - (len(MAGIC) if self.complete else 0)
        at = len(MAGIC)
        while at + _HEAD.size <= end:
            opcode, length = _HEAD.unpack_from(data, at)
            start = at + _HEAD.size
            if start + length > end or opcode == 0 or opcode > Opcode.DATA_END:
                if self.complete:
                    self._damaged(f"record at byte {at} is damaged; what follows it is lost", index, damage)
                return  # torn by a kill
            if opcode == Opcode.DATA_END:
                return
            yield opcode, start, length
            at = start + length
        if self.complete:
            self._damaged("the end of its data is missing", index, damage)

    def _walk(
        self, index: int, channels: dict[int, Topic], wanted: Callable[[str], bool], damage: list[str] | None
    ) -> Iterator[RawMessage]:
        data = memoryview(self._maps[index])
        schemas: dict[int, Schema] = {}
        use: dict[int, bool] = {}
        for opcode, at, length in self._records(index, damage):
            if opcode == Opcode.CHUNK:
                try:
                    chunk, base = self._open_chunk(index, at)
                    place = -1 if base else at
                    yield from self._messages(index, chunk, place, base, schemas, channels, use, wanted)
                except AloeError as error:
                    if damage is None:
                        raise
                    damage.append(str(error))
            elif opcode in (Opcode.MESSAGE, Opcode.SCHEMA, Opcode.CHANNEL):
                part = data[at - _HEAD.size : at + length]
                yield from self._messages(index, part, -1, at - _HEAD.size, schemas, channels, use, wanted)

    def _messages(
        self,
        index: int,
        data: memoryview,
        chunk: int,
        base: int,
        schemas: dict[int, Schema],
        channels: dict[int, Topic],
        use: dict[int, bool],
        wanted: Callable[[str], bool],
    ) -> Iterator[RawMessage]:
        """Messages within one chunk's records; `base` is added to offsets to make a place."""
        at, end = 0, len(data)
        while at < end:
            if at + _HEAD.size > end:
                raise self._error("a chunk ends in the middle of a record", index)
            opcode, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            if at + length > end:
                raise self._error("a record is longer than its chunk", index)
            if opcode == Opcode.MESSAGE:
                if length < _MESSAGE.size:
                    raise self._error("a message is shorter than its header", index)
                channel, _, log_time, publish_time = _MESSAGE.unpack_from(data, at)
                topic = channels.get(channel)
                if topic is None:
                    raise self._error(f"a message belongs to channel {channel}, which was never announced", index)
                if use[channel]:
                    start, size = at + _MESSAGE.size, length - _MESSAGE.size
                    body = data[start : start + size]
                    place = (index, chunk, base + start, size)
                    yield RawMessage(topic.name, topic.type, log_time, publish_time, body, place)
            elif opcode == Opcode.SCHEMA:
                schema = self._parse(Schema, data, at, length, index)
                schemas[schema.id] = schema
            elif opcode == Opcode.CHANNEL:
                record = self._parse(Channel, data, at, length, index)
                about = schemas.get(record.schema_id)
                if about is None:
                    raise self._error(f"topic {record.topic} has no message definition", index)
                channels[record.id] = Topic(
                    record.topic,
                    about.name,
                    record.metadata.get("topic_type_hash", ""),
                    -1,
                    about.data.decode(errors="replace"),
                    record.metadata.get("offered_qos_profiles", ""),
                )
                use[record.id] = wanted(record.topic)
            at += length

    def _chunk(self, index: int, at: int) -> memoryview:
        found = self._chunks.get((index, at))
        if found is None:
            found, _ = self._open_chunk(index, at)
            self._chunks[index, at] = found
            if len(self._chunks) > CACHED_CHUNKS:
                self._chunks.popitem(last=False)
        return found

    def _open_chunk(self, index: int, at: int) -> tuple[memoryview, int]:
        """Records of the chunk whose body begins at `at`, checked; and where they lie in the file, 0 if they had to be decompressed."""
        data = memoryview(self._maps[index])
        try:
            _, _, size, crc, name_length = _CHUNK.unpack_from(data, at)
            at_size = at + _CHUNK.size + name_length
            compression = bytes(data[at + _CHUNK.size : at_size])
            (stored,) = struct.unpack_from("<Q", data, at_size)
            start = at_size + 8
            if size > MAX_CHUNK or start + stored > len(data):
                raise ValueError("impossible size")
            body = data[start : start + stored]
            base = 0
            if compression == b"":
                records, base = body, start
            elif compression == b"lz4":
                records = memoryview(lz4.frame.LZ4FrameDecompressor().decompress(body, max_length=size + 1))
            elif compression == b"zstd":
                if zstandard.frame_content_size(body) not in (-1, size):  # -1: the frame does not say
                    raise ValueError(f"not of the {size} bytes it declares")
                records = memoryview(zstandard.ZstdDecompressor().decompress(body, max_output_size=size))
            else:
                raise ValueError(f"unknown compression {compression[:16]!r}")
            if len(records) != size:
                raise ValueError(f"not of the {size} bytes it declares")
            if crc and zlib.crc32(records) != crc:
                raise ValueError("checksum")
        except (ValueError, struct.error, zstandard.ZstdError, RuntimeError, MemoryError) as error:
            raise self._error(f"the chunk at byte {at} is damaged ({error})", index) from None
        return records, base

    def _parse(self, record: Any, data: Any, at: int, length: int, index: int) -> Any:
        try:
            return record.read(ReadDataStream(BytesIO(data[at : at + length])))
        except Exception as error:  # `mcap` raises whatever damaged bytes lead to
            raise self._error(
                f"a {record.__name__.lower()} record is damaged ({type(error).__name__})", index
            ) from None

    def _damaged(self, what: str, index: int, damage: list[str] | None) -> None:
        error = self._error(what, index)
        if damage is None:
            raise error
        damage.append(str(error))

    def _error(self, what: str, index: int) -> AloeError:
        return AloeError(f"bag {self.folder}: {self.files[index].name}: {what}")


def _map(file: Path) -> mmap.mmap:
    try:
        with open(file, "rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise AloeError(f"{file}: not readable: {error}") from None
    if data[: len(MAGIC)] != MAGIC:
        raise AloeError(f"{file}: not an MCAP file")
    return data
