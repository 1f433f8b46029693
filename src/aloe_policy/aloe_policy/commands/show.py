"""`aloe show policy`: a picture of a policy's chunks against a recorded episode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from aloe_core.errors import AloeError


def policy(
    policy: Annotated[str, tyro.conf.Positional],
    bag: Annotated[Path, tyro.conf.Positional],
    /,
    output: Path,
    every: int = 25,
    samples: int = 3,
    robot: str = "",
) -> None:
    """Draw what a policy would have done at the instants of a recorded episode.

    Args:
        policy: checkpoint folder, or the name of a policy.
        bag: folder of an episode.
        output: PNG file to write.
        every: ticks between two proposals.
        samples: chunks drawn per proposal.
        robot: name or file of the robot description; empty takes the one the bag names, if it is found by that name.
    """
    if every < 1 or samples < 1:
        raise AloeError("--every and --samples must be at least 1")

    from aloe_core.bag_reader import read_episode
    from aloe_core.policy import load_policy
    from aloe_core.robot import load_robot
    from aloe_policy.pictures import chunks_along, draw_policy, mean_error

    episode = read_episode(bag, load_robot(robot) if robot else None)
    if not len(episode):
        raise AloeError(f"bag {bag} holds no transitions")
    shown = load_policy(policy, episode.robot)
    chunks = chunks_along(shown, episode, every, samples)
    error = mean_error(chunks, episode.executed)
    title = f"{shown.version} on {episode.info.episode_id} ({episode.outcome.name.lower()}), mean |proposed - executed| {error:.4f}"
    draw_policy(output, episode, chunks, list(episode.cameras), title)
    print(f"{title}\n{output}")
