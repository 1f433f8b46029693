"""`aloe report`: the critic's report of an iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from aloe_core.errors import AloeError


def report(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    iteration: int = 0,
    robot: str = "aloha_sim",
    config: Path | None = None,
    episodes: int = 4,
    rerun: bool = False,
    progress: bool = False,
    threads: int = 0,
) -> None:
    """Write a page on what the critic of an iteration thinks: values over time, failing and succeeding chunks, errors, fragments.

    Args:
        run: folder of the run.
        iteration: number; 0: the newest.
        robot: name or file of the robot description.
        config: YAML file of `ImproveConfig` keys; refused if the iteration was made with another reward, protocol or horizon, which are used by default.
        episodes: episodes to show over time.
        rerun: also write these episodes as Rerun recordings (.rrd).
        progress: also train VITA's value of progress on the successes, and say how well it orders those held out.
        threads: CPU threads; 0: as many as torch chooses.
    """
    import torch

    from aloe_core.robot import load_robot
    from aloe_critic import improvement
    from aloe_critic.improve_config import load_config
    from aloe_critic.report import write_report

    if threads:
        torch.set_num_threads(threads)
    finished = improvement.finished_iterations(run)
    if not finished or iteration > len(finished):
        raise AloeError(f"{run} has {len(finished)} finished iterations, so none with number {iteration or 1}")
    folder = finished[iteration - 1]
    page = write_report(
        folder,
        load_robot(robot),
        load_config(config) if config else None,
        episodes,
        rerun=rerun,
        progress=progress,
        on_step=lambda what: print(f"  {what}", flush=True),
    )
    print(page)
