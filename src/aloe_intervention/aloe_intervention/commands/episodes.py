"""`aloe episodes`: run episodes on a launched robot, real or simulated."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aloe_core.statistics import success_text, wilson_interval
from aloe_core.vocabulary import Outcome

if TYPE_CHECKING:
    from aloe_intervention.nodes.episode_client import EpisodeResult


def episodes(
    count: int = 1,
    task: str = "transfer_cube",
    seed: int = 0,
    time_limit: float = 0.0,
    name: str = "",
    record: bool = True,
    timeout: float = 60.0,
    namespace: str = "/",
    json: Path | None = None,
) -> int:
    """Run episodes on the launched robot and print how they ended. Ctrl-C stops the episode under way.

    Args:
        count: number of episodes.
        task: name of the task.
        seed: seed of the first episode's reset; the others count up from it. -1 on a real robot.
        time_limit: robot time [s]; 0: the task's own; on a real robot none, the episode then ends by the operator only.
        name: episodes and their bags are called NAME-SEED; empty: by time and task. The policy's randomness follows from seed and name: in a simulator
            in lockstep the same ones give the same episode.
        record: wait until the recorder has closed each bag.
        timeout: wall time without a control tick after which it gives up [s].
        namespace: namespace of the nodes.
        json: write the results to this file.
    """
    from aloe_intervention.nodes.episode_client import run_episodes

    results: list[EpisodeResult] = []

    def on_result(result: EpisodeResult) -> None:
        results.append(result)
        print(episode_line(len(results), count, result), flush=True)
        if json is not None:
            write_summary(json, summarise(results))

    seeds = [seed + number if seed >= 0 else -1 for number in range(count)]
    ids = [f"{name}-{seed if seed >= 0 else number}" if name else "" for number, seed in enumerate(seeds)]
    run_episodes(list(zip(seeds, ids, strict=True)), task, time_limit, timeout, record, on_result, namespace)
    print(f"success {success_text(sum(r.outcome == Outcome.SUCCESS for r in results), len(results))}")
    return 0


def episode_line(number: int, count: int, result: EpisodeResult) -> str:
    """One line for a person."""
    bag = f"  {result.bag}{'' if result.complete else ' (INCOMPLETE, see audit.json)'}" if result.bag else ""
    human = f", human {100 * result.human_ticks / max(result.steps, 1):.0f} %" if result.interventions else ""
    return (
        f"episode {number}/{count}  seed {result.seed}  {result.outcome.name.lower():<8} "
        f"{result.duration_s:5.1f} s of robot time in {result.wall_s:5.1f} s{human}{bag}"
    )


def summarise(results: list[EpisodeResult]) -> dict[str, Any]:
    """The machine-readable result: success rate with interval, take-over rate, and every episode."""
    n = len(results)
    wins = sum(r.outcome == Outcome.SUCCESS for r in results)
    steps = sum(r.steps for r in results)
    return {
        "success": wins / n,
        "n": n,
        "interval": list(wilson_interval(wins, n)),
        "takeover_rate": sum(r.interventions > 0 for r in results) / n,
        "human_share": sum(r.human_ticks for r in results) / max(steps, 1),
        "real_time_factor": sum(r.duration_s for r in results) / max(sum(r.wall_s for r in results), 1e-9),
        "episodes": [
            asdict(r) | {"outcome": r.outcome.name.lower(), "termination": r.termination.name.lower()} for r in results
        ],
    }


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes the JSON file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
