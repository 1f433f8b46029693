"""`aloe rollout`: episodes in lockstep, without ROS."""

from __future__ import annotations

import json as jsonlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aloe_core.statistics import success_text
from aloe_robot.control.config import ControlConfig

if TYPE_CHECKING:
    from aloe_robot.rollout import Rollout

SCRIPTED = "scripted"


def rollout(
    policy: str,
    task: str = "transfer_cube",
    episodes: int = 20,
    seed: int = 0,
    robot: str = "aloha_sim",
    operator: str = "",
    bags: Path | None = None,
    cameras: bool = False,
    execution_mode: Literal["latest", "temporal_ensemble", "cross_fade", "rtc"] = "latest",
    execute_steps: int = 0,
    policy_latency: float = 0.0,
    time_limit: float = 0.0,
    policy_seed: int = 0,
    jobs: int = 1,
    json: Path | None = None,
) -> int:
    """Run episodes of a policy in the simulator, without ROS, much faster than real time.

    Args:
        policy: checkpoint folder, or the name of a policy (scripted).
        task: name of the task.
        episodes: number of episodes.
        seed: seed of the first episode's reset; the others count up from it.
        robot: name or file of the robot description.
        operator: simulated human who takes over when the policy fails: practised, slow, unsteady or clumsy; empty for none.
        bags: folder to record one bag per episode into.
        cameras: also render and record cameras that the policy does not look through.
        execution_mode: how consecutive chunks become one stream of commands.
        execute_steps: rows of a chunk that are executed before the next is asked for; 0 is 25, and the whole chunk for the scripted expert.
        policy_latency: simulated inference time [s].
        time_limit: robot time per episode [s]; 0 takes the task's own.
        policy_seed: seed of the policy's randomness.
        jobs: processes to spread the episodes over.
        json: write the results to this file.
    """
    from aloe_policy.evaluation import RolloutSpec, run_episodes, summarise

    steps = execute_steps or (50 if policy.split(":")[0] == SCRIPTED else ControlConfig.execute_steps)
    spec = RolloutSpec(
        policy=policy,
        task=task,
        robot=robot,
        control=ControlConfig(execution_mode=execution_mode, execute_steps=steps, policy_latency=policy_latency),
        time_limit=time_limit,
        policy_seed=policy_seed,
        operator=operator,
        record_cameras=cameras,
        bags=bags,
    )
    began = time.perf_counter()
    done = []
    for result in run_episodes(spec, range(seed, seed + episodes), jobs):
        done.append(result)
        print(episode_line(len(done), episodes, result), flush=True)
    summary = summarise(spec, done, time.perf_counter() - began)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(jsonlib.dumps(summary, indent=2) + "\n")
    print(
        f"success {success_text(sum(r.success for r in done), len(done))}, {summary['real_time_factor']:.1f}x real time"
    )
    return 0


def episode_line(number: int, total: int, result: Rollout) -> str:
    """One line for a person."""
    human = f"  human {100 * result.human_ticks / max(result.steps, 1):.0f} %" if result.interventions else ""
    bag = f"  {result.bag}" if result.bag else ""
    return f"episode {number}/{total}  seed {result.seed}  {result.outcome.name.lower():<8} {result.duration_s:5.1f} s{human}{bag}"
