"""`make demo` over several seeds: does the robot get better each time? Resumes: a seed with a summary is not run again.

    python benchmarks/demo_seeds.py --seeds 5

Then `scripts/readme_results.py` puts the table into README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tyro


def main(seeds: int = 5, out: Path = Path("runs/demo_seeds")) -> None:
    """Runs the demonstration once for each seed, everything else as in `make demo`.

    Args:
        seeds: how many, from 0 on.
        out: folder for the runs.
    """
    for seed in range(seeds):
        folder = out / f"seed_{seed}"
        if not (folder / "summary.json").exists():
            command = [sys.executable, "-m", "aloe_core.cli", "demo", "--output", str(folder), "--seed", str(seed)]
            subprocess.run(command, check=True)
        summary = json.loads((folder / "summary.json").read_text())
        before, after = (100 * summary[f"success_{name}"]["success"] for name in ("before", "after"))
        print(f"seed {seed}: {before:.0f} -> {after:.0f} % of {summary['success_after']['n']}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
