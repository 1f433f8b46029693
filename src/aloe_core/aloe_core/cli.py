"""The command `aloe`: finds its sub-commands by entry points (group `aloe.commands`), so that every package brings its own.

An entry point named `bags.show` is the command `aloe bags show`. Its value is a function with type hints and a docstring, which `tyro` turns into
arguments and help. A command module is imported only when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import tyro

from aloe_core.errors import AloeError

GROUP = "aloe.commands"
SUMMARIES_WIDTH = 18


def find(argv: Sequence[str], commands: dict[str, EntryPoint]) -> tuple[str, list[str]] | None:
    """The longest command that `argv` begins with, and what is left for it."""
    words = []
    for word in argv:
        if word.startswith("-"):
            break
        words.append(word)
    for count in range(len(words), 0, -1):
        name = ".".join(words[:count])
        if name in commands:
            return name, list(argv[count:])
    return None


def summary(command: EntryPoint) -> str:
    """First line of the command's docstring; why it cannot be used where a package it needs is not installed."""
    try:
        doc = command.load().__doc__ or ""
    except ModuleNotFoundError as error:
        return f"(needs the Python package '{error.name}')"
    return doc.strip().split("\n")[0]


def overview(commands: dict[str, EntryPoint], prefix: str = "") -> str:
    """What `aloe --help` prints: the commands whose names begin with `prefix`, each with its summary."""
    lines = ["usage: aloe COMMAND [ARGUMENTS]    (aloe COMMAND --help explains one)", ""]
    for name in sorted(commands):
        if name.startswith(prefix):
            lines.append(f"  {name.replace('.', ' '):<{SUMMARIES_WIDTH}} {summary(commands[name])}")
    return "\n".join(lines)


def _help(argv: list[str], commands: dict[str, EntryPoint]) -> int:
    """Lists the commands that begin with the words given; all of them, as an error, if there is none."""
    prefix = ".".join(w for w in argv if not w.startswith("-"))
    known = not prefix or any(name.startswith(prefix + ".") for name in commands)
    print(overview(commands, prefix + "." if prefix and known else ""), file=sys.stdout if known else sys.stderr)
    if not known:
        print(f"\naloe: unknown command '{prefix.replace('.', ' ')}'", file=sys.stderr)
    return 0 if known else 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 1 with one sentence on bad input, 2 for an unknown command."""
    # Nobody else on the network hears or commands the robot, unless the user says otherwise. For nodes that `ros2 launch` starts their own environment
    # holds; on one machine LOCALHOST and SUBNET, ROS's default, find each other (ROS 2: Improved Dynamic Discovery), so every command sees those as well.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {e.name: e for e in entry_points(group=GROUP)}
    name, rest = find(argv, commands) or ("", argv)
    try:
        result = (
            tyro.cli(commands[name].load(), prog=f"aloe {name.replace('.', ' ')}", args=rest)
            if name
            else _help(argv, commands)
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except AloeError as error:
        print(f"aloe: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("aloe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `aloe ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        missing, command = error.name or "", name.replace(".", " ")
        package = missing.partition(".")[0]
        if package == "rclpy" or package.endswith("_msgs"):
            print(
                f"aloe: '{command}' needs ROS 2 (Python package '{package}'); see docs/installation.md", file=sys.stderr
            )
            return 1
        if missing.startswith("aloe_"):
            print(f"aloe: '{command}' needs the package '{missing}', which is not installed", file=sys.stderr)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
