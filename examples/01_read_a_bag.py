"""Read a bag: what happened in one recorded episode, as arrays.

    .venv/bin/python examples/01_read_a_bag.py [BAG]

Without an argument it first records an episode of the scripted expert, without ROS.
"""

import sys
import tempfile
from pathlib import Path

from aloe_core.bag_reader import read_episode
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Source
from aloe_robot.control.config import ControlConfig
from aloe_robot.expert.policy import ScriptedPolicy
from aloe_robot.rollout import Lockstep


def record(bags: Path) -> Path:
    """One episode of the scripted expert in the simulator; returns the folder of its bag."""
    robot = load_robot("aloha_sim")
    lockstep = Lockstep(robot, "transfer_cube", ScriptedPolicy("transfer_cube"), ControlConfig(execute_steps=50))
    bag = lockstep.run(seed=0, bags=bags).bag
    assert bag is not None
    return bag


def main(bag: Path) -> None:
    """Print what the bag holds."""
    episode = read_episode(bag)
    robot = episode.robot
    print(f"{episode.info.episode_id}: {episode.info.instruction!r} ended in {episode.outcome.name}")
    print(f"{len(episode)} ticks at {robot.control_rate_hz:g} Hz, {len(episode.chunks)} chunks")
    print(f"state    {episode.state.shape} {episode.state.dtype}: {', '.join(robot.action_names[:3])}, ...")
    print(f"executed {episode.executed.shape} {episode.executed.dtype}, proposed {episode.proposal.shape}")
    for start, stop in episode.runs():
        drivers = ", ".join(
            f"{arm} by {Source(source).name}"
            for arm, source in zip(robot.arm_names, episode.source[start], strict=True)
        )
        print(f"ticks {start} .. {stop - 1}: {drivers}")
    print("problems:", episode.problems or "none")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(record(Path(folder)))
