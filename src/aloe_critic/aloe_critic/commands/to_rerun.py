"""`aloe bags to-rerun`: an episode as a Rerun recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from aloe_core.errors import AloeError

OLDEST = "0.39"  # rerun-sdk: the first we know to draw lanes of states


def to_rerun(
    bag: Annotated[Path, tyro.conf.Positional],
    /,
    output: Path | None = None,
    critic: Path | None = None,
    policy: Path | None = None,
    robot: str = "",
    every: int = 5,
    samples: int = 8,
    seed: int = 0,
) -> int:
    """Write an episode as a Rerun recording: cameras, values, who drove, commanded against proposed, on one time axis.

    Args:
        bag: folder of the bag; one that was replayed also shows the proposals and their values.
        output: file to write (.rrd); by default `<bag>.rrd` beside the bag's folder.
        critic: folder or file of a critic that judges the executed actions.
        policy: checkpoint that the critic's V(s) is of.
        robot: name or file of the robot description; by default the one that the bag names.
        every: judge at every so many ticks.
        samples: chunks of the policy per V(s).
        seed: of those chunks.
    """
    try:
        import rerun
    except ModuleNotFoundError:
        raise AloeError(f"this needs the Python package rerun-sdk: pip install 'rerun-sdk>={OLDEST}'") from None
    if not hasattr(rerun, "StateChange"):
        raise AloeError(f"this needs rerun-sdk {OLDEST} or newer, installed is {rerun.__version__}")
    from aloe_core.robot import load_robot
    from aloe_critic.replay_summary import read_replayed
    from aloe_critic.rerun_export import export
    from aloe_critic.scoring import ChunkScorer

    if (critic is None) != (policy is None):
        raise AloeError("--critic and --policy belong together: V(s) is the value of a policy")
    if every < 1:
        raise AloeError(f"--every {every}: judge at every so many ticks, at least 1")
    episode = read_replayed(bag, load_robot(robot) if robot else None)
    try:
        described = episode.recording.robot
        scorer = ChunkScorer(critic, policy, described, samples, seed) if critic and policy else None
        file = output or bag.resolve().with_name(f"{bag.resolve().name}.rrd")
        export(episode, file, scorer, every)
    finally:
        episode.recording.close()
    print(file)
    return 0
