"""`aloe up`: start the nodes of a launch file, without needing ROS 2's own `launch`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from aloe_core.errors import AloeError


def up(file: Positional[Path], arguments: Positional[tuple[str, ...]] = (), *, show_args: bool = False) -> int:
    """Start every node of a launch file (ROS 2's YAML front end) and stop them together.

    Args:
        file: Launch file, or the name of one in aloe_bringup, such as sim_robot.launch.yaml.
        arguments: Launch arguments, each as name:=value.
        show_args: Print the arguments of the file with their defaults and choices, and exit.
    """
    from aloe_core.supervisor import Supervisor
    from aloe_core.supervisor_launchfile import declared_arguments, plan

    path = _find(file)
    if show_args:
        print("Arguments (pass arguments as '<name>:=<value>'):")
        for argument in declared_arguments(path):
            choices = f" One of: {', '.join(argument.choices)}." if argument.choices else ""
            default = "required" if argument.default is None else f"default: {argument.default!r}"
            print(f"\n    {argument.name!r}:\n        {argument.description}{choices}\n        ({default})")
        return 0
    nodes = plan(path, dict(_pair(argument) for argument in arguments))
    if not nodes:
        raise AloeError(f"{path} starts no node with these arguments")
    return Supervisor(nodes, print_line=lambda line: print(line, flush=True)).run()


def _find(file: Path) -> Path:
    from aloe_core.supervisor_substitutions import package_share

    if file.exists() or len(file.parts) > 1:
        return file
    return package_share("aloe_bringup") / "launch" / file


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":=")
    if not separator or not name:
        raise AloeError(f"a launch argument is written name:=value, not {text!r}")
    return name, value
