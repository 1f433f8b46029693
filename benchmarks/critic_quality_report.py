"""docs/critic_quality.md and its plots, from whatever `critic_quality.py` has finished.

.venv/bin/python benchmarks/critic_quality_report.py --out runs/critic_quality
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from critic_quality import MAIN, SNAPSHOTS, VARIANTS
from critic_quality_metrics import Judged, Number, read, summary
from critic_setting import POLICIES, ROWS

from aloe_core.statistics import wilson_interval
from aloe_critic.ope import spearman

ORDER = sorted(POLICIES, key=lambda name: POLICIES[name][0])  # from bad to good
DOCS = Path(__file__).resolve().parent.parent / "docs"
FINDINGS = Path(__file__).with_name("critic_quality_findings.md")  # written by hand
NAMES = {
    "td50": "chunk TD, 50 rows judged and backed up",
    "td25": "chunk TD, 25 rows judged and backed up (`critic_horizon` 25)",
    "td50_b25": "chunk TD, 50 rows judged, 25 backed up (`backup` 25)",
    "td1": "TD of one step (`backup` 1)",
    "mc_q": "Monte-Carlo action value (`monte_carlo_q`)",
    "awr": "Monte-Carlo state value (`awr`)",
    "td50_whole": "50 rows, no chunk cut (`cut_share` 0)",
    "td25_whole": "25 rows, no chunk cut",
    "td50_half": "50 rows, no chunk cut, half of the partial ones completed (`complete_share` 0.5)",
    "td50_masked": "50 rows, no chunk cut, partial ones masked (`complete_share` 0)",
    "td50_all_cut": "50 rows, all chunks cut (`cut_share` 1)",
    "td50_long": "50 rows, 4,800 steps",
    "td25_long": "25 rows, 4,800 steps",
    "td50_unbounded": "50 rows, `bound_values` false",
    "td50_mean": "50 rows, `target_reduction` mean",
    "td50_fast_target": "50 rows, `polyak` 0.02",
    "td25_fast_target": "25 rows, `polyak` 0.02",
    "td50_heads1": "50 rows, one head",
    "td50_heads5": "50 rows, five heads",
    "td50_separate": "50 rows, `separate_trunks`",
    "td50_transformer": "50 rows, the small Transformer",
    "td25_transformer": "25 rows, the small Transformer",
    "td50_batch256": "50 rows, batch of 256",
    "bee": "`bee`, 50 rows: target half from the replay's chunks",
}
PLOTTED = ("td50", "td25", "mc_q")


@dataclass(frozen=True)
class Trained:
    """A critic that is there."""

    data: str  # mixed, own
    policy: str
    variant: str
    seed: int
    steps: tuple[int, ...]
    folder: Path


def trained(root: Path) -> list[Trained]:
    """All finished critics."""
    found = []
    for done in sorted((root / "critics").glob("*/*/*/done.json")):
        folder = done.parent
        variant, _, seed = folder.name.rpartition("_")
        steps = tuple(s for s in SNAPSHOTS if (folder / f"{s:05d}.npz").exists())
        found.append(Trained(folder.parts[-3], folder.parts[-2], variant, int(seed), steps, folder))
    return found


def definition(variant: str) -> int:
    """Rows of a chunk that a critic's own definition plays."""
    config = VARIANTS[variant].config
    return 25 if 25 in (config.get("critic_horizon"), config.get("backup")) else 50


class Report:
    """Tables and plots of one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.critics = root, trained(root)
        self.has_own = any(c.data == "own" for c in self.critics)

    @cache  # noqa: B019 - one report a process
    def judged(self, critic: Trained, rows: int, step: int = 0) -> Judged:
        return read(self.root, critic.folder, critic.policy, step or critic.steps[-1], rows)

    def select(
        self, data: str, variant: str, policies: Iterable[str] = POLICIES, seeds: tuple[int, ...] | None = None
    ) -> list[Trained]:
        """Critics of a kind."""
        return [
            c
            for c in self.critics
            if c.data == data and c.variant == variant and c.policy in policies and (seeds is None or c.seed in seeds)
        ]

    def policies(self) -> str:
        """The policies and what they are worth."""
        lines = [
            "| policy | demonstrations | success, 25 rows played [%] | 50 rows [%] | true V(s0), 25 | 50 |",
            "|---|---|---|---|---|---|",
        ]
        for name in ORDER:
            found = self.select("mixed", "td50", (name,))
            if found:
                rates, values = [], []
                for rows in ROWS:
                    result = json.loads((self.root / f"start_{name}_{rows}.json").read_text())["rollouts"]
                    rates.append(f"{100 * result['success']:.0f}")
                    values.append(f"{self.judged(found[0], rows).start_true:.3f}")
                lines.append("| " + " | ".join([name, str(POLICIES[name][0]), *rates, *values]) + " |")
        return "\n".join(lines)

    def bc100_elsewhere(self) -> str:
        """Why `bc100` is not as good as the policy of as many demonstrations that other pages measure."""
        file = self.root / "start_bc100_25.json"
        if not file.exists():
            return ""
        count, steps = POLICIES["bc100"]
        result = json.loads(file.read_text())["rollouts"]
        low, high = wilson_interval(round(result["success"] * result["n"]), result["n"])
        return (
            f"`bc100` is not the policy of {count} demonstrations that succeeds in 95 of 100 episodes [elsewhere](policy.md#measured): "
            f"it was cloned from others, for {steps:,} steps instead of 3,000, and judged on {result['n']} episodes, "
            f"which leave its success open between {100 * low:.0f} and {100 * high:.0f} %."
        )

    def quality(
        self,
        data: str,
        rows_of: dict[str, tuple[int, ...]],
        policies: Iterable[str],
        seeds: tuple[int, ...] | None = None,
    ) -> str:
        """A line per kind of critic and truth."""
        lines = [
            "| critic | truth: rows played | critics | error of Q | error of V | bias of V | a constant's error | rank of V | right about actions [%] |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for variant, truths in rows_of.items():
            found = self.select(data, variant, policies, seeds)
            for rows in truths if found else ():
                numbers = summary([self.judged(c, rows) for c in found])
                action = numbers.get("action")
                right = (
                    "-"
                    if action is None
                    else f"{text((100 * action[0], 100 * action[1], 100 * action[2]), 0)} of {numbers['pairs'][0]:.0f}"
                )
                cells = (
                    NAMES[variant],
                    rows,
                    len(found),
                    text(numbers["q_error"]) if "q_error" in numbers else "-",
                    text(numbers["v_error"]),
                    text(numbers["v_bias"]),
                    f"{numbers['constant_error'][0]:.3f}",
                    text(numbers["v_rank"], 2),
                    right,
                )
                lines.append("| " + " | ".join(map(str, cells)) + " |")
        return "\n".join(lines)

    def ranking(self) -> str:
        """Mean V(s0) of every policy, believed and true."""
        names = [n for n in ORDER if self.select("mixed", "td50", (n,))]
        lines = [
            "| V(s0) | " + " | ".join(names) + " | rank over policies |",
            "|---" * (len(names) + 2) + "|",
        ]
        for rows in ROWS:
            true = [self.judged(self.select("mixed", "td50", (n,))[0], rows).start_true for n in names]
            lines.append(f"| true, {rows} rows played | " + " | ".join(f"{v:.3f}" for v in true) + " | |")
        for variant in MAIN:
            found = [self.select("mixed", variant, (n,)) for n in names]
            if all(found):
                rows = definition(variant)
                judged = [[self.judged(c, rows) for c in f] for f in found]
                believed = [float(np.mean([j.start for j in js])) for js in judged]
                rank = spearman(believed, [js[0].start_true for js in judged])
                lines.append(f"| {NAMES[variant]} | " + " | ".join(f"{v:.3f}" for v in believed) + f" | {rank:.2f} |")
        return "\n".join(lines)

    def elsewhere(self) -> str:
        """Chunks that do not belong, and the spread of the heads."""
        lines = [
            "| critic | Q - V of a chunk from elsewhere | in truth | Q - V of a noisy chunk | share below V [%] | spread of heads | rank of spread and error |",
            "|---|---|---|---|---|---|---|",
        ]
        for variant in VARIANTS:
            found = self.select("mixed", variant)
            if found and variant != "awr":
                n = summary([self.judged(c, definition(variant)) for c in found])
                low = tuple(100 * x for x in n["noise_below"])
                cells = (
                    NAMES[variant],
                    text(n["elsewhere"]),
                    text(n["elsewhere_true"]),
                    text(n["noise"]),
                    text(low, 0),  # type: ignore[arg-type]
                    text(n["spread"]),
                    f"{n['spread_rank'][0]:.2f}",
                )
                lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def steps(self) -> str:
        """Quality while critics learn."""
        lines = ["| critic | steps | error of V | bias of V | rank of V | right about actions [%] |", "|---" * 6 + "|"]
        for variant in ("td50", "td50_long", "td25", "td25_long", "mc_q"):
            found = self.select("mixed", variant, ("bc20", "bc100"), (0,))
            for step in SNAPSHOTS:
                there = [c for c in found if step in c.steps]
                if there and len(there) == len(found):
                    n = summary([self.judged(c, definition(variant), step) for c in there])
                    action = tuple(100 * x for x in n["action"])
                    cells = (
                        NAMES[variant],
                        step,
                        text(n["v_error"]),
                        text(n["v_bias"]),
                        text(n["v_rank"], 2),
                        text(action, 0),  # type: ignore[arg-type]
                    )
                    lines.append("| " + " | ".join(map(str, cells)) + " |")
        return "\n".join(lines)

    def plot(self, file: Path) -> None:
        """Believed against true values, of chunks and of initial states."""
        figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
        colours = dict(zip(ORDER, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(POLICIES))), strict=True))
        for column, variant in enumerate(PLOTTED):
            rows = definition(variant)
            above, below = axes[:, column]
            for critic in self.select("mixed", variant, seeds=(0,)):
                j, colour = self.judged(critic, rows), colours[critic.policy]
                above.plot(j.q_true[:, :4].ravel(), j.q[:, :4].ravel(), ".", color=colour, ms=4, alpha=0.6)
                below.plot(j.start_true, j.start, "o", color=colour, label=critic.policy)
            above.set_title(f"{variant}: Q of chunks, {rows} rows played")
            below.set_title("mean V of initial states")
            for ax in (above, below):
                ends = [min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])]
                ax.plot(ends, ends, "-", color="#9ca3af", lw=1)
                ax.set_xlabel("true")
                ax.set_ylabel("critic")
            below.legend(fontsize=7)
        figure.savefig(file, dpi=110)
        plt.close(figure)


def text(number: Number, digits: int = 3) -> str:
    """A number with its interval."""
    return f"{number[0]:.{digits}f} ({number[1]:.{digits}f} .. {number[2]:.{digits}f})"


def main(out: Path = Path("runs/critic_quality"), docs: Path = DOCS) -> None:
    """Writes docs/critic_quality.md and docs/images/critic_quality.png.

    Args:
        out: folder that `critic_quality.py` filled.
        docs: folder to write to.
    """
    report = Report(out)
    if not report.critics:
        raise SystemExit(f"critic_quality: nothing is finished in {out}; run benchmarks/critic_quality.py first")
    budget = json.loads((out / "budget.json").read_text())["budget"]
    (docs / "images").mkdir(parents=True, exist_ok=True)
    report.plot(docs / "images" / "critic_quality.png")
    own = {v: (definition(v),) for v in MAIN}
    both = {"td50": (50, 25), "td25": (25,), "td50_b25": (25,), "td1": (50,), "mc_q": (50, 25), "awr": (50, 25)}
    ablated = ("td50", "td25", *(v for v in VARIANTS if v not in MAIN))
    repeats = ", ".join(f"{n} where {rows} rows are played" for rows, n in ROWS.items())
    parts = [
        "# How good is the critic?",
        "Made by `python benchmarks/critic_quality.py` and `python benchmarks/critic_quality_report.py` on two shared CPU cores.",
        FINDINGS.read_text().strip() if FINDINGS.exists() else "",
        "## How it was measured",
        "Simulated cube transfer, state observations. The simulator is put back into a recorded state, plays a chunk, and lets the policy finish the "
        f"episode: {repeats}. *25 rows* is what the robot does: half of each chunk, then a new one. *50 rows* is what a critic of whole chunks "
        f"defines. States: {budget['states']} of the mixed replay (demonstrator, policy, human), and {budget['own_states']} of a policy's own replay; "
        "chunks: the recorded one, two of the policy, one of another policy, one from elsewhere, one with noise. "
        f"The *mixed* replay is one for all policies: {budget['demonstrations']} demonstrations and {budget['episodes']} episodes of `bc20` with a human who "
        "takes over; for every "
        f"other policy it is off-policy. {budget['critic_steps']} critic steps of {budget['batch_size']} samples; "
        "everything else by default unless it is said. "
        "Rewards are the default ones, scaled by 1 - gamma: a success lies between -1 and 0, a failure goes below, down to about -2 just before it. From the "
        "start of an episode good and bad policies therefore differ by little: most of the future is discounted away.",
        "Errors are mean absolute errors; *a constant's error* is that of the best constant. *Rank* is Spearman's correlation over states, mean over critics. "
        "*Right about actions*: of the pairs of "
        "sensible chunks at the same state whose true values clearly differ, the share that the critic puts in the right order. In brackets: 95 % intervals of "
        "bootstrap over states.",
        report.policies(),
        report.bc100_elsewhere(),
        "## Off-policy: the mixed replay, all policies",
        "![Believed against true values](images/critic_quality.png)",
        "In the picture: " + "; ".join(f"*{v}*: {NAMES[v]}" for v in PLOTTED) + ".",
        report.quality("mixed", both, POLICIES),
        "## Ranking policies",
        report.ranking(),
        *(
            ["## On-policy: replays of `bc20` and `bc100`", report.quality("own", own, POLICIES)]
            if report.has_own
            else []
        ),
        "## Ablations, mixed replay",
        "Policies `bc20` and `bc100` where there are two critics, else `bc100`; first seed.",
        report.quality("mixed", {v: (definition(v),) for v in ablated}, ("bc20", "bc100"), (0,)),
        "## Steps, policies `bc20` and `bc100`",
        report.steps(),
        "## Chunks that do not belong, and the heads",
        report.elsewhere(),
    ]
    (docs / "critic_quality.md").write_text("\n\n".join(p for p in parts if p) + "\n")
    print(docs / "critic_quality.md")


if __name__ == "__main__":
    tyro.cli(main)
