"""Writes docs/reference/ from the code: messages, node parameters, launch arguments, commands, configuration.

    cd scripts && python docs_reference.py

What these pages say stands in the code, beside what it describes: to change them, change the comment there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import tyro
from docs_settings import Setting, configuration_classes, node_classes, table

from aloe_core.supervisor_launchfile import declared_arguments

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "reference"
NOTE = "<!-- Made by scripts/docs_reference.py from the code; `make docs` writes it anew. -->\n\n"


def main() -> None:
    os.environ |= {"COLUMNS": "110", "NO_COLOR": "1"}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    pages = {
        "interfaces": interfaces(),
        "parameters": parameters(),
        "launch": launch_arguments(),
        "commands": commands(),
        "configuration": configuration(),
    }
    for name, text in pages.items():
        text = re.sub(r"\n{3,}", "\n\n", text)
        (OUTPUT / f"{name}.md").write_text(NOTE + text.rstrip() + "\n", encoding="utf-8")


def interfaces() -> str:
    """Topics, messages, services and actions."""
    out = [
        "# Topics, messages, services, actions",
        "",
        "Names are relative to the namespace the nodes run in. Conventions on quality of service, units and order of joints: "
        "[architecture](../architecture.md#the-graph).",
        "",
        "## Topics and services",
        "",
        "| name | type and direction |",
        "|---|---|",
    ]
    source = (ROOT / "src/aloe_core/aloe_core/topics.py").read_text(encoding="utf-8")
    for name, meaning in re.findall(r'^[A-Z_]+ = "(.+?)"  # (.+)$', source, re.MULTILINE):
        linked = re.sub(r"aloe_msgs/(\w+)", lambda found: f"[{found[1]}](#{found[1].lower()})", meaning)
        out.append(f"| `{name}` | {cell(linked)} |")
    for folder, title in (("msg", "Messages"), ("srv", "Services"), ("action", "Actions")):
        out += ["", f"## {title}"]
        for file in sorted((ROOT / "src/aloe_msgs" / folder).glob(f"*.{folder}")):
            out += ["", f"### {file.stem}", "", *interface(file)]
    return "\n".join(out)


def interface(file: Path) -> Iterator[str]:
    """One interface file as Markdown: its heading comment, then every part as a table of constants and one of fields."""
    parts = re.split(r"^---$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    titles = {1: [""], 2: ["Request", "Response"], 3: ["Goal", "Result", "Feedback"]}[len(parts)]
    for title, part in zip(titles, parts, strict=True):
        lines = [line.strip() for line in part.strip().splitlines() if line.strip()]
        heading = [line[1:].strip() for line in lines if line.startswith("#")]
        entries = [split_comment(line) for line in lines if not line.startswith("#")]
        if heading:
            yield from (" ".join(heading), "")
        if title:
            yield from (f"**{title}**" + ("" if entries else ": empty"), "")
        constants = [e for e in entries if "=" in e[0]]
        fields = [e for e in entries if "=" not in e[0]]
        if constants:
            yield from ("| constant | value | |", "|---|---|---|")
            for declaration, comment in constants:
                _, name, value = re.fullmatch(r"(\S+)\s+(\w+)\s*=\s*(.+)", declaration).groups()  # type: ignore[union-attr]
                yield f"| `{name}` | {value} | {cell(comment)} |"
            yield ""
        if fields:
            yield from ("| field | type | |", "|---|---|---|")
            for declaration, comment in fields:
                kind, name = declaration.split(maxsplit=1)
                yield f"| `{name}` | `{kind}` | {cell(comment)} |"
            yield ""


def split_comment(line: str) -> tuple[str, str]:
    declaration, _, comment = line.partition("#")
    return declaration.strip(), comment.strip()


def parameters() -> str:
    """The parameters of every node."""
    out = [
        "# Node parameters",
        "",
        "Set them in a file given as `params_file:=FILE` ([`config/nodes.yaml`](../../config/nodes.yaml) is the default); "
        "what the launch files pass wins over it. `use_sim_time` and the other parameters that every ROS 2 node has are left out.",
    ]
    for package, name, summary, settings in node_classes(ROOT):
        out += ["", f"## {name}", "", f"Package `{package}`. {summary}", "", *table("parameter", settings)]
    return "\n".join(out)


def launch_arguments() -> str:
    """The arguments of the launch files that a person starts."""
    out = [
        "# Launch arguments",
        "",
        "The same for `ros2 launch aloe_bringup NAME.launch.py` and `aloe up NAME.launch.yaml`; how to use them: [launching](../launching.md).",
    ]
    for file in sorted((ROOT / "launch").glob("*.launch.yaml")):
        arguments = declared_arguments(file)
        if not file.with_suffix(".py").exists():
            continue  # a part that the others include
        settings = [
            Setting(
                a.name,
                "" if a.default is None else str(a.default),
                a.description + (f" One of: {', '.join(f'`{c}`' for c in a.choices)}." if a.choices else ""),
            )
            for a in arguments
        ]
        out += ["", f"## {file.name.removesuffix('.launch.yaml')}", "", heading_comment(file), ""]
        out += table("argument", settings)
    return "\n".join(out)


def heading_comment(file: Path) -> str:
    """The comment that a file begins with."""
    match = re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))
    assert match is not None
    return " ".join(line.lstrip("# ").strip() for line in match.group().splitlines())


def commands() -> str:
    """The help of every command."""
    out = [
        "# Commands",
        "",
        "`aloe COMMAND --help` prints the same. In a checkout it is `./aloe`. A command ends with 0 when it succeeded, with 1 and one sentence "
        "on bad input, with 2 when it was not understood.",
    ]
    for entry in sorted(entry_points(group="aloe.commands"), key=lambda e: e.name):
        name = f"aloe {entry.name.replace('.', ' ')}"
        try:
            shown = help_text(entry, name)
        except ModuleNotFoundError:
            continue  # a command whose module is not there, as `aloe --help` says
        out += ["", f"## {name}", "", "```text", shown, "```"]
    return "\n".join(out)


def help_text(entry: EntryPoint, name: str) -> str:
    """What `--help` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        tyro.cli(entry.load(), prog=name, args=["--help"])
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def configuration() -> str:
    """The configuration dataclasses."""
    out = [
        "# Configuration",
        "",
        "What the YAML files and options hold. An unknown key or a bad value is refused by name. Robot descriptions are the files in "
        "[`config/robots`](../../config/robots); `BcConfig` is what `aloe train bc --config` reads and `ImproveConfig` what `aloe improve --config` reads; "
        "the configurations of methods are the `options` of `ImproveConfig`.",
    ]
    for group, classes in configuration_classes().items():
        out += ["", f"## {group}"]
        for name, doc, settings in classes:
            out += ["", f"### {name}", "", doc, "", *table("key", settings)]
    return "\n".join(out)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
