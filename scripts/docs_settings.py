"""Settings as the code declares them: parameters of nodes (by their syntax trees: importing a node needs ROS) and fields of configuration classes.

The meaning of a setting is the comment at the end of its line, or its entry under `Attributes:`. A parameter without one has the meaning of the launch
argument that is passed to it, or of its line in config/nodes.yaml.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

CONFIGURATIONS = {
    "Robot description": (
        "aloe_core.robot",
        ("RobotDescription", "Arm", "Joint", "Gripper", "ArmOutput", "Camera", "SafetyLimits"),
    ),
    "Control": ("aloe_robot.control.config", ("ControlConfig",)),
    "Behaviour cloning": ("aloe_policy.bc_config", ("BcConfig", "FlowConfig")),
    "Improvement": ("aloe_critic.improvement", ("ImproveConfig", "RewardConfig", "CriticConfig", "LearnerConfig")),
    "Methods": (
        "aloe_critic.methods",
        ("AloeConfig", "PessorlConfig", "OtaConfig", "VlearnConfig", "AwrConfig", "RecapConfig"),
    ),
    "Simulated operator": ("aloe_intervention.operator_sim", ("OperatorConfig",)),
}


@dataclass(frozen=True)
class Setting:
    """One line of a table."""

    name: str
    default: str
    meaning: str


def table(title: str, settings: Sequence[Setting]) -> Iterator[str]:
    """Settings as a Markdown table."""
    yield f"| {title} | default | |"
    yield "|---|---|---|"
    for setting in settings:
        default = f"`{setting.default}`" if setting.default else ""
        yield (
            "| "
            + " | ".join(text.replace("|", "\\|") for text in (f"`{setting.name}`", default, setting.meaning))
            + " |"
        )


def configuration_classes() -> dict[str, list[tuple[str, str, list[Setting]]]]:
    """Per group: name, description and fields of every configuration class."""
    groups = {}
    for group, (module_name, names) in CONFIGURATIONS.items():
        module = importlib.import_module(module_name)
        classes = [getattr(module, name) for name in names]
        groups[group] = [(c.__name__, prose(c.__doc__), fields_of(c)) for c in classes]
    return groups


def prose(doc: str | None) -> str:
    """A docstring up to its first section."""
    return re.split(r"\n\s*(?:Attributes|Args|Raises|Returns|Parameters):", inspect.cleandoc(doc or ""))[0].strip()


def fields_of(config: type) -> list[Setting]:
    """The fields of a dataclass or pydantic model with their defaults as written and their comments."""
    source = textwrap.dedent(inspect.getsource(config))
    comments = comments_by_line(source)
    described = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", inspect.cleandoc(config.__doc__ or ""), re.MULTILINE))
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    settings = []
    for node in body.body:
        if (
            not isinstance(node, ast.AnnAssign)
            or not isinstance(node.target, ast.Name)
            or node.target.id.startswith("_")
        ):
            continue
        name = node.target.id
        meaning = comment_at(node, comments) or " ".join(described.get(name, "").split())
        settings.append(Setting(name, "" if node.value is None else shown(node.value), meaning))
    return settings


def node_classes(root: Path) -> Iterator[tuple[str, str, str, list[Setting]]]:
    """Package, name, summary and parameters of every node that is installed as an executable."""
    passed = passed_by_launch_files(root)
    scripts = [
        e for e in entry_points(group="console_scripts") if ".nodes." in e.module and e.module.startswith("aloe_")
    ]
    for entry in sorted(scripts, key=lambda e: (e.module.split(".")[0], e.name)):
        package = entry.module.split(".")[0]
        file = root / "src" / package / Path(*entry.module.split(".")).with_suffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        settings = [
            s if s.meaning else Setting(s.name, s.default, passed.get((entry.name, s.name), ""))
            for s in declared(file, tree)
        ]
        yield package, entry.name, " ".join(prose(ast.get_docstring(tree)).split("\n\n")[0].split()), settings


def declared(file: Path, tree: ast.Module) -> list[Setting]:
    """The parameters a node's file declares, one by one or as the fields of configuration classes."""
    source = file.read_text(encoding="utf-8")
    comments = comments_by_line(source)
    defined = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    settings: list[Setting] = []
    if "ManagedNode" in defined:
        settings.append(Setting("autostart", "True", "configure and activate at once; else by the lifecycle services"))
    in_order = sorted((n for n in ast.walk(tree) if hasattr(n, "lineno")), key=lambda n: (n.lineno, n.col_offset))
    for node in in_order:
        if isinstance(node, ast.Call):
            settings += call_settings(node, comments, defined)
        elif isinstance(node, ast.For) and "declare_parameter" in ast.unparse(node.body[0]):
            match = re.fullmatch(r"fields\((\w+)\)", ast.unparse(node.iter))
            if match:
                settings += fields_of(imported(match.group(1), defined))
    unique: dict[str, Setting] = {}
    for setting in settings:
        unique.setdefault(setting.name, setting)
    return list(unique.values())


def call_settings(call: ast.Call, comments: dict[int, str], defined: dict[str, str | None]) -> list[Setting]:
    """What one call declares: nothing, a parameter, or all fields of a configuration class."""
    function = ast.unparse(call.func)
    if function == "declare_config":
        return fields_of(imported(ast.unparse(call.args[1]), defined))
    if function == "declare":  # aloe_robot.nodes.parameters: the node comes first
        given, default = call.args[1:]
    elif function.endswith((".declare_parameter", "._positive")):
        given, default = call.args[:2]
    else:
        return []
    if isinstance(given, (ast.Attribute, ast.Name)):  # a helper: its callers say which parameter
        return []
    name = ast.literal_eval(given) if isinstance(given, ast.Constant) else templated(given)
    return [Setting(name, shown(default), comment_at(call, comments))]


def templated(node: ast.expr) -> str:
    """`f"{arm}.device"` as `<arm>.device`."""
    assert isinstance(node, ast.JoinedStr)
    return "".join(
        part.value if isinstance(part, ast.Constant) else f"<{ast.unparse(part.value)}>"  # type: ignore[attr-defined,misc]
        for part in node.values
    )


def imported(name: str, defined: dict[str, str | None]) -> Any:
    """A class that a node's file imports; all configuration classes are in modules without ROS."""
    return getattr(importlib.import_module(defined[name] or ""), name)


def comments_by_line(source: str) -> dict[int, str]:
    """Line number -> its comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def comment_at(node: ast.AST, comments: dict[int, str]) -> str:
    """The comments on the lines of a statement; those for linters are left out."""
    lines = range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]
    found = [comments[line] for line in lines if line in comments and not re.match(r"noqa|type:", comments[line])]
    return " ".join(found)


def shown(value: ast.expr) -> str:
    """A default as a person would write it: that of `field(default_factory=...)` or `Field(...)` included."""
    text = ast.unparse(value)
    factory = re.fullmatch(r"field\(default_factory=(.+)\)", text)
    if factory:
        return {"dict": "{}", "list": "[]"}.get(factory.group(1), f"{factory.group(1)}()")
    return text.replace("'", '"')


def passed_by_launch_files(root: Path) -> dict[tuple[str, str], str]:
    """(node, parameter) -> its line's comment in config/nodes.yaml, or the description of the launch argument that is passed to it."""
    meanings: dict[tuple[str, str], str] = {}
    node = ""
    for line in (root / "config/nodes.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"/\*\*/(\w+):", line):
            node = match.group(1)
        elif match := re.match(r"\s+(\w+): .*?# (.+)", line):
            meanings[node, match.group(1)] = match.group(2)
    for file in sorted((root / "launch").glob("*.launch.yaml")):
        entities = yaml.safe_load(file.read_text(encoding="utf-8"))["launch"]
        described = {e["arg"]["name"]: e["arg"].get("description", "") for e in entities if "arg" in e}
        for entity in entities:
            for parameter in entity.get("node", {}).get("param", []):
                match = re.fullmatch(r"\$\(var (\w+)\)", str(parameter.get("value", "")))
                if match and match.group(1) in described:
                    meanings.setdefault((entity["node"]["exec"], parameter["name"]), described[match.group(1)])
    return meanings
