"""The Foxglove layout refers to topics and fields that exist, and every panel in it is shown."""

import json
import re
from pathlib import Path

import pytest
from rosbags.interfaces import Nodetype

from aloe_core import topics
from aloe_core.messages import typestore
from aloe_core.robot import load_robot
from aloe_policy.replayed_bag import CHUNK, VALUE

FILE = Path(__file__).resolve().parents[3] / "config" / "foxglove" / "aloe.json"
LAYOUT = json.loads(FILE.read_text())
ROBOT = load_robot("aloha_sim")
TYPES = {
    topics.CONTROL_STATE: "ControlState",
    topics.TRANSITION: "Transition",
    topics.SAFETY_STATUS: "SafetyStatus",
    topics.EPISODE_EVENT: "EpisodeEvent",
    topics.POLICY_STATUS: "PolicyStatus",
    topics.CHUNK: "ActionChunk",
    topics.CRITIC_VALUE: "CriticValue",
    CHUNK: "ActionChunk",
    VALUE: "CriticValue",
}
LENGTHS = {"mode": len(ROBOT.arms), "commanded": ROBOT.action_dim, "measured": ROBOT.action_dim, "proposal": ROBOT.action_dim}  # fmt: skip


def paths():
    """Every message path in the layout, with how its time is taken."""
    return [(p["value"], p["timestampMethod"]) for c in LAYOUT["configById"].values() for p in c.get("paths", [])]


def resolve(path):
    """Checks `/topic.field[index]` against the message definitions; the field's kind."""
    match = re.fullmatch(r"/([\w/]+)\.(\w+)(?:\[(\d+)\])?", path)
    assert match, f"{path}: not a path of one field"
    topic, field, index = match.groups()
    assert topic in TYPES, f"{path}: no such topic"
    _, fields = typestore().fielddefs[f"aloe_msgs/msg/{TYPES[topic]}"]
    kinds = {name: kind for name, (kind, _) in fields}
    assert field in kinds, f"{path}: {TYPES[topic]} has no field '{field}'"
    is_array = kinds[field] in (Nodetype.ARRAY, Nodetype.SEQUENCE)
    assert is_array == (index is not None), f"{path}: an array needs an index, a single value none"
    assert index is None or int(index) < LENGTHS[field], f"{path}: has {LENGTHS[field]} entries"
    assert "header" in kinds
    return kinds[field]


def test_every_path_exists():
    assert len(paths()) == 42 + 6 + 6 + 6
    for path, time in paths():
        resolve(path)
        assert time == "headerStamp"


@pytest.mark.parametrize(
    "wrong",
    ["/control/state.commandd[0]", "/control/states.mode[0]", "/control/state.mode", "/control/state.mode[2]", "/critic/value.q[0]"],
)  # fmt: skip
def test_the_check_finds_mistakes(wrong):
    with pytest.raises(AssertionError):
        resolve(wrong)


def test_each_joint_is_shown_as_measured_commanded_and_proposed():
    for index, joint in enumerate(ROBOT.action_names):
        shown = [p["value"] for p in LAYOUT["configById"][f"Plot!{joint}"]["paths"]]
        assert shown == [
            f"/control/state.measured[{index}]",
            f"/control/state.commanded[{index}]",
            f"/control/transition.proposal[{index}]",
        ]


def test_the_sign_of_the_advantage_can_be_read():
    indicators = [c for name, c in LAYOUT["configById"].items() if name.startswith("Indicator!")]
    assert [c["path"] for c in indicators] == [f"/{topics.CRITIC_VALUE}.advantage", f"/{VALUE}.advantage"]
    for config in indicators:
        assert resolve(config["path"]) == Nodetype.BASE
        assert [(rule["operator"], rule["rawValue"]) for rule in config["rules"]] == [(">", "0"), ("<", "0")]
        assert len({config["fallbackColor"], *(rule["color"] for rule in config["rules"])}) == 3


def test_cameras_and_diagnostics():
    images = {c["imageMode"]["imageTopic"] for c in LAYOUT["configById"].values() if "imageMode" in c}
    infos = {c["imageMode"]["calibrationTopic"] for c in LAYOUT["configById"].values() if "imageMode" in c}
    assert images == {c.compressed_topic for c in ROBOT.cameras}
    assert infos == {c.info_topic for c in ROBOT.cameras}
    assert LAYOUT["configById"]["DiagnosticSummary!nodes"]["topicToRender"] == topics.DIAGNOSTICS


def test_every_panel_is_placed_once():
    def leaves(node):
        if isinstance(node, str):
            return [node]
        assert set(node) == {"direction", "first", "second", "splitPercentage"}
        assert node["direction"] in ("row", "column")
        assert 0 < node["splitPercentage"] < 100
        return leaves(node["first"]) + leaves(node["second"])

    placed = leaves(LAYOUT["layout"])
    for config in LAYOUT["configById"].values():
        for tab in config.get("tabs", []):
            placed += leaves(tab["layout"])
    assert sorted(placed) == sorted(LAYOUT["configById"])
