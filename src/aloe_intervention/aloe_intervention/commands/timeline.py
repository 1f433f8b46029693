"""`aloe bags timeline`: the picture of one episode."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def timeline(
    bag: Positional[Path],
    *,
    output: Path | None = None,
    robot: str | None = None,
    protocol: Literal["aloe", "hil_serl", "hg_dagger"] = "aloe",
) -> int:
    """Draw one episode: who drove, interventions, fragments, outcome, commanded against proposed.

    Args:
        bag: Folder of the bag.
        output: Picture to write, PNG, PDF or SVG by its name; by default `<episode>.png` beside the bag's folder.
        robot: Robot description it was recorded with; by default the one that the bag names.
        protocol: How interventions are read into fragments.
    """
    from aloe_core.bag_reader import read_episode
    from aloe_core.robot import load_robot
    from aloe_core.timeline import save_timeline

    path = output or bag.with_name(f"{bag.name}.png")
    save_timeline(read_episode(bag, load_robot(robot) if robot else None), path, protocol)
    print(path)
    return 0
