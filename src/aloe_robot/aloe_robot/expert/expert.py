"""The scripted expert: the plan of a task turned into commands, optionally as clumsy as a real demonstrator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from aloe_core.errors import AloeError
from aloe_robot.expert import insertion, transfer_cube
from aloe_robot.expert.grasping import Aim
from aloe_robot.expert.motion import Goal, Mover
from aloe_robot.sim.env import ACTION_DIM, ARM_JOINTS, SimEnv

Plan = Callable[[SimEnv, Aim], tuple[str, Goal, Goal]]
PLANS: Mapping[str, Plan] = {"transfer_cube": transfer_cube.plan, "insertion": insertion.plan}


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """How good a demonstrator is; the defaults are as good as it gets.

    All randomness is a function of `seed`, the episode's seed and the tick: the same configuration acts the same in the same state.
    """

    speed: float = 1.0  # share of the full speed, in (0, 1]
    joint_noise: float = 0.0  # standard deviation of white noise on the joint commands [rad]
    hesitation: float = 0.0  # share of the time spent standing still, in half-second pauses
    grasp_offset: float = 0.0  # systematic error of the grasp position, in a direction drawn from the seed [m]
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1:
            raise AloeError(f"expert speed is a share in (0, 1], not {self.speed}")
        if not 0 <= self.hesitation < 1:
            raise AloeError(f"expert hesitation is a share in [0, 1), not {self.hesitation}")
        if self.joint_noise < 0 or self.grasp_offset < 0:
            raise AloeError("expert joint_noise and grasp_offset cannot be negative")


class Expert:
    """Drives a `SimEnv` to success from any state it can recover from.

    There is no timeline and no memory: each call derives the phase from contacts, poses and the last command.
    """

    def __init__(self, task: str, config: ExpertConfig = ExpertConfig()) -> None:
        """Raises `AloeError` for a task without a plan."""
        if task not in PLANS:
            raise AloeError(f"the expert cannot do task '{task}'; it can do: {', '.join(PLANS)}")
        self._plan = PLANS[task]
        self.config = config
        self._left, self._right = Mover("left"), Mover("right")
        direction = np.random.default_rng(config.seed).normal(size=2)
        self._aim = Aim(
            offset=np.append(config.grasp_offset * direction / np.linalg.norm(direction), 0.0),
            distance=0.006 + 0.3 * config.joint_noise,  # a shaky hand would never come any nearer
            angle=0.1 + 3.0 * config.joint_noise,
        )

    def phase(self, env: SimEnv) -> str:
        """What the expert is about to do in this state, in a word or two."""
        return self._plan(env, self._aim)[0]

    def act(self, env: SimEnv) -> np.ndarray:
        """The action `[14]` for the next control step."""
        _, left, right = self._plan(env, self._aim)
        config = self.config
        if config.hesitation and self._random(env, 1, env.tick // 25).random() < config.hesitation:
            return env.command.copy()
        # The last commands without the noise that was on them: a shaky hand does not wander off.
        before, last, now = (self._noise(env, env.tick + k) for k in (-2, -1, 0))
        command, step = env.command - last, env.command_step - (last - before)
        arms = ((self._left, left), (self._right, right))
        return np.concatenate([arm.next_command(command, step, goal, config.speed) for arm, goal in arms]) + now

    def _noise(self, env: SimEnv, tick: int) -> np.ndarray:
        """Noise on the command of one tick `[14]` [rad]; none on grippers, and none before the episode."""
        noise = np.zeros(ACTION_DIM)
        if self.config.joint_noise and tick >= 0:
            noise[ARM_JOINTS] = self._random(env, 2, tick).normal(0.0, self.config.joint_noise, ARM_JOINTS.size)
        return noise

    def _random(self, env: SimEnv, stream: int, time: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, env.seed, stream, time))
