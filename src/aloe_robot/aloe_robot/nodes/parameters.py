"""ROS parameters with named checks: `1` is as good as `1.0`, any other wrong type is one sentence, and a running node refuses to have them set."""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from aloe_core.errors import AloeError

Config = TypeVar("Config")
Value = TypeVar("Value")


def declare(node: Node, name: str, default: Value) -> Value:
    """Declares a parameter of the type of `default` and returns its value; a tuple stands for a list of whatever its first item is.

    Raises:
        AloeError: the value has another type; the sentence names the parameter.
    """
    # Typed by us: ROS takes no `1` for a float, and an empty list has no type in it.
    descriptor = ParameterDescriptor(dynamic_typing=True, read_only=True)
    node.declare_parameter(name, list(default) if isinstance(default, tuple) else default, descriptor)
    return _as(name, node.get_parameter(name).value, default)


def declare_config(node: Node, config: type[Config], defaults: Config | None = None) -> Config:
    """Declares a parameter for each field of `config` that the node does not have yet and builds it from their values.

    `defaults` are the values of parameters that nobody gives; without it those of the dataclass.

    Raises:
        AloeError: a value has the wrong type, or the dataclass refuses it.
    """
    values = {}
    for field in fields(config):
        default = field.default if defaults is None else getattr(defaults, field.name)
        if not node.has_parameter(field.name):
            declare(node, field.name, default)
        values[field.name] = _as(field.name, node.get_parameter(field.name).value, field.default)
    return config(**values)


def _as(key: str, value: object, default: object) -> object:
    """`value` with the type of `default`; an int will do for a float."""
    if isinstance(default, tuple):
        if value is None or isinstance(value, str) or not hasattr(value, "__iter__"):
            if value is not None:
                raise AloeError(f"parameter '{key}': {value!r} is not a list")
            return ()
        example = default[0] if default else 0
        return tuple(_as(key, item, example) for item in value)
    if isinstance(default, (bool, str)):
        fits = isinstance(value, type(default))
    elif isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits:
        raise AloeError(f"parameter '{key}': {value!r} is not of type {type(default).__name__}")
    return type(default)(value)
