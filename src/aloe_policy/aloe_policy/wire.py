"""The frames of openpi's policy protocol: msgpack with numpy arrays as maps of type, shape and raw bytes. Nothing in a frame is ever executed."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from aloe_core.errors import AloeError

MAX_FRAME_BYTES = 16 * 2**20  # our choice: three uncompressed 1280x960 images fit
DEFAULT_PORT = 8000  # openpi's
_KINDS = "biuf"  # numbers and truth values; objects would need pickle
_MAX_DIMENSIONS = 8


def pack(message: dict[str, Any]) -> bytes:
    """A message as one binary frame.

    Raises:
        AloeError: an array that is not of numbers.
    """
    return msgpack.packb(message, default=_encode)


def unpack(frame: bytes | str, where: str) -> dict[str, Any]:
    """The inverse of `pack`.

    Raises:
        AloeError: a text frame, broken msgpack, an array whose bytes do not fit its shape, or no mapping at all.
    """
    if isinstance(frame, str):
        raise AloeError(f"{where}: a text frame where a binary one was due")
    try:
        message = msgpack.unpackb(frame, object_hook=_decode, strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise AloeError(f"{where}: malformed frame of {len(frame)} bytes: {error or type(error).__name__}") from None
    if not isinstance(message, dict):
        raise AloeError(f"{where}: a frame holds a mapping, not a {type(message).__name__}")
    return message


def _encode(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in _KINDS:
        raise AloeError(f"arrays of type {value.dtype} cannot be sent")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _decode(item: dict) -> Any:
    if b"__ndarray__" in item:
        dtype, shape, data = _dtype(item), item.get(b"shape"), item.get(b"data")
        if (
            not isinstance(shape, list)
            or len(shape) > _MAX_DIMENSIONS
            or not all(isinstance(n, int) and n >= 0 for n in shape)
        ):
            raise ValueError(f"array shape {shape!r}")
        size = dtype.itemsize
        for n in shape:
            size *= n
        if not isinstance(data, bytes) or len(data) != size:
            raise ValueError(f"an array of shape {shape} and type {dtype} needs {size} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in item:
        return _dtype(item).type(item.get(b"data"))
    return item


def _dtype(item: dict) -> np.dtype:
    text = item.get(b"dtype")
    dtype = np.dtype(text) if isinstance(text, str) and "," not in text else None
    if dtype is None or dtype.kind not in _KINDS:
        raise ValueError(f"array type {text!r}")
    return dtype
