"""Checkpoints that come back equal, and the one sentence each kind of bad one gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aloe_core.errors import AloeError
from aloe_core.policy import load_policy
from aloe_core.robot import RobotDescription, load_robot
from aloe_policy.checkpoint import PolicySpec, check_robot, read_checkpoint
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation

HORIZON = 10


@pytest.fixture(scope="module")
def robot() -> RobotDescription:
    return load_robot("aloha_sim")


def make_policy(robot: RobotDescription, config: FlowConfig | None = None) -> FlowPolicy:
    torch.manual_seed(0)
    data = np.random.default_rng(0)
    statistics = {k: data.normal(1.0, 2.0, (50, n)) for k, n in {"state": 14, "action": 14, "object_state": 7}.items()}
    spec = PolicySpec.of(robot, HORIZON, object_dim=7)
    return FlowPolicy(spec, config or FlowConfig(width=16, layers=1), Normalisation.of_data(statistics))


@pytest.fixture
def folder(robot: RobotDescription, tmp_path: Path) -> Path:
    make_policy(robot).save(tmp_path / "policy", "bc-0")
    return tmp_path / "policy"


def edit(folder: Path, **changes: object) -> None:
    """Changes the description and gives it a matching hash, as a foreign writer would."""
    from aloe_policy.checkpoint import WEIGHTS_FILE, _content_hash

    file = folder / "policy.json"
    description = json.loads(file.read_text()) | changes
    description.pop("sha256")
    data = (folder / WEIGHTS_FILE).read_bytes()
    file.write_text(json.dumps({**description, "sha256": _content_hash(description, data)}))


def test_a_loaded_policy_acts_bit_for_bit_as_the_saved_one(robot: RobotDescription, folder: Path) -> None:
    policy = make_policy(robot).eval()
    loaded = FlowPolicy.load(folder, robot)
    batch = {"state": torch.randn(3, 14), "object_state": torch.randn(3, 7)}
    chunks = [p.act(batch, torch.Generator().manual_seed(3)) for p in (policy, loaded)]
    assert chunks[0].shape == (3, HORIZON, 14)
    assert torch.equal(*chunks)
    assert loaded.spec == policy.spec
    assert loaded.config == policy.config


def test_the_hash_names_the_content(robot: RobotDescription, tmp_path: Path) -> None:
    policy = make_policy(robot)
    first = policy.save(tmp_path / "a", "bc-0")
    assert policy.save(tmp_path / "b", "bc-0") == first
    assert policy.save(tmp_path / "a", "bc-1") != first, "the name is content, too"
    with torch.no_grad():
        next(policy.parameters())[0] += 1e-6
    assert policy.save(tmp_path / "b", "bc-0") != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"], "nothing temporary is left"


def test_the_registry_serves_a_checkpoint_folder(robot: RobotDescription, folder: Path) -> None:
    served = load_policy(str(folder), robot)
    assert served.horizon == HORIZON
    assert served.version.startswith("bc-0-")
    assert served.uses_task_state


@pytest.mark.parametrize("missing", ["policy.json", "model.safetensors"])
def test_missing_files(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(AloeError, match=f"not a policy checkpoint: {missing} is missing"):
        FlowPolicy.load(folder)


def test_truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AloeError, match=r"damaged: its content does not have the hash"):
        FlowPolicy.load(folder)


def test_edited_description(folder: Path) -> None:
    file = folder / "policy.json"
    file.write_text(file.read_text().replace('"steps": 10', '"steps": 11'))
    with pytest.raises(AloeError, match="does not have the hash"):
        FlowPolicy.load(folder)


def test_description_that_is_not_json(folder: Path) -> None:
    (folder / "policy.json").write_text("{")
    with pytest.raises(AloeError, match="not JSON"):
        FlowPolicy.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "act"}, "holds a policy of type 'act', not 'flow'"),
        ({"type": 3}, "not a policy description"),
        ({"format": 99}, "checkpoint format 99 cannot be read"),
        ({"config": {"wide": 3}}, "config: wide: unknown key"),
        ({"config": {"width": 32, "layers": 1}}, "weights do not fit the configuration"),
        ({"config": {"width": 0}}, "width must be at least 1"),
        ({"spec": {"robot": "x"}}, "spec: robot_hash"),
        ({"normalisation": {}}, "normalisation 'state/mean' is not 14 finite numbers"),
    ],
)
def test_foreign_descriptions(folder: Path, changes: dict, message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(AloeError, match=message):
        FlowPolicy.load(folder)


def test_weights_that_are_not_finite(robot: RobotDescription, tmp_path: Path) -> None:
    policy = make_policy(robot)
    with torch.no_grad():
        policy.network.leave.weight[0, 0] = float("nan")
    policy.save(tmp_path / "p")
    with pytest.raises(AloeError, match=r"weight 'network\.leave\.weight' is not finite"):
        FlowPolicy.load(tmp_path / "p")


def test_a_file_that_is_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04hello")
    edit(folder)
    with pytest.raises(AloeError, match="not a readable safetensors file"):
        read_checkpoint(folder, "flow")


def test_robots_that_do_not_fit(robot: RobotDescription, folder: Path) -> None:
    spec = FlowPolicy.load(folder).spec
    check_robot(spec, robot, "it")
    names = list(spec.action_names)
    names[0], names[1] = names[1], names[0]
    for wrong, message in (
        (replace(spec, action_names=spec.action_names[:7]), "has 7 actions, robot 'aloha_sim' has 14"),
        (
            replace(spec, action_names=tuple(names)),
            "has 'left_shoulder' as action 0, robot 'aloha_sim' has 'left_waist'",
        ),
        (replace(spec, cameras=("ceiling",)), "has no camera 'ceiling'"),
        (replace(spec, robot_hash="0" * 16), "made for robot 'aloha_sim' with hash 0000"),
    ):
        with pytest.raises(AloeError, match=message):
            check_robot(wrong, robot, "it")
    one_arm = robot.model_copy(update={"arms": robot.arms[:1]})
    with pytest.raises(AloeError, match="has 14 actions, robot 'aloha_sim' has 7"):
        FlowPolicy.load(folder, one_arm)


def test_writing_is_atomic(robot: RobotDescription, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = FlowPolicy.load_with_version(folder)[1]

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("aloe_policy.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        make_policy(robot).save(folder, "bc-1")
    assert FlowPolicy.load_with_version(folder)[1] == before


class Killed(Exception):
    """Stands for the kill."""


def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(
    robot: RobotDescription, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, rename = [], Path.rename

    def killed_between_two(self: Path, target: Path) -> Path:
        if renamed:
            raise Killed
        renamed.append(target)
        return rename(self, target)

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise Killed

    monkeypatch.setattr(Path, "rename", killed_between_two)
    monkeypatch.setattr("aloe_policy.checkpoint.shutil.rmtree", killed)
    with pytest.raises(Killed):
        make_policy(robot).save(folder, "bc-1")
    assert FlowPolicy.load_with_version(folder)[1].startswith("bc-1-")


@pytest.mark.parametrize("exchange", [True, False])
def test_only_the_new_checkpoint_remains(
    robot: RobotDescription, folder: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # as on a file system that cannot
        monkeypatch.setattr("aloe_policy.checkpoint._exchange", lambda one, other: False)
    make_policy(robot).save(folder, "bc-1")
    assert FlowPolicy.load_with_version(folder)[1].startswith("bc-1-")
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def test_what_is_no_checkpoint_is_left_alone(robot: RobotDescription, folder: Path) -> None:
    policy, before = make_policy(robot), FlowPolicy.load_with_version(folder)[1]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(AloeError, match=r"policy holds 'notes\.txt' and is not a checkpoint; choose another folder"):
        policy.save(folder, "bc-1")
    assert FlowPolicy.load_with_version(folder)[1] == before
    assert (folder / "notes.txt").read_text() == "mine"
    file, link, empty = (folder.parent / name for name in ("file", "link", "empty"))
    file.write_text("mine")
    link.symlink_to(folder)
    for other in (file, link):
        with pytest.raises(AloeError, match="is not a checkpoint; choose another folder"):
            policy.save(other, "bc-1")
    assert file.read_text() == "mine"
    empty.mkdir()
    policy.save(empty, "bc-1")
    assert FlowPolicy.load_with_version(empty)[1].startswith("bc-1-")
