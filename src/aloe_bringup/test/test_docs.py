"""The generated reference says what is so, and pages are turned into HTML as intended."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]
EVERY_NODE_HAS = {"use_sim_time", "start_type_description_service"}


@pytest.fixture
def scripts(monkeypatch):
    """scripts/ on the import path, as when `make docs` runs there."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    for name in [name for name in sys.modules if name.startswith("docs_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "node",
    [
        "aloe_robot.nodes.control_node:ControlNode",
        "aloe_robot.nodes.camera_node:CameraNode",
        "aloe_intervention.nodes.recorder_node:RecorderNode",
        "aloe_intervention.nodes.teleop_node:TeleopNode",
        "aloe_policy.nodes.policy_node:PolicyNode",
    ],
)
def test_the_parameters_found_in_the_source_are_those_of_the_running_node(node, scripts, ros_domain):
    import rclpy
    from docs_settings import node_classes

    module, name = node.split(":")
    found = {executable: {s.name for s in settings} for _, executable, _, settings in node_classes(ROOT)}
    rclpy.init()
    try:
        running = getattr(importlib.import_module(module), name)()
        declared = {p for p in running._parameters if not p.startswith("qos_")} - EVERY_NODE_HAS
        running.destroy_node()
    finally:
        rclpy.shutdown()
    assert found[module.rsplit(".", 1)[1]] == declared


def test_every_field_of_every_interface_is_in_its_table(scripts):
    from docs_reference import interfaces

    page = interfaces()
    files = [f for kind in ("msg", "srv", "action") for f in (ROOT / "src/aloe_msgs" / kind).iterdir()]
    assert files
    for file in files:
        section = re.search(rf"^### {file.stem}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)[1]
        lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
        names = [line.split("=")[0].split()[1] for line in lines if line and line != "---"]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert all(f"| `{name}` |" in section for name in names)


def test_comments_become_meanings(scripts):
    from docs_settings import fields_of

    from aloe_critic.improvement import ImproveConfig
    from aloe_policy.replay import RewardConfig

    assert {s.name: s.default for s in fields_of(ImproveConfig)}["options"] == "{}"
    gamma = fields_of(RewardConfig)[0]  # documented under Attributes
    assert (gamma.name, gamma.default) == ("gamma", "0.99")
    assert gamma.meaning.startswith("discount per control step")


def test_links_out_of_the_docs_become_names_and_formulas_mathml(scripts):
    from docs_hooks import on_page_content, on_page_markdown

    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference/page.md"))
    text = "[a](../architecture.md) [b](../../config/nodes.yaml)\n```\n[c](../../x)\n```\n"
    assert on_page_markdown(text, page=page) == (
        '[a](../architecture.md) <span class="source" title="in the repository: config/nodes.yaml">b</span>\n```\n[c](../../x)\n```\n'
    )
    made = on_page_content(r'<span class="arithmatex">\(a &lt; b\)</span><div class="arithmatex">\[c\]</div>')
    assert made.count("<math") == 2
    assert "&#x0003C;" in made
    assert '<div class="formula"><math' in made
    assert "\\" not in made
