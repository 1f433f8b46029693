"""Puts the latencies of the last `make bench ONLY=latency` into README.md, between the two marks there. They come from benchmarks/results and nowhere else.

python scripts/readme_latency.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- latency -->\n).*?(<!-- end -->)", re.DOTALL)
STAGES = {
    "camera_to_input": "picture taken -> picture, joints and request published",
    "joints_to_input": "joints measured -> joints and request published",
    "input_to_chunk": "-> chunk published",
    "inference": "of which the policy's network",
    "chunk_to_command": "-> first command out of it published",
    "camera_to_command": "**picture -> command**",
    "joints_to_command": "**joints -> command**",
}


def main() -> int:
    if not (RESULTS / "latest.json").exists():
        print("there are no results: run `make bench ONLY=latency` first", file=sys.stderr)
        return 1
    values = {entry["name"]: entry["value"] for entry in json.loads((RESULTS / "latest.json").read_text())}
    if not any(name.startswith("latency/") for name in values):
        print("latency was not measured: run `make bench ONLY=latency` first", file=sys.stderr)
        return 1
    lines = table(values, json.loads((RESULTS / "machine.json").read_text()))
    readme = ROOT / "README.md"
    text, found = BLOCK.subn(lambda marks: marks[1] + lines + marks[2], readme.read_text(encoding="utf-8"))
    if found != 1:
        print("README.md has no place for them: <!-- latency --> ... <!-- end -->", file=sys.stderr)
        return 1
    readme.write_text(text, encoding="utf-8")
    return 0


def table(values: Mapping[str, float], machine: Mapping[str, str]) -> str:
    """The stages of both policies as Markdown, and what they were measured on."""
    lines = ["| policy | stage [ms] | p50 | p95 | p99 |", "|---|---|---|---|---|"]
    for policy in ("images", "state"):
        for stage, meaning in STAGES.items():
            shares = [values.get(f"latency/{policy}/{stage}_p{percentile}") for percentile in (50, 95, 99)]
            if None not in shares:
                lines.append(f"| {policy} | {meaning} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")
    loads = " and ".join(f"{values[f'latency/{policy}/load']:.1f}" for policy in ("images", "state"))
    lines += ["", f"On {machine['CPU']}, {machine['memory']}, {machine['ROS']}; load before the start {loads}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
