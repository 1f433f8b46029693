"""Runs the benchmarks and writes results/latest.json: `make bench`, or `make bench ONLY=name` for bench_name.py alone.

A benchmark is a module bench_*.py beside this file with `def run() -> list[Result]`. Each runs in a process of its own, so
that none inherits threads or memory from another. The numbers of one that fails are left as they were.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from result import Result

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def main() -> int:
    """Run what the command line names, everything if it names nothing; 1 if a benchmark failed."""
    available = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    wanted = sys.argv[1:] or available
    for name in wanted:
        if name not in available:
            print(
                f"bench: there is no benchmark {name!r}; there are: {', '.join(available) or 'none'}", file=sys.stderr
            )
            return 2
    print(", ".join(f"{key} {value}" for key, value in machine().items()), end="\n\n", flush=True)
    results: list[Result] = []
    failed = []
    for name in wanted:
        try:
            measured = measure(name)
        except Exception:  # whatever a benchmark raises, the others are still worth running
            traceback.print_exc()
            failed.append(name)
            continue
        results += measured
        print(table(name, measured), flush=True)
    store(results)
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def measure(name: str) -> list[Result]:
    """The results of bench_<name>.py, run in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, name).result()


def _run(name: str) -> list[Result]:
    sys.path.insert(0, str(FOLDER))
    measured: list[Result] = importlib.import_module(f"bench_{name}").run()
    return [replace(result, name=full_name(name, result.name)) for result in measured]


def full_name(benchmark: str, name: str) -> str:
    """`<benchmark>/<what>`, whether or not the benchmark says its own name."""
    return f"{benchmark}/{name.removeprefix(f'{benchmark}/').removeprefix(f'{benchmark}: ')}"


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(": ")[2]
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "CPU": f"{cpu} ({len(os.sched_getaffinity(0))} usable)",
        "memory": f"{memory:.0f} GiB",
        "load": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "ROS": os.environ.get("ROS_DISTRO", "jazzy (wheels)"),
        "aloe": version("aloe_core"),
    }


def table(name: str, results: list[Result]) -> str:
    """Lines for a person; columns: name, value, unit, baseline, ratio."""
    lines = [name]
    for result in results:
        compared = f"baseline {result.baseline:<10.4g} ratio {result.ratio:.3g}" if result.ratio is not None else ""
        lines.append(f"  {result.name:<52} {result.value:>10.4g} {result.unit:<10} {compared}".rstrip())
    return "\n".join(lines) + "\n"


def store(results: list[Result]) -> None:
    """Write results/latest.json (values of benchmarks that did not run stay) and results/machine.json."""
    RESULTS.mkdir(exist_ok=True)
    latest = RESULTS / "latest.json"
    kept = json.loads(latest.read_text()) if latest.exists() else []
    new = [result.as_dict() for result in results]
    names = {entry["name"] for entry in new}
    entries = [entry for entry in kept if entry["name"] not in names] + new
    latest.write_text(json.dumps(sorted(entries, key=lambda entry: entry["name"]), indent=2) + "\n")
    (RESULTS / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
