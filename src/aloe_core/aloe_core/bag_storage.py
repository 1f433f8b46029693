"""Opens any bag folder as raw messages: ours, those of `ros2 bag record` (MCAP or sqlite3), and recordings that were killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from rosbags.rosbag2 import Reader

from aloe_core.bag_format import METADATA_FILE, ROSBAG2_KEY, Place, RawMessage, Topic, custom_data_of, topic_of
from aloe_core.bag_mcap import McapStorage
from aloe_core.errors import AloeError
from aloe_core.yaml_file import FAULTS, parse_yaml


class Storage(Protocol):
    """The open files of one bag."""

    folder: Path
    finalised: bool  # closed properly: index and metadata.yaml are there
    custom_data: dict[str, str]

    def topics(self) -> list[Topic]:
        """Every recorded topic."""
        ...

    def scan(self, wanted: Callable[[str], bool], damage: list[str] | None = None) -> Iterator[RawMessage]:
        """Messages of the wanted topics in the order of recording.

        Args:
            damage: collects a sentence per damaged part, which is skipped; without it damage is an error.

        Raises:
            AloeError: the bag is damaged; the message names file and place.
        """
        ...

    def fetch(self, place: Place) -> memoryview:
        """The serialized message at a place that `scan` gave."""
        ...

    def close(self) -> None:
        """Closes the files; messages and places are invalid afterwards."""
        ...


def open_storage(folder: Path) -> Storage:
    """Opens the bag in `folder`.

    Raises:
        AloeError: no bag there, or its metadata is unreadable; the message names the file.
    """
    information = read_information(folder)
    if information is None:
        files = sorted(folder.glob("*.mcap"))
        if not files:
            raise AloeError(f"{folder} is not a bag: it has neither {METADATA_FILE} nor an MCAP file")
        return McapStorage(folder, files, None)
    if information["storage_identifier"] == "mcap" and not information.get("compression_mode"):
        files = [folder / PurePosixPath(str(name)).name for name in information["relative_file_paths"]]
        for file in files:
            if not os.path.isfile(file):  # also false for a name that no file can have, where Path raises
                raise AloeError(f"bag {folder}: {METADATA_FILE} names {file.name}, which is missing")
        return McapStorage(folder, files, information)
    return RosbagsStorage(folder, information)


def read_information(folder: Path) -> dict[str, Any] | None:
    """What `metadata.yaml` says, or None if there is no such file.

    Raises:
        AloeError: the file is not rosbag2 metadata; the message names it.
    """
    file = folder / METADATA_FILE
    try:
        data = parse_yaml(file.read_text(encoding="utf-8"), str(file))
        information: dict[str, Any] = data[ROSBAG2_KEY]
        for topic in information["topics_with_message_count"]:
            topic_of(topic)
        paths = information["relative_file_paths"]
        if not isinstance(paths, list) or not paths or not isinstance(information["storage_identifier"], str):
            raise TypeError("no files or no storage")
        custom_data_of(information)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AloeError(f"{file}: not readable: {error.strerror}") from None
    except FAULTS as error:
        raise AloeError(
            f"{file}: not the metadata of a bag ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from None
    return information


class RosbagsStorage:
    """sqlite3 bags and bags with rosbag2's own compression, through `rosbags`."""

    finalised = True

    def __init__(self, folder: Path, information: Mapping[str, Any]) -> None:
        self.folder = folder
        self.custom_data = custom_data_of(information)
        self._topics = [topic_of(entry) for entry in information["topics_with_message_count"]]
        self._reader = Reader(folder)
        try:
            self._reader.open()
        except Exception as error:  # `rosbags` raises whatever damaged bytes lead to
            raise self._error(error) from None

    def topics(self) -> list[Topic]:
        return self._topics

    def scan(self, wanted: Callable[[str], bool], damage: list[str] | None = None) -> Iterator[RawMessage]:
        connections = [c for c in self._reader.connections if wanted(c.topic)]
        if not connections:
            return
        messages = self._reader.messages(connections)
        newest: dict[str, tuple[int, int]] = {}  # topic -> (time, how many messages had it before)
        while True:
            try:
                connection, time_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # as above
                if damage is None:
                    raise self._error(error) from None
                damage.append(str(self._error(error)))
                return
            if not _is_message(time_ns, data):
                wrong = self._error(
                    TypeError(f"{connection.topic}: a message whose time or content is of another type")
                )
                if damage is None:
                    raise wrong
                damage.append(str(wrong))
                continue
            before, repeat = newest.get(connection.topic, (-1, 0))
            repeat = repeat + 1 if before == time_ns else 0
            newest[connection.topic] = (time_ns, repeat)
            place = (connection.topic, time_ns, repeat)
            yield RawMessage(connection.topic, connection.msgtype, time_ns, time_ns, memoryview(data), place)

    def fetch(self, place: Place) -> memoryview:
        topic, time_ns, repeat = place
        connections = [c for c in self._reader.connections if c.topic == topic]
        try:
            found = self._reader.messages(connections, start=time_ns, stop=time_ns + 1)
            return memoryview([data for _, at_ns, data in found if _is_message(at_ns, data)][repeat])
        except Exception as error:  # as above
            raise self._error(error) from None

    def close(self) -> None:
        if self._reader.is_open:
            self._reader.close()

    def _error(self, error: Exception) -> AloeError:
        return AloeError(f"bag {self.folder}: not readable ({type(error).__name__}: {error})")


def _is_message(time_ns: object, data: object) -> bool:
    """Whether these are a time and the bytes of a message: SQLite keeps a value of any type in any column."""
    return isinstance(time_ns, int) and isinstance(data, bytes | bytearray | memoryview)
