"""LeRobot's own policies, small and randomly initialised, behind our protocol. Runs where the package `lerobot` is installed, is skipped elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot.policies.factory", reason="LeRobot is not installed here", exc_type=ImportError)

from lerobot_toys import CAMERA, ROBOT, A, H, Tokens, act_policy, toy_pi, toy_smolvla

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.policy import load_policy as load_registered
from aloe_core.policy import request_generator
from aloe_policy.lerobot import LeRobotPolicy, load_policy
from aloe_policy.protocol import SampleBatch

B = 4


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(images: bool = False) -> SampleBatch:
    rng = generator(7)
    mask = torch.ones(B, H, dtype=torch.bool)
    mask[1, 2:] = False
    mask[3, 5:] = False
    found: SampleBatch = {
        "state": torch.randn(B, A, generator=rng),
        "object_state": torch.randn(B, 7, generator=rng),
        "action": torch.randn(B, H, A, generator=rng),
        "action_mask": mask,
    }
    if images:
        found["images"] = {CAMERA: torch.randint(0, 256, (B, 32, 48, 3), generator=rng, dtype=torch.uint8)}
    return found


def garbled(found: SampleBatch) -> SampleBatch:
    """The same batch with other numbers in the rows that were not executed."""
    action = torch.where(found["action_mask"][:, :, None], found["action"], torch.tensor(1e3))
    return {**found, "action": action}


def test_acts_in_physical_units_like_lerobot_itself() -> None:
    policy, found = act_policy(), batch()
    inputs = {"observation.state": (found["state"] - 0.5) / 2.0, "observation.environment_state": found["object_state"]}
    normalised = policy.policy.predict_action_chunk(inputs)
    chunk = policy.act(found, generator())
    assert chunk.shape == (B, H, A)
    expected = normalised * torch.linspace(0.5, 3, A) + torch.linspace(-1, 1, A)
    torch.testing.assert_close(chunk, expected, rtol=1e-5, atol=1e-5)


def test_losses_of_act_are_each_samples_own() -> None:
    policy, found = act_policy(use_vae=False), batch()
    losses = policy.train().loss(found, generator())
    assert losses.shape == (B,)
    mean, std = torch.linspace(-1, 1, A), torch.linspace(0.5, 3, A)
    predicted = (policy.act(found, generator()) - mean) / std
    error = (predicted - (found["action"] - mean) / std).abs().mean(2)
    expected = (error * found["action_mask"]).sum(1) / found["action_mask"].sum(1)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_without_padding_the_mean_is_lerobots_own_loss() -> None:
    policy, found = act_policy(use_vae=False), batch()
    del found["action_mask"]
    prepared = policy.preprocessor(
        {
            "observation.state": found["state"],
            "observation.environment_state": found["object_state"],
            "action": found["action"],
            "action_is_pad": torch.zeros(B, H, dtype=torch.bool),
        }
    )
    torch.testing.assert_close(policy.loss(found, generator()).mean(), policy.policy(prepared)[0], rtol=1e-5, atol=1e-6)


def test_rows_that_were_not_executed_have_no_influence() -> None:
    policy = act_policy(dropout=0.1).train()  # the variational encoder reads the actions
    one, other = policy.loss(batch(), generator()), policy.loss(garbled(batch()), generator())
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_generator_is_the_only_randomness() -> None:
    policy = act_policy(dropout=0.2).train()
    before = torch.random.get_rng_state()
    one, again, other = (policy.loss(batch(), generator(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_weighted_training_moves_the_policy_towards_the_weighted_sample() -> None:
    policy, found = act_policy(use_vae=False).train(), batch()
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    before = policy.loss(found, generator()).detach()
    for _ in range(60):
        optimizer.zero_grad()
        (weights * policy.loss(found, generator())).sum().backward()
        optimizer.step()
    gain = before - policy.loss(found, generator()).detach()
    assert gain[0] > 0.5 * before[0]
    assert gain[0] > gain[1:].max()
    policy.act(found, generator())
    assert policy.policy.training  # acting leaves the mode as it was


@pytest.mark.parametrize("images", [False, True])
def test_a_checkpoint_is_the_same_policy(tmp_path: Path, images: bool) -> None:
    policy, found = act_policy(images), batch(images)
    policy.save(tmp_path / "c", "run-3")
    loaded, version = LeRobotPolicy.load_with_version(tmp_path / "c", ROBOT)
    assert version.startswith("run-3-")
    assert loaded.spec == policy.spec
    torch.testing.assert_close(loaded.act(found, generator()), policy.act(found, generator()), rtol=0, atol=0)
    torch.testing.assert_close(
        loaded.train().loss(found, generator()), policy.train().loss(found, generator()), rtol=0, atol=0
    )


def test_lerobots_own_checkpoint_drives_the_robot(tmp_path: Path) -> None:
    policy = act_policy(images=True)
    policy.policy.save_pretrained(tmp_path)
    policy.preprocessor.save_pretrained(tmp_path)
    policy.postprocessor.save_pretrained(tmp_path)
    acting = load_policy(f"lerobot:{tmp_path}", ROBOT)
    assert (acting.horizon, acting.cameras, acting.image_size, acting.uses_task_state) == (
        H,
        (CAMERA,),
        (32, 48),
        False,
    )
    assert acting.version.startswith("act-0-")
    found = batch(images=True)
    observation = Observation(0, found["state"][0].numpy(), {CAMERA: found["images"][CAMERA][0].numpy()}, "do it")
    chunk = acting.propose(observation, request_generator(0, "e", 1))
    np.testing.assert_allclose(chunk, policy.act(found, generator())[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(AloeError, match=f"image of camera '{CAMERA}'"):
        acting.propose(Observation(0, observation.state), request_generator(0, "e", 1))


def test_the_registry_finds_it(tmp_path: Path) -> None:
    act_policy().save(tmp_path / "c")
    try:
        acting = load_registered(str(tmp_path / "c"), ROBOT)
    except AloeError as error:
        if "known policy" in str(error):
            pytest.skip("aloe_policy is not installed in this environment, so it has no entry points")
        raise
    assert acting.uses_task_state
    with pytest.raises(AloeError, match="needs an object state of 7 numbers, the observation has none"):
        acting.propose(Observation(0, np.zeros(A, np.float32)), request_generator(0, "e", 1))


def edit_json(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "cannot load"),
        (lambda d: edit_json(d / "config.json", lambda c: c.update(type="none")), "cannot load"),
        (lambda d: edit_json(d / "config.json", lambda c: c.update(dim_model=32)), "cannot load"),
        (lambda d: (d / "model.safetensors").write_bytes(b"12345678901"), "cannot load"),
        (lambda d: (d / "policy_preprocessor.json").write_text("[]"), "not a LeRobot pipeline"),
        (
            lambda d: edit_json(d / "policy_preprocessor.json", lambda c: c["steps"].append({"class": "os.system"})),
            "by import path",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage, message: str) -> None:
    policy = act_policy()
    for part in (policy.policy, policy.preprocessor, policy.postprocessor):
        part.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(AloeError, match=message):
        LeRobotPolicy.from_lerobot(tmp_path, ROBOT)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    policy = act_policy()
    with torch.no_grad():
        next(policy.policy.parameters())[0] = torch.nan
    for part in (policy.policy, policy.preprocessor, policy.postprocessor):
        part.save_pretrained(tmp_path)
    with pytest.raises(AloeError, match="is not finite"):
        LeRobotPolicy.from_lerobot(tmp_path, ROBOT)


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_losses_of_vlas_are_each_samples_own(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    inner = toy_smolvla(monkeypatch) if kind == "smolvla" else toy_pi(monkeypatch, kind)
    assert inner.config.type == kind
    policy = LeRobotPolicy(inner, Tokens(), lambda chunk: chunk, ROBOT, instruction="do it").train()
    found = batch(images=True)
    losses = policy.loss(found, generator())
    assert losses.shape == (B,)
    assert losses.requires_grad
    torch.testing.assert_close(losses, policy.loss(garbled(found), generator()), rtol=0, atol=0)

    # closed form: the elements its inner model returns for the same noise, averaged over executed rows
    elements = []
    original = inner.model.forward
    monkeypatch.setattr(inner.model, "forward", lambda *a, **k: elements.append(original(*a, **k)) or elements[-1])
    policy.loss(found, generator())
    mask = found["action_mask"]
    expected = (elements[0][:, :, :A].mean(2) * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)

    whole = dict(found)
    del whole["action_mask"]
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator())))
        prepared = policy._prepared({**policy._observation(whole), "action": whole["action"]})
        own = inner(prepared)[0]
    torch.testing.assert_close(policy.loss(whole, generator()).mean(), own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_vlas_act(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    inner = toy_smolvla(monkeypatch) if kind == "smolvla" else toy_pi(monkeypatch, kind)
    policy = LeRobotPolicy(inner, Tokens(), lambda chunk: chunk, ROBOT)
    one, again, other = (policy.act(batch(images=True), generator(seed)) for seed in (1, 1, 2))
    assert one.shape == (B, H, A)
    assert torch.isfinite(one).all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
