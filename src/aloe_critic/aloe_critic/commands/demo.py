"""`aloe demo`: the whole loop on a simulated robot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import tyro

from aloe_critic.demo import DemoConfig


def demo(
    output: Path = Path("runs/demo"),
    config: Annotated[DemoConfig, tyro.conf.arg(name="")] = DemoConfig(),  # noqa: B008 (frozen)
) -> int:
    """Show the whole loop on a simulated robot: demonstrate, clone, run with an operator, learn, reload, compare.

    Args:
        output: folder of the run; one that exists is moved aside, never overwritten.
        config: size of the demonstration.
    """
    from aloe_core.supervisor_substitutions import package_share
    from aloe_critic.demo import Demo, closing_lines

    if output.exists():
        aside = output.with_name(
            f"{output.name}-{time.strftime('%Y%m%dT%H%M%S', time.localtime(output.stat().st_mtime))}"
        )
        output.rename(aside)
        print(f"the run before is now in {aside}")
    launch = package_share("aloe_bringup") / "launch" / "sim_robot.launch.yaml"
    summary = Demo(output.resolve(), config, launch).run()
    print("\n" + "\n".join(closing_lines(summary)) + f"\nsummary        {output / 'summary.json'}")
    return 0
