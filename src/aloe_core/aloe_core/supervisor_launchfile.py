"""Reads launch files in ROS 2's YAML front end into a flat list of nodes to start: the subset `aloe up` runs.

Understood: `arg`, `let`, `group`, `include` and `node` with the keys in `_KEYS`, each with `if` / `unless`. The meaning
is that of ROS 2's `launch`: one table of configurations, filled in file order, shared with included files and restored
after a scoped group. Anything else is refused by name, with file and line.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aloe_core.errors import AloeError
from aloe_core.supervisor_substitutions import Scope, as_bool, has_substitution, substitute
from aloe_core.yaml_file import parse_yaml

OUTPUTS = ("screen", "log", "both")
PARAMETER_TYPES = {"int": int, "float": float, "bool": bool, "str": str}
NODE_TYPES = {
    "respawn": str,
    "respawn_delay": float,
    "respawn_max_retries": int,
}  # what ROS 2's own parser takes for them

_KEYS: dict[str, tuple[set[str], set[str]]] = {  # entity -> (required, optional) keys
    "arg": ({"name"}, {"default", "description", "choice", "if", "unless"}),
    "let": ({"name", "value"}, {"if", "unless"}),
    "group": ({"children"}, {"scoped", "if", "unless"}),
    "include": ({"file"}, {"arg", "if", "unless"}),
    "node": (
        {"pkg", "exec"},
        {"name", "namespace", "args", "ros_args", "output", "param", "remap", "env", "if", "unless"}
        | {"respawn", "respawn_delay", "respawn_max_retries", "on_exit"},
    ),
    "choice": ({"value"}, set()),
    "include arg": ({"name", "value"}, set()),
    "param": (set(), {"name", "value", "type", "from"}),
    "remap": ({"from", "to"}, set()),
    "env": ({"name", "value"}, set()),
}
_COMPOUND = {"param", "remap", "env", "arg", "choice", "children", "value"}  # keys that may hold more than text
_ACTIONS = ("arg", "let", "group", "include", "node")


class LaunchFileError(AloeError):
    """Something a launch file says that cannot be done; the sentence begins with file and line."""


@dataclass(frozen=True)
class Argument:
    """A declared launch argument. `default` is the text in the file, None if the argument must be given."""

    name: str
    description: str
    default: str | None
    choices: tuple[str, ...]


@dataclass(frozen=True)
class NodeSpec:
    """One node to start, with every substitution resolved.

    `parameters`: files and name-value maps, later ones win; `respawn_delay` [s]; `respawn_max_retries` < 0: no limit.
    """

    package: str
    executable: str
    name: str | None = None
    namespace: str | None = None
    parameters: tuple[str | dict[str, Any], ...] = ()
    remappings: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    ros_arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    output: str = "screen"
    respawn: bool = False
    respawn_delay: float = 0.0
    respawn_max_retries: int = -1
    shutdown_on_exit: bool = False


def declared_arguments(path: Path) -> list[Argument]:
    """Arguments a launch file and the files it includes declare, in file order, without those an include provides."""
    collector = _ArgumentCollector()
    collector.file(path)
    return list(collector.found.values())


def plan(path: Path, given: Mapping[str, str]) -> list[NodeSpec]:
    """Nodes the launch file starts when called with `given` arguments; an argument it does not declare is an error."""
    known = [argument.name for argument in declared_arguments(path)]
    for name in given:
        if name not in known:
            raise AloeError(f"{path} has no argument {name!r}; it has: {', '.join(known) or 'none'}")
    planner = _Planner(dict(given))
    planner.file(path)
    return planner.nodes


class _Entity(dict[str, Any]):
    """A YAML mapping that knows where it stands."""

    file: Path
    line: int

    def error(self, message: str) -> LaunchFileError:
        return LaunchFileError(f"{self.file}:{self.line}: {message}")

    def check_keys(self, kind: str) -> None:
        required, optional = _KEYS[kind]
        for key in sorted(required - set(self)):
            raise self.error(f"`{kind}` needs the key `{key}`")
        for key in self:
            if key not in required | optional:
                known = ", ".join(sorted(required | optional))
                raise self.error(f"the key `{key}` of `{kind}` is not supported by `aloe up`; it knows {known}")
            if key not in _COMPOUND and isinstance(self[key], (dict, list)):
                raise self.error(
                    f"`{key}` of `{kind}` must be text, not a {'list' if isinstance(self[key], list) else 'mapping'}"
                )

    def entities(self, key: str, kind: str | None = None) -> list[_Entity]:
        """The mappings listed under `key`, none if it is absent."""
        items = self.get(key, [])
        if not isinstance(items, list) or not all(isinstance(item, _Entity) for item in items):
            raise self.error(f"`{key}` must be a list of mappings")
        for item in items:
            item.check_keys(kind or key)
        return items

    def actions(self, key: str) -> list[tuple[str, _Entity]]:
        """The actions listed under `key` as (kind, entity)."""
        items = self[key]
        if not isinstance(items, list) or not all(isinstance(item, _Entity) and len(item) == 1 for item in items):
            raise self.error(f"`{key}` must be a list of actions, each a mapping with one key")
        actions = []
        for item in items:
            ((kind, entity),) = item.items()
            if kind not in _ACTIONS:
                raise item.error(f"the action `{kind}` is not supported by `aloe up`; it knows {', '.join(_ACTIONS)}")
            if not isinstance(entity, _Entity):
                raise item.error(f"`{kind}` must be a mapping")
            entity.line = item.line
            entity.check_keys(kind)
            actions.append((kind, entity))
        return actions


class _Loader(yaml.SafeLoader):
    """Safe YAML whose mappings know their file and line and refuse duplicate keys."""


def _construct_entity(loader: _Loader, node: yaml.MappingNode) -> Iterator[_Entity]:
    entity = _Entity()
    entity.file, entity.line = Path(node.start_mark.name), node.start_mark.line + 1
    yield entity
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in entity:
            raise entity.error(f"{key!r} is given twice (again in line {key_node.start_mark.line + 1})")
        entity[key] = loader.construct_object(value_node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_entity)


def _load(path: Path) -> list[tuple[str, _Entity]]:
    if path.suffix == ".py":
        raise AloeError(f"{path}: Python launch files need ROS 2's own `ros2 launch`; give the .yaml file beside it")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AloeError(f"{path}: not a readable YAML file: {error}") from error
    except (OSError, ValueError) as error:
        raise AloeError(f"cannot read the launch file {path}: {getattr(error, 'strerror', error)}") from error
    tree = parse_yaml(text, str(path), _Loader)
    if not isinstance(tree, _Entity) or list(tree) != ["launch"]:
        raise AloeError(f"{path}: a launch file has the single key `launch` at its top")
    return tree.actions("launch")


def _declaration(entity: _Entity) -> Argument:
    for key in ("name", "default", "description"):
        if key in entity and not isinstance(entity[key], str):
            raise entity.error(f'`{key}` of an arg must be text; put it in quotes: "{entity[key]}"')
    choices = tuple(str(choice["value"]) for choice in entity.entities("choice"))
    return Argument(entity["name"], entity.get("description", "no description given"), entity.get("default"), choices)


class _ArgumentCollector:
    """Walks all actions whatever their conditions; paths of includes are taken with the default values."""

    def __init__(self) -> None:
        self.found: dict[str, Argument] = {}
        self.values: dict[str, str] = {}
        self.seen: set[Path] = set()

    def file(self, path: Path, provided: frozenset[str] = frozenset()) -> None:
        path = path.absolute()
        if path not in self.seen:
            self.seen.add(path)
            self.run(_load(path), provided)

    def run(self, actions: list[tuple[str, _Entity]], provided: frozenset[str]) -> None:
        for kind, entity in actions:
            if kind == "arg" and entity["name"] not in provided:
                argument = _declaration(entity)
                self.found.setdefault(argument.name, argument)
                self.remember(argument.name, self.known_text(entity, "default"))
            elif kind == "let":
                self.remember(str(entity["name"]), self.known_text(entity, "value"))
            elif kind == "group":
                self.run(entity.actions("children"), provided)
            elif kind == "include":
                file = self.known_text(entity, "file")
                given = {str(argument["name"]) for argument in entity.entities("arg", "include arg")}
                if file is not None:
                    self.file(entity.file.parent / file, provided | given)

    def known_text(self, entity: _Entity, key: str) -> str | None:
        """The text under `key`; None where it depends on something only a call of the file decides."""
        try:
            return substitute(str(entity[key]), Scope(self.values, entity.file.parent)) if key in entity else None
        except AloeError:
            return None

    def remember(self, name: str, value: str | None) -> None:
        if value is not None:
            self.values.setdefault(name, value)


class _Planner:
    """Walks the actions in order, as ROS's launch does, and collects the nodes."""

    def __init__(self, configurations: dict[str, str]) -> None:
        self.configurations = configurations
        self.nodes: list[NodeSpec] = []
        self.including: list[Path] = []
        self.actions = {
            "arg": self.declare,
            "let": self.let,
            "group": self.group,
            "include": self.include,
            "node": self.node,
        }

    def file(self, path: Path) -> None:
        path = path.absolute()
        if path in self.including:
            raise AloeError(f"{path} includes itself")
        self.including.append(path)
        self.run(_load(path))
        self.including.pop()

    def run(self, actions: list[tuple[str, _Entity]]) -> None:
        for kind, entity in actions:
            try:
                if self.enabled(entity):
                    self.actions[kind](entity)
            except LaunchFileError:
                raise
            except AloeError as error:
                raise entity.error(str(error)) from error

    def text(self, entity: _Entity, key: str, default: str = "") -> str:
        """The value under `key` as text, substitutions resolved."""
        value = entity.get(key, default)
        if isinstance(value, bool):
            return "true" if value else "false"
        return substitute(str(value), Scope(self.configurations, entity.file.parent))

    def number(self, entity: _Entity, key: str, default: str) -> float:
        text = self.text(entity, key, default)
        try:
            return float(text)
        except ValueError:
            raise entity.error(f"`{key}` must be a number, not {text!r}") from None

    def enabled(self, entity: _Entity) -> bool:
        if "if" in entity and "unless" in entity:
            raise entity.error("`if` and `unless` exclude each other")
        if "unless" in entity:
            return not as_bool(self.text(entity, "unless"))
        return as_bool(self.text(entity, "if", "true"))

    def declare(self, entity: _Entity) -> None:
        argument = _declaration(entity)
        if argument.name not in self.configurations:
            if argument.default is None:
                raise entity.error(f"the argument {argument.name}:=... must be given ({argument.description})")
            self.configurations[argument.name] = self.text(entity, "default")
        value = self.configurations[argument.name]
        if argument.choices and value not in argument.choices:
            raise entity.error(
                f"the argument {argument.name!r} is {value!r}, but must be one of: {', '.join(argument.choices)}"
            )

    def let(self, entity: _Entity) -> None:
        self.configurations[self.text(entity, "name")] = self.text(entity, "value")

    def group(self, entity: _Entity) -> None:
        scoped = as_bool(self.text(entity, "scoped", "true"))
        outer = dict(self.configurations)
        self.run(entity.actions("children"))
        if scoped:
            self.configurations = outer

    def include(self, entity: _Entity) -> None:
        file = entity.file.parent / self.text(entity, "file")
        for argument in entity.entities("arg", "include arg"):
            self.configurations[self.text(argument, "name")] = self.text(argument, "value")
        self.file(file)

    def node(self, entity: _Entity) -> None:
        output = self.text(entity, "output", "log")
        if output not in OUTPUTS:
            raise entity.error(f"`output` is {output!r}, but must be one of: {', '.join(OUTPUTS)}")
        for key, kind in NODE_TYPES.items():
            if key in entity and type(entity[key]) is not kind:
                raise entity.error(f"`{key}` must be of type {kind.__name__} for ROS 2's launch, not {entity[key]!r}")
        on_exit = self.text(entity, "on_exit")
        if on_exit not in ("", "shutdown"):
            raise entity.error(f"`on_exit` is {on_exit!r}, but may only be `shutdown`")
        self.nodes.append(
            NodeSpec(
                package=self.text(entity, "pkg"),
                executable=self.text(entity, "exec"),
                name=self.text(entity, "name") or None,
                namespace=self.text(entity, "namespace") or None,
                parameters=tuple(self.parameters(entity)),
                remappings=tuple((self.text(r, "from"), self.text(r, "to")) for r in entity.entities("remap")),
                arguments=tuple(shlex.split(self.text(entity, "args"))),
                ros_arguments=tuple(shlex.split(self.text(entity, "ros_args"))),
                environment={self.text(e, "name"): self.text(e, "value") for e in entity.entities("env")},
                output=output,
                respawn=as_bool(self.text(entity, "respawn", "false")),
                respawn_delay=self.number(entity, "respawn_delay", "0"),
                respawn_max_retries=int(self.number(entity, "respawn_max_retries", "-1")),
                shutdown_on_exit=on_exit == "shutdown",
            )
        )

    def parameters(self, entity: _Entity) -> Iterator[str | dict[str, Any]]:
        for item in entity.entities("param"):
            if set(item) == {"from"}:
                file = self.text(item, "from")
                if not os.path.isfile(file):
                    raise item.error(f"the parameter file {file!r} does not exist")
                yield file
            elif set(item) - {"type"} == {"name", "value"}:
                yield {self.text(item, "name"): self.parameter_value(item)}
            else:
                raise item.error("a `param` has either `from`, or `name` and `value` (and `type`)")

    def parameter_value(self, item: _Entity) -> Any:
        """The value with its type: as written in the file, or by YAML's rules if a substitution made it."""
        value, kind = item["value"], item.get("type")
        if isinstance(value, str):
            computed = has_substitution(value)
            value = self.text(item, "value")
            if computed and value and kind != "str":
                value = parse_yaml(value, f"{item.file}:{item.line}: the parameter's value '{value}'")
        if kind is None:
            return value
        if kind not in PARAMETER_TYPES:
            raise item.error(f"the parameter type {kind!r} is not supported; it knows {', '.join(PARAMETER_TYPES)}")
        if kind == "float" and type(value) is int:
            value = float(value)
        if type(value) is not PARAMETER_TYPES[kind]:
            raise item.error(f"the parameter {item['name']!r} is {value!r}, but must be of type {kind}")
        return value
