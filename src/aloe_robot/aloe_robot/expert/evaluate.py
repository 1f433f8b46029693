"""How often the scripted expert succeeds, from the start of an episode or after something went wrong.

python -m aloe_robot.expert.evaluate --task transfer_cube --episodes 100 --seed 0 --after dropped
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from aloe_robot.expert.expert import Expert, ExpertConfig
from aloe_robot.expert.motion import GRIPPER
from aloe_robot.sim.env import ACTION_DIM, SimEnv
from aloe_robot.sim.tasks import TASKS

CLUMSY = ExpertConfig(joint_noise=0.05)


@dataclass(frozen=True, slots=True)
class Rate:
    """Result of an evaluation."""

    successes: int
    episodes: int  # starts that were neither solved nor lost already
    steps: tuple[int, ...]  # length of each successful episode [control steps]
    failed_seeds: tuple[int, ...]


def run(env: SimEnv, expert: Expert, steps: int) -> None:
    """Lets the expert drive for `steps` control steps, or until success or failure."""
    for _ in range(steps):
        if env.success or env.failure is not None:
            return
        env.step(expert.act(env))


def failed(env: SimEnv, generator: np.random.Generator) -> None:
    """A policy too noisy to finish used up its time."""
    run(env, Expert(env.task.name, CLUMSY), env.task.time_limit)


def moved(env: SimEnv, generator: np.random.Generator) -> None:
    """Midway, somebody moves the objects to other places, turned about the vertical."""
    run(env, Expert(env.task.name), int(generator.integers(20, 150)))
    poses = env.task.initial_poses(generator)
    poses[:, :2] += generator.uniform(-0.05, 0.05, (len(poses), 2))
    yaw = generator.uniform(-np.pi / 4, np.pi / 4, len(poses))
    poses[:, 3], poses[:, 6] = np.cos(yaw / 2), np.sin(yaw / 2)
    env.place_objects(poses)


def dropped(env: SimEnv, generator: np.random.Generator) -> None:
    """Midway, both grippers open for 0.4 s."""
    run(env, Expert(env.task.name), int(generator.integers(70, 130)))
    command = env.command.copy()
    command[list(GRIPPER.values())] = 1.0
    for _ in range(20):
        env.step(command)


def misplaced(env: SimEnv, generator: np.random.Generator) -> None:
    """Midway, one arm or both go somewhere else."""
    run(env, Expert(env.task.name), int(generator.integers(20, 150)))
    low, high = np.array([[-0.6, -0.8, 0.3, -1.0, -0.5, -1.0, 0.0], [0.6, 0.3, 1.3, 1.0, 1.2, 1.0, 1.0]])
    target = generator.uniform(np.tile(low, 2), np.tile(high, 2))
    if generator.random() < 0.5:
        target[: ACTION_DIM // 2] = env.command[: ACTION_DIM // 2]
    for _ in range(40):
        env.step(env.command + np.clip(target - env.command, -0.05, 0.05))


MISHAPS: Mapping[str, Callable[[SimEnv, np.random.Generator], None]] = {
    f.__name__: f for f in (failed, moved, dropped, misplaced)
}


def evaluate(task: str, seeds: range, config: ExpertConfig | None = None, after: str | None = None) -> Rate:
    """Success of the expert over `seeds`, within the task's time limit counted from the start or from the end of the mishap `after`."""
    env, expert = SimEnv(task, cameras=()), Expert(task, config or ExpertConfig())
    steps, failed_seeds = [], []
    for seed in seeds:
        env.reset(seed)
        if after is not None:
            MISHAPS[after](env, np.random.default_rng(seed))
            if env.success or env.failure is not None:
                continue
        start = env.tick
        run(env, expert, env.task.time_limit)
        if env.success:
            steps.append(env.tick - start)
        else:
            failed_seeds.append(seed)
    return Rate(len(steps), len(steps) + len(failed_seeds), tuple(steps), tuple(failed_seeds))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", choices=list(TASKS), default="transfer_cube")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--after", choices=list(MISHAPS), help="start from states after this mishap")
    parser.add_argument("--joint-noise", type=float, default=0.0, help="[rad]")
    parser.add_argument("--grasp-offset", type=float, default=0.0, help="[m]")
    parser.add_argument("--hesitation", type=float, default=0.0, help="share of the time")
    parser.add_argument("--speed", type=float, default=1.0, help="share of full speed")
    options = parser.parse_args()
    config = ExpertConfig(options.speed, options.joint_noise, options.hesitation, options.grasp_offset, options.seed)
    rate = evaluate(options.task, range(options.seed, options.seed + options.episodes), config, options.after)
    length = f", {np.mean(rate.steps):.0f} steps on average" if rate.steps else ""
    print(
        f"{options.task}: {rate.successes} of {rate.episodes} succeed{length}; failed seeds: {list(rate.failed_seeds)}"
    )


if __name__ == "__main__":
    main()
