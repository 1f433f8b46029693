"""Checks the documentation against the project: relative links and their headings, `make` targets, `aloe` commands.

Prints every mistake with file and line; exit code 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
MAKE = re.compile(r"(?:^\s*|`|&& |\$ )make ([a-z]+)\b")
ALOE = re.compile(r"(?:^\s*|`|&& |\$ )(?:\./)?aloe ((?:[a-z][\w-]*\s?)+)")


def main() -> int:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = {entry.name.replace(".", " ") for entry in entry_points(group="aloe.commands")}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = [ROOT / name for name in listed.stdout.splitlines()]
    mistakes = [mistake for file in files for mistake in check(file, targets, commands)]
    for mistake in mistakes:
        print(mistake)
    print(f"docs: {len(files)} files, {len(mistakes)} mistakes")
    return int(bool(mistakes))


def check(file: Path, targets: set[str], commands: set[str]) -> Iterator[str]:
    """The mistakes in one Markdown file."""
    in_code = False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{file.relative_to(ROOT)}:{number}"
        if line.lstrip().startswith("```"):
            in_code = not in_code
        for target in [] if in_code else LINK.findall(line):
            if not is_reachable(file, target):
                yield f"{where}: the link {target} leads nowhere"
        for name in MAKE.findall(line):
            if name not in targets and (in_code or f"`make {name}" in line):
                yield f"{where}: there is no target `make {name}`"
        for words in ALOE.findall(line):
            said = f"{words.strip()} "  # a command and what follows it, or the first words of some, as in `aloe bags`
            if not any(said.startswith(f"{command} ") or f"{command} ".startswith(said) for command in commands):
                yield f"{where}: there is no command `aloe {words.strip()}`"


def is_reachable(file: Path, target: str) -> bool:
    """Whether a relative link has a file and, after #, a heading; links to other sites are not followed."""
    if re.match(r"[a-z]+:", target):
        return True
    path, _, anchor = target.partition("#")
    linked = (file.parent / path).resolve() if path else file
    if not linked.exists():
        return False
    return not anchor or linked.suffix != ".md" or anchor in anchors(linked)


def anchors(file: Path) -> set[str]:
    """The anchors of a file's headings, by the rule of the usual Markdown renderers."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    sys.exit(main())
