"""Substitutions of ROS 2 launch files, `$(name argument ...)`: the subset that `aloe up` understands.

`var`, `env`, `find-pkg-share`, `dirname`, `not`, `and`, `or`, `equals`, with the meaning they have in ROS 2's own
`launch`; any other name is refused.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aloe_core.errors import AloeError

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Scope:
    """What a substitution may look at: launch configurations and the folder of the file it stands in."""

    configurations: Mapping[str, str]
    folder: Path


def substitute(text: str, scope: Scope) -> str:
    """Text with every `$(...)` replaced; `\\` escapes the character after it. Raises AloeError without a location."""
    return _Parser(text, scope).text(until="")


def has_substitution(text: str) -> bool:
    """Whether the text holds an unescaped `$(`."""
    return re.search(r"(?<!\\)\$\(", text) is not None


def as_bool(text: str) -> bool:
    """The truth value of a condition, by ROS's rule: true, 1, false or 0 in any case."""
    value = text.strip().lower()
    if value in ("true", "1"):
        return True
    if value in ("false", "0"):
        return False
    raise AloeError(f"a condition must be true or false, not {text!r}")


def package_share(package: str) -> Path:
    """The folder `share/<package>` of an installed package: the ament index first, then this Python's prefix."""
    for prefix in _prefixes():
        share = prefix / "share" / package
        if (prefix / "share/ament_index/resource_index/packages" / package).is_file() and share.is_dir():
            return share
    raise AloeError(
        f"package {package!r} is not installed here: neither in AMENT_PREFIX_PATH nor in {sys.prefix}; "
        "run `make setup`, or build and source the workspace"
    )


def _prefixes() -> list[Path]:
    ament = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    return [*ament, Path(sys.prefix)]


class _Parser:
    """Recursive descent over `text $(name argument ...) text`; arguments may be quoted and may hold substitutions."""

    def __init__(self, source: str, scope: Scope) -> None:
        self.source = source
        self.scope = scope
        self.at = 0

    def text(self, until: str) -> str:
        """Characters up to one of `until` or the end, with escapes and substitutions resolved."""
        parts: list[str] = []
        while self.at < len(self.source) and self.source[self.at] not in until:
            if self.source.startswith("$(", self.at):
                parts.append(self.substitution())
            elif self.source[self.at] == "\\" and self.at + 1 < len(self.source):
                parts.append(self.source[self.at + 1])
                self.at += 2
            else:
                parts.append(self.source[self.at])
                self.at += 1
        return "".join(parts)

    def substitution(self) -> str:
        start = self.at
        match = _IDENTIFIER.match(self.source, self.at + 2)
        if match is None:
            raise AloeError(f"expected a name after $( in {self.source!r}")
        self.at = match.end()
        arguments: list[str] = []
        while True:
            while self.source.startswith(" ", self.at):
                self.at += 1
            if self.at >= len(self.source):
                raise AloeError(f"{self.source[start:]!r} is not closed")
            if self.source[self.at] == ")":
                self.at += 1
                break
            arguments.append(self.argument())
        return _evaluate(match.group(), arguments, self.scope)

    def argument(self) -> str:
        quote = self.source[self.at]
        if quote not in "'\"":
            return self.text(until=" )")
        self.at += 1
        value = self.text(until=quote)
        if self.at >= len(self.source):
            raise AloeError(f"a quoted argument in {self.source!r} is not closed")
        self.at += 1
        return value


def _evaluate(name: str, arguments: list[str], scope: Scope) -> str:
    if name not in _SUBSTITUTIONS:
        known = ", ".join(f"$({known})" for known in _SUBSTITUTIONS)
        raise AloeError(f"the substitution $({name}) is not supported by `aloe up`; it knows {known}")
    fewest, most, function = _SUBSTITUTIONS[name]
    if not fewest <= len(arguments) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} or {most}"
        raise AloeError(f"$({name}) takes {wanted} argument(s), got {len(arguments)}")
    return function(arguments, scope)


def _var(arguments: list[str], scope: Scope) -> str:
    name, *default = arguments
    if name in scope.configurations:
        return scope.configurations[name]
    if default:
        return default[0]
    raise AloeError(f"$(var {name}) names no argument or variable declared before it")


def _env(arguments: list[str], scope: Scope) -> str:
    name, *default = arguments
    if name in os.environ:
        return os.environ[name]
    if default:
        return default[0]
    raise AloeError(f"the environment variable {name!r} is not set and $(env {name}) gives no default")


def _equals(arguments: list[str], scope: Scope) -> str:
    left, right = arguments
    booleans = ("true", "false", "1", "0")
    if left.lower() in booleans and right.lower() in booleans:
        return _text(as_bool(left) == as_bool(right))
    try:
        return _text(math.isclose(float(left), float(right)))
    except ValueError:
        return _text(left == right)


def _text(value: bool) -> str:
    return "true" if value else "false"


_SUBSTITUTIONS: dict[str, tuple[int, int, Callable[[list[str], Scope], str]]] = {
    "var": (1, 2, _var),
    "env": (1, 2, _env),
    "find-pkg-share": (1, 1, lambda arguments, scope: str(package_share(arguments[0]))),
    "dirname": (0, 0, lambda arguments, scope: str(scope.folder)),
    "not": (1, 1, lambda arguments, scope: _text(not as_bool(arguments[0]))),
    "and": (2, 2, lambda arguments, scope: _text(as_bool(arguments[0]) and as_bool(arguments[1]))),
    "or": (2, 2, lambda arguments, scope: _text(as_bool(arguments[0]) or as_bool(arguments[1]))),
    "equals": (2, 2, _equals),
}
