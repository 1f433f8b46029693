"""What a chunk is really worth: the simulator is put back into a recorded state, plays the chunk, and lets the policy finish, many times.

    rows    = 25: as the robot plays it. 25 rows of the chunk, then the policy, which plays 25 rows of each of its chunks.
    rows    = 50: as a critic of whole chunks defines it. All rows, then the policy, which plays all rows of its chunks.

What is kept are outcomes and steps, not returns: any reward can be computed from them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome
from aloe_policy.protocol import SampleBatch, TrainablePolicy
from aloe_policy.replay import RewardConfig
from aloe_robot.control.limiter import MotionLimiter, MotionLimits
from aloe_robot.sim.env import SimEnv
from aloe_robot.sim.messages import outcome_of

WALKERS = 64  # simulations that ask the policy together


@dataclass(frozen=True)
class Moment:
    """A recorded state, with all that its future depends on besides the policy.

    Attributes:
        sim_state: of `SimEnv.save_state`.
        velocity, acceleration: differences of the commands before, `[A]` per tick, for the motion limiter.
    """

    sim_state: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray

    @classmethod
    def of(cls, sim_state: np.ndarray, executed: np.ndarray) -> Moment:
        """After the commands `executed [t, A]` of an episode."""
        first = executed[:1] if len(executed) else np.zeros((1, 14))
        past = np.concatenate([np.repeat(first, 3, axis=0), executed])[-3:].astype(np.float64)
        return cls(sim_state, past[2] - past[1], past[2] - 2 * past[1] + past[0])


class Walker:
    """One simulation under the motion limits of the control loop."""

    def __init__(self, robot: RobotDescription, env: SimEnv) -> None:
        self.robot, self.env = robot, env
        self.limiter = MotionLimiter(MotionLimits.of(robot))
        self._nothing = np.zeros(robot.action_dim, bool)
        self.steps = 0

    def restore(self, moment: Moment) -> None:
        """Goes on from a moment."""
        self.env.restore_state(moment.sim_state)
        self.limiter.reset(self.env.command)
        self.limiter.velocity, self.limiter.acceleration = moment.velocity, moment.acceleration
        self.steps = 0

    def branch_from(self, other: Walker) -> None:
        """Goes on from where another simulation stands."""
        self.env.restore_state(other.env.save_state())
        self.limiter, self.steps = copy.copy(other.limiter), other.steps

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.env, self.env.task.time_limit)

    def play(self, rows_HA: np.ndarray) -> None:
        """Plays rows of a chunk, until the episode ends."""
        for row in rows_HA:
            if self.outcome != Outcome.UNLABELLED:
                return
            self.env.step(self.limiter.step(row.astype(np.float64), self._nothing).position)
            self.steps += 1


def observe(robot: RobotDescription, envs: Sequence[SimEnv]) -> SampleBatch:
    """What a policy of states sees, as the observation builder makes it."""
    state = [robot.from_device(robot.to_device(e.joint_positions())) for e in envs]
    objects = [e.object_state() for e in envs]
    return {
        "state": torch.from_numpy(np.asarray(state, np.float32)),
        "object_state": torch.from_numpy(np.asarray(objects, np.float32)),
    }


class Truth:
    """Roll-outs from restored states, of one policy."""

    def __init__(self, robot: RobotDescription, task: str, policy: TrainablePolicy) -> None:
        self.robot, self.policy = robot, policy.eval()
        env = SimEnv(task, cameras=())
        self._first = Walker(robot, env)
        self._walkers = [Walker(robot, env.twin()) for _ in range(WALKERS)]

    def roll_out(
        self, moments: Sequence[Moment], chunk_NHA: np.ndarray, rows: int, repeats: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outcome and steps to the end, uint8 and int64 `[N, repeats]`, of playing `rows` of chunk n at moment n and then following the policy."""
        size = len(moments) * repeats
        outcome, steps = np.zeros(size, np.uint8), np.zeros(size, np.int64)
        generator = torch.Generator().manual_seed(seed)
        waiting = list(range(size))
        while waiting:
            wave, waiting = waiting[:WALKERS], waiting[WALKERS:]
            begun = -1
            for walker, job in zip(self._walkers, wave, strict=False):
                pair = job // repeats
                if pair != begun:
                    self._first.restore(moments[pair])
                    self._first.play(chunk_NHA[pair, :rows])
                    begun = pair
                walker.branch_from(self._first)
            active = list(zip(self._walkers, wave, strict=False))
            while active:
                ended = [(w, j) for w, j in active if w.outcome != Outcome.UNLABELLED]
                for walker, job in ended:
                    outcome[job], steps[job] = walker.outcome, walker.steps
                active = [(w, j) for w, j in active if w.outcome == Outcome.UNLABELLED]
                if not active:
                    break
                chunks = self.policy.act(observe(self.robot, [w.env for w, _ in active]), generator).numpy()
                for (walker, _), chunk in zip(active, chunks, strict=True):
                    walker.play(chunk[:rows])
        return outcome.reshape(-1, repeats), steps.reshape(-1, repeats)


def returns(reward: RewardConfig, cost: float, outcome: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Discounted return of roll-outs that ended in `outcome` after `steps`, float64, same shape."""
    success = outcome == Outcome.SUCCESS
    end = np.where(
        success, reward.end_reward(Outcome.SUCCESS, True, cost), reward.end_reward(Outcome.FAILURE, True, cost)
    )
    return reward.discounted(steps, np.ones(steps.shape, bool), end)
