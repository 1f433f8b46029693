"""What LeRobotPolicy refuses, on a stand-in with the interface of LeRobot's policies; the real ones are in test_lerobot_policy.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.robot import load_robot
from aloe_policy import lerobot
from aloe_policy.lerobot import LeRobotPolicy, _last_executed, load_policy
from aloe_policy.lerobot_acting import LeRobotActing

ROBOT = load_robot("aloha_sim")
A, H = ROBOT.action_dim, 5
CAMERAS = [c.name for c in ROBOT.cameras]
IMAGE = "observation.images."


def features(**shapes: tuple[int, ...]) -> dict:
    return {key.replace("__", "."): SimpleNamespace(shape=shape) for key, shape in shapes.items()}


class StandIn(nn.Module):
    """Proposes a learned constant, and says of itself what it is told to."""

    def __init__(self, inputs: dict | None = None, action: int = A, kind: str = "act", n_obs_steps: int = 1) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(action))
        self.seen: dict = {}
        self.config = SimpleNamespace(
            type=kind,
            n_obs_steps=n_obs_steps,
            chunk_size=H,
            input_features=inputs if inputs is not None else features(observation__state=(A,)),
            output_features=features(action=(action,)),
        )

    def predict_action_chunk(self, batch: dict) -> torch.Tensor:
        self.eval()
        self.seen = batch
        noise = torch.randn(len(batch["observation.state"]), H, A)
        return self.offset + noise

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict]:
        error = (batch["action"] - self.offset).square().mean(2)
        valid = ~batch["action_is_pad"]
        return (error * valid).sum() / valid.sum(), {}


def adapter(policy: StandIn, **more) -> LeRobotPolicy:
    return LeRobotPolicy(policy, lambda inputs: inputs, lambda chunk: chunk, ROBOT, **more)


def images(*names: str, size: tuple[int, int] = (8, 12)) -> dict:
    return features(observation__state=(A,)) | {n: SimpleNamespace(shape=(3, *size)) for n in names}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (StandIn(features(observation__state=(A - 1,))), r"'observation.state' has the shape \(13,\)"),
        (StandIn({}), "'observation.state' has the shape None"),
        (StandIn(action=7), r"'action' has the shape \(7,\)"),
        (StandIn(n_obs_steps=2), "2 observations"),
        (StandIn(images(IMAGE + "moon")), "no camera 'moon'"),
        (
            StandIn(features(observation__state=(A,), observation__effort=(3,))),
            "no camera is named for observation.effort",
        ),
        (StandIn(images(IMAGE + CAMERAS[0]) | images(IMAGE + CAMERAS[1], size=(4, 4))), "different sizes"),
    ],
)
def test_a_policy_that_does_not_fit_the_robot_is_refused(policy: StandIn, message: str) -> None:
    with pytest.raises(AloeError, match=message):
        adapter(policy)


def test_cameras_may_have_other_names_in_the_policy() -> None:
    policy = adapter(StandIn(images(IMAGE + "camera1")), cameras={CAMERAS[1]: IMAGE + "camera1"})
    assert (policy.spec.cameras, policy.spec.image_size) == ((CAMERAS[1],), (8, 12))
    pixels = torch.arange(8 * 12 * 3, dtype=torch.uint8).reshape(1, 8, 12, 3)
    policy.act({"state": torch.zeros(1, A), "images": {CAMERAS[1]: pixels}}, torch.Generator())
    seen = policy.policy.seen[IMAGE + "camera1"]
    torch.testing.assert_close(seen, pixels.permute(0, 3, 1, 2) / 255)
    with pytest.raises(AloeError, match=r"it has no observation\.images\.camera2"):
        adapter(
            StandIn(images(IMAGE + "camera1")), cameras={CAMERAS[0]: IMAGE + "camera1", CAMERAS[1]: IMAGE + "camera2"}
        )


def test_the_observations_instruction_goes_before_the_policys_own() -> None:
    acting = LeRobotActing(adapter(StandIn(), instruction="tidy up"), "v")
    for said, told in (("pour tea", "pour tea"), ("", "tidy up")):
        chunk = acting.propose(Observation(0, np.zeros(A, np.float32), {}, said), np.random.default_rng(0))
        assert acting.policy.policy.seen["task"] == [told]
        assert chunk.shape == (H, A)


@pytest.mark.parametrize(("kind", "instruction"), [("act", ""), ("smolvla", "tidy up"), ("smolvla", "")])
def test_a_policy_that_reads_words_is_not_asked_without_any(kind: str, instruction: str) -> None:
    acting = LeRobotActing(adapter(StandIn(kind=kind), instruction=instruction), "v")
    silent = Observation(0, np.zeros(A, np.float32))
    if kind == "act" or instruction:
        assert acting.propose(silent, np.random.default_rng(0)).shape == (H, A)
    else:
        with pytest.raises(AloeError, match="policy v follows an instruction, the observation has none"):
            acting.propose(silent, np.random.default_rng(0))


def test_losses_are_per_sample_and_leave_padded_rows_out() -> None:
    policy = adapter(StandIn())
    action, mask = torch.randn(3, H, A), torch.ones(3, H, dtype=torch.bool)
    mask[1, 2:] = False
    losses = policy.loss({"state": torch.zeros(3, A), "action": action, "action_mask": mask}, torch.Generator())
    expected = (action.square().mean(2) * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(losses, expected)


def test_a_type_whose_padding_is_not_known_has_no_loss() -> None:
    policy = adapter(StandIn(kind="diffusion"))
    batch = {"state": torch.zeros(1, A), "action": torch.zeros(1, H, A)}
    assert policy.act(batch, torch.Generator()).shape == (1, H, A)
    with pytest.raises(
        AloeError, match=r"'diffusion'.*cannot be trained here; types that can: act, smolvla, pi0, pi05"
    ):
        policy.loss(batch, torch.Generator())
    with pytest.raises(AloeError, match=r"'diffusion'.*cannot be trained here"):
        policy.check_trainable()
    adapter(StandIn()).check_trainable()


def test_rows_that_were_not_executed_repeat_the_one_before() -> None:
    action = torch.arange(6.0).reshape(1, 6, 1)
    for mask, expected in (
        ([1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]),
        ([1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]),
        ([0, 0, 1, 0, 1, 0], [2, 2, 2, 2, 4, 4]),
    ):
        assert _last_executed(action, torch.tensor([mask]).bool()).flatten().tolist() == expected


def test_loading_needs_lerobot_and_a_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AloeError, match="name the robot"):
        LeRobotPolicy.load(tmp_path)
    with pytest.raises(AloeError, match="not a policy checkpoint"):
        load_policy(str(tmp_path), ROBOT)
    monkeypatch.setattr(lerobot, "find_spec", lambda name: None)
    with pytest.raises(AloeError, match="pip install lerobot"):
        load_policy(f"lerobot:{tmp_path}", ROBOT)
