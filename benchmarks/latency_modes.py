"""Does a slow policy still succeed, and how smoothly does the robot move? Every execution mode under an inference delay of 0, 100 and 300 ms.

    python benchmarks/latency_modes.py

One policy is cloned from 100 scripted demonstrations (`config/train/bc_state.yaml`) and then judged in lockstep in every cell, on the same resets with the same
randomness, so that differences between cells are paired. A chunk asked for at t is executed from t + delay on, however early it came (`policy_latency`). Every
piece of work leaves a file, so that a run that is interrupted continues; at the end the table is printed as Markdown. Ten to fifteen minutes on one core.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro
from evidence import once
from scipy.stats import binomtest

from aloe_core.statistics import wilson_interval
from aloe_robot.control.config import EXECUTION_MODES

CONFIG = Path(__file__).resolve().parents[1] / "config" / "train" / "bc_state.yaml"
DELAYS = (0.0, 0.1, 0.3)  # [s]
DEMONSTRATIONS, FIRST_SEED = 100, 1000  # none of the resets that are judged


def main(out: Path = Path("runs/latency_modes"), episodes: int = 100) -> None:
    """Does whatever of the work is not done yet and prints the table.

    Args:
        out: folder for demonstrations, policy and results.
        episodes: episodes per cell.
    """
    out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    once(out / "demonstrations.json", lambda: demonstrate(out / "demos"))
    once(out / "policy.json", lambda: clone(out / "demos", out / "run"))
    cells = {}
    for mode in EXECUTION_MODES:
        for delay in DELAYS:
            file = out / f"{mode}-{1e3 * delay:.0f}ms-{episodes}.json"
            cells[mode, delay] = once(file, lambda m=mode, d=delay: judge(out / "run" / "policy", m, d, episodes))
            print(file.stem, *row(cells[mode, delay]), file=sys.stderr, flush=True)
    print(table(cells))
    slowest = DELAYS[-1]
    for mode in EXECUTION_MODES:
        print(f"{mode}, {1e3 * slowest:.0f} ms against none: {paired(cells[mode, slowest], cells[mode, 0.0])}")
    for mode in EXECUTION_MODES:
        for delay in DELAYS:
            print(
                f"cross_fade against {mode}, {1e3 * delay:.0f} ms: {paired(cells['cross_fade', delay], cells[mode, delay])}"
            )


def paired(one: dict[str, Any], other: dict[str, Any]) -> str:
    """How often only one of two cells succeeds on a reset, and the exact two-sided sign test of that."""
    pairs = list(zip(one["success"], other["success"], strict=True))
    wins, losses = (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return f"{wins} won, {losses} lost, p = {p:.3f}"


def demonstrate(bags: Path) -> dict[str, Any]:
    """What the policy is cloned from; what an interruption left behind is made again."""
    shutil.rmtree(bags, ignore_errors=True)
    aloe("rollout", "--policy", "scripted", "--episodes", DEMONSTRATIONS, "--seed", FIRST_SEED, "--bags", bags)
    return {"episodes": DEMONSTRATIONS, "first_seed": FIRST_SEED}


def clone(bags: Path, run: Path) -> dict[str, Any]:
    """The policy, at `run/policy`."""
    shutil.rmtree(run, ignore_errors=True)
    aloe("train", "bc", bags, "--config", CONFIG, "--output", run, "--threads", 1)
    return {"config": CONFIG.name}


def aloe(*arguments: object) -> None:
    """Runs the command line of the project."""
    subprocess.run([sys.executable, "-m", "aloe_core.cli", *map(str, arguments)], check=True)


def judge(policy: Path, mode: str, delay: float, episodes: int) -> dict[str, Any]:
    """One cell: what came of every episode."""
    import torch

    from aloe_policy.evaluation import RolloutSpec, run_episodes
    from aloe_robot.control.config import ControlConfig

    torch.set_num_threads(1)
    spec = RolloutSpec(str(policy), control=ControlConfig(execution_mode=mode, policy_latency=delay))
    rollouts = list(run_episodes(spec, range(episodes)))
    return {
        "success": [r.success for r in rollouts],
        "steps": [r.steps for r in rollouts],
        "max_jerk": [r.max_jerk for r in rollouts],
        "rms_jerk": [r.rms_jerk for r in rollouts],
        "limited_share": [r.limited_ticks / r.steps for r in rollouts],
        "starved_ticks": sum(r.starved_ticks for r in rollouts),
    }


def row(cell: dict[str, Any]) -> tuple[str, ...]:
    """Success, its 95 % interval, steps of the successes, jerk of the commands (mean of the episodes' RMS, largest), ticks that the safety filter changed."""
    wins, n = sum(cell["success"]), len(cell["success"])
    low, high = wilson_interval(wins, n)
    steps = [s for s, success in zip(cell["steps"], cell["success"], strict=True) if success]
    return (
        f"{wins}/{n}",
        f"{100 * low:.0f}-{100 * high:.0f} %",
        f"{statistics.mean(steps):.0f}" if steps else "-",
        f"{statistics.mean(cell['rms_jerk']):.0f}",
        f"{max(cell['max_jerk']):.0f}",
        f"{100 * statistics.mean(cell['limited_share']):.1f} %",
    )


def table(cells: dict[tuple[str, float], dict[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| mode | delay | success | 95 % interval | steps to success | RMS jerk [rad/s³] | max jerk | ticks limited |"
    )
    lines = [head, "|---" * head.count(" | ") + "|---|"]
    for (mode, delay), cell in cells.items():
        lines.append(f"| `{mode}` | {1e3 * delay:.0f} ms | " + " | ".join(row(cell)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
