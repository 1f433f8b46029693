"""What the chains of `evidence.py` ended in: one small record each, kept in docs/evidence.json so that later runs add to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evidence import VARIANTS

from aloe_core.robot import load_robot
from aloe_critic.metrics import METRICS_FILE


@dataclass(frozen=True)
class ChainResult:
    """One seed of one row of the tables."""

    row: str  # a name in VARIANTS, "bc", or a name with "+best": acting with the best of several chunks
    seed: int
    success: float  # [%] of the evaluation episodes
    successes_per_hour: float  # of robot time
    takeover: tuple[float, ...]  # [%] of the episodes with the human, by iteration
    effective: float | None  # share of all samples left by the weights of the last iteration [%]
    success_s: float | None  # mean robot time of a successful evaluation episode [s]; None: there is none
    timeout: float  # [%] of the evaluation episodes that ended at the time limit


def read_runs(out: Path, iterations: int) -> list[ChainResult]:
    """Every chain in `out` that is finished."""
    best = [f"{name}+best" for name, variant in VARIANTS.items() if variant.best_of]
    bases = sorted(out.glob("seed_*"))
    found = [_read(base, row, iterations) for row in ("bc", *VARIANTS, *best) for base in bases]
    return [result for result in found if result is not None]


def _read(base: Path, row: str, iterations: int) -> ChainResult | None:
    name, _, acting = row.partition("+")
    run = base / name
    file = base / "bc_evaluation.json" if row == "bc" else run / f"evaluation{'_best' * bool(acting)}.json"
    if not file.exists():
        return None
    evaluation = json.loads(file.read_text())["rollouts"]
    files = [(base if number == 1 else run) / f"rollouts_{number}.json" for number in range(1, iterations + 1)]
    takeover = [100 * json.loads(f.read_text())["rollouts"]["takeover_rate"] for f in files if f.exists()]
    return ChainResult(
        row,
        int(base.name.removeprefix("seed_")),
        100 * evaluation["success"],
        evaluation["successes_per_hour"],
        tuple(takeover),
        _effective_share(run / f"{iterations:03d}" / METRICS_FILE),
        _success_time(evaluation),
        100 * evaluation["failures"]["timeout"] / evaluation["n"],
    )


def _success_time(evaluation: dict[str, Any]) -> float | None:
    """Mean robot time of a success [s]; None: there is none."""
    steps = [e["steps"] for e in evaluation["episodes"] if e["outcome"] == "success"]
    return sum(steps) / len(steps) / load_robot(evaluation["robot"]).control_rate_hz if steps else None


def _effective_share(metrics: Path) -> float | None:
    """What the weights of an iteration leave: (sum w)^2 / (N sum w^2) over all N samples of the replay."""
    if not metrics.exists():
        return None
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return next((100 * r["weight_effective"] for r in rows if r["stage"] == "weights"), None)


def merge(known: list[ChainResult], new: list[ChainResult]) -> list[ChainResult]:
    """Both, sorted by row and seed; of the same seed and row the new one."""
    found = {(r.row, r.seed): r for r in [*known, *new]}
    return [found[key] for key in sorted(found)]


@dataclass(frozen=True)
class Run:
    """A budget and what its chains ended in."""

    budget: dict[str, Any]
    results: list[ChainResult]


def load(file: Path) -> dict[str, Run]:
    """The records kept so far, by setting; "main" is that of the main table."""
    if not file.exists():
        return {}
    return {
        name: Run(kept["budget"], [_record(r) for r in kept["results"]])
        for name, kept in json.loads(file.read_text()).items()
    }


def _record(kept: dict[str, Any]) -> ChainResult:
    return ChainResult(**{**kept, "takeover": tuple(kept["takeover"])})


def add(known: Run | None, out: Path) -> Run:
    """What is finished in `out`, beside what is known of the same budget."""
    budget = json.loads((out / "budget.json").read_text())["budget"]
    of_old = known.results if known is not None and known.budget == budget else []
    return Run(budget, merge(of_old, read_runs(out, budget["iterations"])))


def save(file: Path, runs: dict[str, Run]) -> None:
    """One line for each record, so that a difference between two versions can be read."""
    parts = []
    for name, run in runs.items():
        lines = ",\n".join(json.dumps(asdict(result)) for result in run.results)
        parts.append(f'{json.dumps(name)}: {{"budget": {json.dumps(run.budget)},\n"results": [\n{lines}\n]}}')
    file.write_text("{" + ",\n".join(parts) + "}\n")
