"""Puts the numbers of `make demo` into README.md, between the marks there: of the last run, and of `benchmarks/demo_seeds.py`.

They come from the summaries below `runs/` and nowhere else.

    .venv/bin/python scripts/readme_results.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUMMARY, SEEDS = ROOT / "runs" / "demo" / "summary.json", ROOT / "runs" / "demo_seeds"


def main() -> int:
    if not SUMMARY.exists():
        print(f"there is no {SUMMARY.relative_to(ROOT)}: run `make demo` first", file=sys.stderr)
        return 1
    blocks = {"demo results": results(json.loads(SUMMARY.read_text()))}
    if found := sorted(SEEDS.glob("*/summary.json")):
        blocks["demo seeds"] = seeds([json.loads(file.read_text()) for file in found])
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, block in blocks.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = place.subn(lambda marks, block=block: marks[1] + block + marks[2], text)
        if count != 1:
            print(f"README.md has no place for them: <!-- {name} --> ... <!-- end -->", file=sys.stderr)
            return 1
    readme.write_text(text, encoding="utf-8")
    return 0


def seeds(summaries: list[dict[str, Any]]) -> str:
    """Several demonstrations, a row for each."""
    lines = [
        "| seed | before | after | successes per hour, before and after | take-over by round | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for summary in summaries:
        cells = []
        for name in ("before", "after"):
            r = summary[f"success_{name}"]
            low, high = (100 * bound for bound in r["interval"])
            cells.append(f"{100 * r['success']:.0f} % ({low:.0f}-{high:.0f})")
        rates = ", ".join(f"{summary[f'success_{name}']['successes_per_hour']:.0f}" for name in ("before", "after"))
        minutes = sum(summary["wall_seconds"].values()) / 60
        takeover = takeover_text(summary)
        lines.append(
            f"| {summary['config']['seed']} | {cells[0]} | {cells[1]} | {rates} | {takeover} | {minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def takeover_text(summary: dict[str, Any]) -> str:
    """Episodes with a take-over out of all, round by round; the last round has fewer."""
    config = summary["config"]
    episodes = [config["episodes"]] * config["rounds"] + [config["new_episodes"]]
    return ", ".join(f"{round(rate * n)}/{n}" for rate, n in zip(summary["takeover_rates"], episodes, strict=True))


def results(summary: dict[str, Any]) -> str:
    """The summary of a demonstration as Markdown."""
    config, seconds = summary["config"], summary["wall_seconds"]
    lines = [
        "| policy alone | success | 95 % interval | episodes | successes per hour of robot time |",
        "|---|---|---|---|---|",
    ]
    for name in ("before", "after"):
        r = summary[f"success_{name}"]
        low, high = (100 * bound for bound in r["interval"])
        lines.append(
            f"| {name} | {100 * r['success']:.0f} % | {low:.0f}-{high:.0f} % | {r['n']} | {r['successes_per_hour']:.0f} |"
        )
    improvements = len(summary["policy_versions"]) - 1
    lines += [
        "",
        f"Task `{config['task']}`, method `{config['method']}`, seed {config['seed']}: {config['demonstrations']} demonstrations, then "
        f"{summary['episodes']} episodes under ROS 2 with the simulated operator and {improvements} improvements among them. The operator took over in "
        f"{takeover_text(summary)} of the episodes before, between and after those.",
        "",
        "Wall time: " + ", ".join(f"{stage.replace('_', ' ')} {value:.0f} s" for stage, value in seconds.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
