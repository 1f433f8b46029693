"""`aloe operate`: the operator's terminal."""

from __future__ import annotations


def operate(
    *, robot: str = "aloha_sim", task: str = "", seed: int = -1, refresh: float = 0.1, namespace: str = "/"
) -> int:
    """Watch and steer episodes from a terminal: live status, and keys to start, stop, label, discard, reset and stop.

    Args:
        robot: Robot description.
        task: Task that the key `s` starts; by default the one that episode_node was started with.
        seed: Seed of the first episode in simulation, counting up from there; -1: none.
        refresh: Time between two looks at the screen [s].
        namespace: Namespace of the nodes.
    """
    import os
    import select
    import sys
    import termios
    import time
    import tty

    from aloe_core.errors import AloeError
    from aloe_core.robot import load_robot

    description = load_robot(robot)
    if not sys.stdin.isatty():
        raise AloeError("operate needs a terminal: its standard input is a file or a pipe")

    from rich.live import Live

    from aloe_intervention.console import run_console
    from aloe_intervention.nodes.console_node import connected

    keyboard = sys.stdin.fileno()  # not by sys.stdin, which would keep keys in a buffer that select does not see

    def read_keys() -> str:
        return os.read(keyboard, 64).decode("ascii", "ignore") if select.select([keyboard], [], [], 0.0)[0] else ""

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        with connected(description, task, seed, namespace) as node, Live(auto_refresh=False) as screen:

            def show() -> None:
                node.spin(refresh)
                screen.update(node.console.render(time.monotonic()), refresh=True)

            run_console(node.console, read_keys, node.do, show, time.monotonic)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return 0
