"""Writes docs/performance.md from the results of `make bench`, and with each benchmark what it says of itself. The numbers come from benchmarks/results and
nowhere else.

python scripts/docs_benchmarks.py
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Made by `make bench` and `python scripts/docs_benchmarks.py`. A *ratio* is the value by the baseline of its row, which is measured in the same run unless
the text above the table says otherwise. How long a picture takes to a command is in the [README](../README.md#from-the-camera-to-the-command).
"""


def main() -> int:
    latest, machine = RESULTS / "latest.json", RESULTS / "machine.json"
    if not latest.exists():
        print("there are no results: run `make bench` first", file=sys.stderr)
        return 1
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in json.loads(latest.read_text()):
        groups[entry["name"].partition("/")[0]].append(entry)
    on = json.loads(machine.read_text())
    parts = [HEAD, f"On {on['CPU']}, {on['memory']}, Python {on['Python']}, {on['ROS']}.\n"]
    if unknown := [name for name in groups if not (ROOT / "benchmarks" / f"bench_{name}.py").exists()]:
        print(f"{latest} has results of no benchmark that there is: {', '.join(unknown)}; remove them", file=sys.stderr)
        return 1
    for name, entries in sorted(groups.items()):
        parts.append(section(name, entries))
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    return 0


def section(name: str, entries: list[dict[str, Any]]) -> str:
    """One benchmark: what it says of itself, and a table."""
    source = ROOT / "benchmarks" / f"bench_{name}.py"
    said = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    lines = [f"## {name}", "", said, "", "| | value | unit | baseline | ratio |", "|---|---|---|---|---|"]
    for entry in entries:
        numbers = [number(entry[key]) for key in ("value", "baseline", "ratio")]
        title = entry["name"].partition("/")[2]
        lines.append(f"| `{title}` | {numbers[0]} | {entry['unit']} | {numbers[1]} | {numbers[2]} |")
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
