"""Many lockstep episodes of one policy, spread over processes, in the order of their seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from aloe_core.errors import AloeError
from aloe_core.policy import load_policy
from aloe_core.robot import load_robot
from aloe_core.statistics import wilson_interval
from aloe_core.vocabulary import Outcome
from aloe_robot.control.config import ControlConfig
from aloe_robot.rollout import Lockstep, Rollout


@dataclass(frozen=True)
class RolloutSpec:
    """Everything a process needs to run episodes."""

    policy: str  # name or checkpoint folder
    task: str = "transfer_cube"
    robot: str = "aloha_sim"
    control: ControlConfig = field(default_factory=ControlConfig)
    time_limit: float = 0.0  # [s]; 0: the task's own
    policy_seed: int = 0  # of the policy's randomness
    operator: str = ""  # name of the simulated operator's configuration; empty: nobody takes over
    record_cameras: bool = False
    bags: Path | None = None  # folder to record into
    iteration: int = 0  # improvement iteration noted in the bags
    policy_options: dict[str, Any] = field(default_factory=dict)


def make_lockstep(spec: RolloutSpec) -> Lockstep:
    """Loads policy and robot and puts them together.

    Raises:
        AloeError: unknown robot, task, policy or operator, or a policy made for another robot.
    """
    robot = load_robot(spec.robot)
    policy = load_policy(spec.policy, robot, **spec.policy_options)
    operator = None
    if spec.operator:
        from aloe_intervention.lockstep import LockstepOperator
        from aloe_intervention.operators import operator_config

        operator = LockstepOperator(robot, spec.task, operator_config(spec.operator))
    return Lockstep(
        robot, spec.task, policy, spec.control, operator, spec.record_cameras, spec.policy_seed, spec.iteration
    )


def run_episodes(spec: RolloutSpec, seeds: Sequence[int], jobs: int = 1) -> Iterator[Rollout]:
    """Runs one episode per seed; the result does not depend on `jobs`, the number of processes.

    Raises:
        AloeError: no seeds; otherwise see `make_lockstep`.
    """
    if not seeds:
        raise AloeError("no episode was asked for: --episodes must be at least 1")
    if jobs <= 1:
        lockstep = make_lockstep(spec)
        for seed in seeds:
            yield lockstep.run(seed, spec.time_limit, spec.bags)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (spec,)) as pool:
        yield from pool.map(_run_one, seeds)


_worker: tuple[RolloutSpec, Lockstep | AloeError] | None = None


def _start_worker(spec: RolloutSpec) -> None:
    global _worker
    try:
        import torch

        torch.set_num_threads(1)
    except ModuleNotFoundError:  # scripted roll-outs need no torch
        pass
    try:
        _worker = spec, make_lockstep(spec)
    except AloeError as error:  # an exception here would only break the pool; the first episode tells
        _worker = spec, error


def _run_one(seed: int) -> Rollout:
    assert _worker is not None
    spec, lockstep = _worker
    if isinstance(lockstep, AloeError):
        raise lockstep
    return lockstep.run(seed, spec.time_limit, spec.bags)


def summarise(spec: RolloutSpec, rollouts: Sequence[Rollout], wall_s: float) -> dict[str, Any]:
    """The machine-readable result of an evaluation; `wall_s` is the time it took altogether [s]."""
    n = len(rollouts)
    wins = sum(r.success for r in rollouts)
    robot_s = sum(r.duration_s for r in rollouts)
    steps = sum(r.steps for r in rollouts)
    return {
        "policy": spec.policy,
        "task": spec.task,
        "robot": spec.robot,
        "success": wins / n,
        "n": n,
        "interval": list(wilson_interval(wins, n)),
        "successes_per_hour": 3600 * wins / robot_s,  # of robot time, resets left out
        "episodes_per_hour": 3600 * n / robot_s,
        "mean_steps": steps / n,
        "takeover_rate": sum(r.interventions > 0 for r in rollouts) / n,
        "interventions": sum(r.interventions for r in rollouts),
        "human_share": sum(r.human_ticks for r in rollouts) / steps,
        "starved_ticks": sum(r.starved_ticks for r in rollouts),
        "max_jerk": max(r.max_jerk for r in rollouts),
        "real_time_factor": robot_s / wall_s,
        "episodes": [
            {"episode_id": r.episode_id, "seed": r.seed, "outcome": r.outcome.name.lower(), "steps": r.steps}
            | {"interventions": r.interventions, "human_ticks": r.human_ticks, "bag": str(r.bag) if r.bag else ""}
            for r in rollouts
        ],
        "failures": {o.name.lower(): sum(r.outcome == o for r in rollouts) for o in Outcome if o != Outcome.SUCCESS},
    }
