"""Images of one camera inside a bag, decoded one by one when asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from aloe_core.bag_format import Place
from aloe_core.bag_storage import Storage
from aloe_core.errors import AloeError
from aloe_core.messages import typestore
from aloe_core.observation import decode_image

COMPRESSED = "sensor_msgs/msg/CompressedImage"
RAW = "sensor_msgs/msg/Image"
_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


def deserialize(data: memoryview | bytes, type: str, where: str) -> Any:
    """A message object with the attributes of the ROS message.

    Raises:
        AloeError: the bytes are not such a message, or the type is unknown.
    """
    store = typestore()
    if type not in store.fielddefs:
        raise AloeError(f"{where}: message type {type} is unknown here")
    try:
        return store.deserialize_cdr(data, type)
    except Exception as error:  # `rosbags` raises whatever damaged bytes lead to
        raise AloeError(f"{where}: not a {type} ({error.__class__.__name__}: {error})") from None


def image_array(message: Any, where: str) -> np.ndarray:
    """`sensor_msgs/Image` -> uint8 `[h, w, 3]` RGB.

    Raises:
        AloeError: an encoding other than 8-bit RGB, BGR (with or without alpha) and grey, or too few bytes.
    """
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        raise AloeError(f"{where}: image encoding '{message.encoding}' is not one of: {', '.join(_CHANNELS)}")
    height, width, row = message.height, message.width, message.step or message.width * channels
    data = np.asarray(message.data, np.uint8)
    if row < width * channels or data.size < height * row or not height or not width:
        raise AloeError(f"{where}: {data.size} bytes are not an image of {height} x {width} {message.encoding}")
    pixels = data[: height * row].reshape(height, row)[:, : width * channels].reshape(height, width, channels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    order = [2, 1, 0] if message.encoding.startswith("bgr") else [0, 1, 2]
    return np.ascontiguousarray(pixels[:, :, order])


class CameraTrack:
    """The images of one camera in the order of their stamps.

    Attributes:
        stamps_ns: int64 `[n]`, strictly increasing.
    """

    def __init__(self, storage: Storage, topic: str, type: str, images: list[tuple[int, Place]]) -> None:
        self.topic = topic
        self._type = type
        self._storage = storage
        unique: dict[int, Place] = {}
        for stamp_ns, place in images:
            unique.setdefault(stamp_ns, place)
        ordered = sorted(unique.items())
        self.stamps_ns = np.array([stamp for stamp, _ in ordered], np.int64)
        self._places = [place for _, place in ordered]

    def __len__(self) -> int:
        return len(self._places)

    def index_at(self, stamps_ns: np.ndarray) -> np.ndarray:
        """Index of the newest image with stamp <= each of `stamps_ns` int64 `[...]`; -1 where there is none."""
        return np.searchsorted(self.stamps_ns, stamps_ns, side="right") - 1

    def encoded(self, index: int) -> np.ndarray:
        """JPEG or PNG bytes uint8 `[n]`, or the pixels uint8 `[h, w, 3]` RGB of an uncompressed image."""
        where = f"bag {self._storage.folder}: {self.topic}"
        message = deserialize(self._storage.fetch(self._places[index]), self._type, where)
        return np.asarray(message.data) if self._type == COMPRESSED else image_array(message, where)

    def decode(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Image uint8 `[h, w, 3]` RGB, resized to `size` = (height, width) [pixel] when given."""
        return decode_image(self.encoded(index), size, where=f"bag {self._storage.folder}: {self.topic}")
