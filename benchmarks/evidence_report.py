"""docs/evidence.md and its plots, from whatever `evidence.py` has finished, here and in earlier runs of the same budget (docs/evidence.json).

python benchmarks/evidence_report.py --out runs/evidence
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from evidence import MAIN, SETTINGS, VARIANTS
from evidence_results import ChainResult, Run, add, load, save
from scipy.stats import t as student_t

DOCS = Path(__file__).resolve().parent.parent / "docs"
NAMES = {
    "bc": "behaviour cloning of the demonstrations",
    "filtered_bc": "filtered BC: all successes, whoever drove",
    "hg_dagger": "HG-DAgger: demonstrations and human take-overs",
    "awr": "AWR, Monte-Carlo state value",
    "recap": "RECAP, advantage-conditioned",
    "aloe": "ALOE",
    "aloe+best": "ALOE, acting with the best of 8 chunks",
    "aloe_clip3": "ALOE, exponents up to 3 instead of 1",
    "aloe_clip3+best": "the same, acting with the best of 8 chunks",
    "aloe_flat": "ALOE, exponents 0: every chunk that did not fail alike",
    "aloe_mean2": "ALOE, mean of two heads",
    "aloe_min1": "ALOE, one head",
    "aloe_min4": "ALOE, minimum of four heads",
    "aloe_failures": "ALOE, failed fragments teach the policy too (paper)",
    "aloe_n1": "ALOE, back-ups of 1 step",
    "aloe_n5": "ALOE, back-ups of 5 steps",
    "aloe_n15": "ALOE, back-ups of 15 steps",
    "aloe_n50": "ALOE, critic and back-ups of all 50 steps",
    "awr_clip1": "AWR, exponents up to 1",
    "awr_masked": "AWR, exponents up to 1, failed fragments teach the value only",
    "state_td": "without action-level evaluation",
    "monte_carlo_q": "without off-policy bootstrapping",
}
SETTING_NAMES = {
    "slow": "a slow human",
    "unsteady": "an unsteady human",
    "clumsy": "a clumsy human, who drops and misses",
    "insertion": "a longer task: `insertion`",
}
FINDINGS = Path(__file__).with_name("evidence_findings.md")  # written by a person who has read the tables


@dataclass(frozen=True)
class Row:
    """One variant over its finished seeds."""

    name: str
    seeds: tuple[int, ...]
    success: np.ndarray  # [seeds], share of the evaluation episodes
    per_hour: np.ndarray  # [seeds], successes per hour of robot time
    takeover: np.ndarray  # [seeds, iterations], share of episodes with a take-over
    effective: np.ndarray  # [seeds], share of all samples left by the weights of the last iteration [%]; NaN: none
    success_s: np.ndarray  # [seeds], mean robot time of a success [s]; NaN: none
    timeout: np.ndarray  # [seeds], [%] of the evaluation episodes that ended at the time limit


def interval(values: np.ndarray) -> str:
    """Mean and half width of the 95 % t-interval over seeds; of one or two seeds the values themselves, for an interval would say nothing."""
    if len(values) < 3:
        return f"{values.mean():.0f}" + (f" ({', '.join(f'{v:.0f}' for v in values)})" if len(values) == 2 else "")
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.1f} ± {half:.1f}"


def make_row(name: str, results: list[ChainResult], iterations: int) -> Row | None:
    """What is finished of a variant; None if nothing is."""
    mine = [r for r in results if r.row == name]
    if not mine:
        return None
    return Row(
        name,
        tuple(r.seed for r in mine),
        np.array([r.success for r in mine]),
        np.array([r.successes_per_hour for r in mine]),
        np.array([[*r.takeover, *[np.nan] * (iterations - len(r.takeover))] for r in mine]),
        *(np.array([getattr(r, key) for r in mine], float) for key in ("effective", "success_s", "timeout")),
    )


def paired(row: Row, reference: Row | None) -> str:
    """Difference of success on the seeds that both have [points]."""
    common = [] if reference is None or row.name == reference.name else [s for s in row.seeds if s in reference.seeds]
    if reference is None or not common:
        return ""
    mine = np.array([row.success[row.seeds.index(s)] for s in common])
    theirs = np.array([reference.success[reference.seeds.index(s)] for s in common])
    return interval(mine - theirs)


def table(rows: list[Row], references: dict[str, Row | None]) -> str:
    """Markdown; `references`: name and row of what each row is compared with, seed by seed."""
    head = (
        *("method", "seeds", "success [%]", "successes per hour"),
        *(f"against {name}, same seeds [points]" for name in references),
        *("take-over by iteration [%]", "data left by the weights [%]", "a success takes [s]", "time-outs [%]"),
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        rates = ", ".join("-" if np.isnan(r).any() else f"{r.mean():.0f}" for r in row.takeover.T)
        cells = (
            NAMES.get(row.name, row.name),
            len(row.seeds),
            interval(row.success),
            interval(row.per_hour),
            *(paired(row, reference) for reference in references.values()),
            rates,
            *(
                "-" if np.isnan(values).any() else f"{values.mean():.{digits}f}"
                for values, digits in ((row.effective, 0), (row.success_s, 1), (row.timeout, 0))
            ),
        )
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


def by_seed(rows: list[Row]) -> str:
    """Markdown: success of every seed, from which the other tables are made."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    lines = [f"| success [%], seed | {' | '.join(map(str, seeds))} |", "|---" * (len(seeds) + 1) + "|"]
    for row in rows:
        found = {seed: f"{value:.0f}" for seed, value in zip(row.seeds, row.success, strict=True)}
        lines.append(f"| {NAMES.get(row.name, row.name)} | {' | '.join(found.get(seed, '') for seed in seeds)} |")
    return "\n".join(lines)


def plot(rows: list[Row], file: Path) -> None:
    """Every seed a dot, the mean a bar."""
    figure, ax = plt.subplots(figsize=(7, 0.5 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        ax.barh(place, row.success.mean(), color="#bfdbfe", height=0.6)
        ax.plot(row.success, np.full(len(row.success), place), "o", color="#1d4ed8", ms=4, alpha=0.7)
    ax.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    ax.set_xlim(0, 100)
    ax.set_xlabel("success without a human [%]; dots: seeds")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def rows_of(run: Run) -> dict[str, Row]:
    """What is finished of every variant, in the order of `VARIANTS`."""
    best = [f"{name}+best" for name, variant in VARIANTS.items() if variant.best_of]
    found = {name: make_row(name, run.results, run.budget["iterations"]) for name in ("bc", *VARIANTS, *best)}
    return {name: row for name, row in found.items() if row is not None}


def describe(budget: dict[str, Any]) -> str:
    """What every method was given."""
    return (
        f"Simulated task `{budget['task']}`, state observations, simulated human `{budget['operator']}`. Every method starts from the same "
        f"{budget['demonstrations']} demonstrations and cloned policy, collects {budget['episodes']} episodes with the human in each of "
        f"{budget['iterations']} iterations, and is then evaluated alone on the same {budget['evaluation_episodes']} episodes. An iteration takes "
        f"{budget['critic_steps']} critic and {budget['actor_steps']} actor steps; critics judge the {budget['critic_horizon']} steps of a chunk that are "
        "executed."
    )


def settings(runs: dict[str, Run]) -> list[str]:
    """A table for each setting, with what it varies."""
    parts = []
    for name, changes in SETTINGS.items():
        if name in runs and runs[name].results:
            rows = rows_of(runs[name])
            varied = ", ".join(f"{key} {value}" for key, value in changes.items())
            parts += [
                f"### {SETTING_NAMES[name].capitalize()} ({varied})",
                table(list(rows.values()), _references(rows)),
            ]
    return ["## Other humans, another task", *parts] if parts else []


def _references(rows: dict[str, Row]) -> dict[str, Row | None]:
    return {"filtered BC": rows.get("filtered_bc"), "HG-DAgger": rows.get("hg_dagger")}


def main(out: Path = Path("runs/evidence"), docs: Path = DOCS) -> None:
    """Writes docs/evidence.md, docs/evidence.json and docs/images/evidence.png.

    Args:
        out: folder that `evidence.py` filled.
        docs: folder to write to.
    """
    runs = load(docs / "evidence.json")
    for name in ("main", *SETTINGS):
        folder = out if name == "main" else out / name
        if (folder / "budget.json").exists():
            runs[name] = add(runs.get(name), folder)
    if "main" not in runs or not runs["main"].results:
        raise SystemExit(f"evidence: nothing is finished in {out}; run benchmarks/evidence.py first")
    save(docs / "evidence.json", runs)
    rows = rows_of(runs["main"])
    references = {"ALOE": rows.get("aloe"), **_references(rows)}
    leading = ("bc", *MAIN, "aloe+best")
    main_rows = [rows[name] for name in leading if name in rows]
    others = [row for name, row in rows.items() if name not in leading]
    (docs / "images").mkdir(parents=True, exist_ok=True)
    plot(main_rows + others, docs / "images" / "evidence.png")
    parts = [
        "# Evidence",
        f"Made on a machine with {os.cpu_count()} cores and no GPU: the first table by `make evidence`, the others by "
        "`benchmarks/evidence.py` with `--variants` and `--setting`, then `benchmarks/evidence_report.py`. "
        f"{describe(runs['main'].budget)}",
        "A row's interval is that of its mean over seeds (95 %, Student's t); with one or two seeds the values are given instead, and say little: 100 episodes "
        "alone leave about 9 points open. Columns of differences compare seed by seed. *Data left*: effective sample "
        "size of the last iteration's weights, as a share of all its samples.",
        "![Success by method](images/evidence.png)",
        table(main_rows, references),
    ]
    if others:
        parts += ["## Ablations and relatives", table(others, references)]
    parts += settings(runs)
    parts += ["## Seed by seed", by_seed(main_rows + others)]
    if FINDINGS.exists():
        parts.append(FINDINGS.read_text().strip())
    (docs / "evidence.md").write_text("\n\n".join(parts) + "\n")
    print(docs / "evidence.md")


if __name__ == "__main__":
    tyro.cli(main)
