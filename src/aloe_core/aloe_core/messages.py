"""Messages without ROS: the same conversions serve rclpy's message classes and those that write bags on a machine without ROS.

A `Make` builds a message from its type name and all of its fields. `ros_make` builds rclpy messages, `bag_make` those of `rosbags`; readers
need neither, for both have the same attributes.
"""

from __future__ import annotations

import importlib
import struct
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from aloe_core.chunk import NANOSECONDS, ActionChunk
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

Make = Callable[..., Any]
INTERFACES = Path(__file__).resolve().parent / "interfaces"
_TYPECODES = {"f4": "f", "f8": "d", "u1": "B", "u4": "I", "u8": "Q", "i8": "q"}


@cache
def typestore() -> Typestore:
    """ROS 2 Jazzy's message types and ours, for `rosbags`."""
    store = get_typestore(Stores.ROS2_JAZZY)
    files = sorted((INTERFACES / "msg").glob("*.msg"))
    if not files:
        raise AloeError(f"the interface definitions of aloe_msgs are missing from {INTERFACES}; reinstall aloe_core")
    types: dict = {}
    for file in files:
        types |= get_types_from_msg(file.read_text(), f"aloe_msgs/msg/{file.stem}")
    store.register(types)
    return store


def bag_make(type_name: str, **fields: Any) -> Any:
    """A message for `rosbags`; `type_name` like `aloe_msgs/msg/ActionChunk`; every field must be given."""
    return typestore().types[type_name](**fields)


def ros_make(type_name: str, **fields: Any) -> Any:
    """An rclpy message; numeric numpy arrays become the `array.array` that rclpy keeps without copying element by element."""
    message = ros_class(type_name)()
    for key, value in fields.items():
        if isinstance(value, np.ndarray):
            value = array(_TYPECODES[value.dtype.str[1:]], np.ascontiguousarray(value).tobytes())
        setattr(message, key, value)
    return message


@cache
def ros_class(type_name: str) -> type:
    """rclpy's class of a type like `sensor_msgs/msg/JointState`. It imports the package: the name must not come from a file unchecked."""
    package, _, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def stamp_to_ns(stamp: Any) -> int:
    """`builtin_interfaces/Time` -> nanoseconds."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def has_header(type: str) -> bool:
    """Whether messages of this type begin with `std_msgs/Header`."""
    definition = typestore().fielddefs.get(type)
    return bool(definition and definition[1] and definition[1][0][0] == "header")


def header_stamp_ns(data: bytes | memoryview, where: str = "message") -> int:
    """Stamp [ns] of a serialized message that begins with a header: the eight bytes after the CDR encapsulation, in the order it names.

    Raises:
        AloeError: the message is too short to have one; the sentence begins with `where`.
    """
    if len(data) < 12:
        raise AloeError(f"{where}: a message of {len(data)} bytes has no header")
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * NANOSECONDS + int(nanosec)


def time_msg(make: Make, ns: int) -> Any:
    """Nanoseconds -> `builtin_interfaces/Time`."""
    return make("builtin_interfaces/msg/Time", sec=int(ns // NANOSECONDS), nanosec=int(ns % NANOSECONDS))


def header_msg(make: Make, ns: int, frame_id: str = "") -> Any:
    """`std_msgs/Header` with a stamp in nanoseconds."""
    return make("std_msgs/msg/Header", stamp=time_msg(make, ns), frame_id=frame_id)


def joint_state_msg(
    make: Make, ns: int, names: tuple[str, ...], position: np.ndarray, velocity: np.ndarray | None = None
) -> Any:
    """`sensor_msgs/JointState`; position and velocity float64 `[A]` in device units."""
    none = np.empty(0, np.float64)
    return make(
        "sensor_msgs/msg/JointState",
        header=header_msg(make, ns),
        name=list(names),
        position=np.asarray(position, np.float64),
        velocity=none if velocity is None else np.asarray(velocity, np.float64),
        effort=none,
    )


def compressed_image_msg(make: Make, ns: int, frame_id: str, jpeg: bytes) -> Any:
    """`sensor_msgs/CompressedImage` holding a JPEG."""
    data = np.frombuffer(jpeg, np.uint8)
    return make("sensor_msgs/msg/CompressedImage", header=header_msg(make, ns, frame_id), format="jpeg", data=data)


def chunk_msg(make: Make, chunk: ActionChunk, robot: RobotDescription) -> Any:
    """`ActionChunk` -> `aloe_msgs/ActionChunk`."""
    return make(
        "aloe_msgs/msg/ActionChunk",
        header=header_msg(make, chunk.stamp_ns),
        episode_id=chunk.episode_id,
        chunk_id=chunk.chunk_id,
        request_id=chunk.request_id,
        policy_version=chunk.policy_version,
        joint_names=list(robot.action_names),
        dt=chunk.dt_ns / NANOSECONDS,
        horizon=chunk.horizon,
        positions=np.ascontiguousarray(chunk.positions, np.float32).reshape(-1),
        inference_latency=chunk.inference_latency_s,
        camera_names=list(chunk.camera_stamps_ns),
        camera_stamps=[time_msg(make, ns) for ns in chunk.camera_stamps_ns.values()],
    )


def chunk_from_msg(message: Any, robot: RobotDescription) -> ActionChunk:
    """`aloe_msgs/ActionChunk` -> `ActionChunk`.

    Raises:
        AloeError: joints other than the robot's, or a size or number that does not fit; the message says which.
    """
    names = list(message.joint_names)
    if names != list(robot.action_names):
        raise AloeError(
            f"chunk {message.chunk_id} is for joints {names}, the robot '{robot.name}' has {list(robot.action_names)}"
        )
    positions = np.asarray(message.positions, dtype=np.float32)
    if message.horizon < 1 or positions.size != message.horizon * robot.action_dim:
        raise AloeError(
            f"chunk {message.chunk_id} has {positions.size} numbers, not {message.horizon} rows of {robot.action_dim}"
        )
    if not message.dt > 0 or not np.isfinite(message.dt):
        raise AloeError(f"chunk {message.chunk_id} has a time step of {message.dt} s")
    cameras, stamps = list(message.camera_names), list(message.camera_stamps)
    if len(cameras) != len(stamps):
        raise AloeError(f"chunk {message.chunk_id} has {len(cameras)} camera names but {len(stamps)} camera stamps")
    return ActionChunk(
        stamp_ns=stamp_to_ns(message.header.stamp),
        positions=positions.reshape(message.horizon, robot.action_dim),
        dt_ns=round(message.dt * NANOSECONDS),
        chunk_id=message.chunk_id,
        request_id=message.request_id,
        policy_version=message.policy_version,
        episode_id=message.episode_id,
        inference_latency_s=message.inference_latency,
        camera_stamps_ns={n: stamp_to_ns(s) for n, s in zip(cameras, stamps, strict=True)},
    )


def constants(type_name: str) -> SimpleNamespace:
    """Constants of one of our messages, from its definition: `constants("aloe_msgs/msg/EpisodeEvent").STARTED`."""
    definitions, _ = typestore().fielddefs[type_name]
    return SimpleNamespace(**{name: value for name, _, value in definitions})
