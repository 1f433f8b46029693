"""FlowPolicy learns, is deterministic given its generator, and counts only what was executed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.robot import RobotDescription, load_robot
from aloe_policy.acting import ActingPolicy
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import MAX_ETA, FlowConfig, FlowPolicy
from aloe_policy.normalisation import MIN_STD, Normalisation
from aloe_policy.protocol import SampleBatch, select

HORIZON = 12


@pytest.fixture(scope="module")
def robot() -> RobotDescription:
    return load_robot("aloha_sim")


def make_policy(robot: RobotDescription, **config) -> FlowPolicy:
    torch.manual_seed(0)
    one = torch.ones(14)
    normalisation = Normalisation({"state": (0 * one, one), "action": (0.5 * one, 0.3 * one)})
    return FlowPolicy(PolicySpec.of(robot, HORIZON), FlowConfig(**config), normalisation)


def waves(batch: int, seed: int = 0) -> SampleBatch:
    """Chunks that the state determines: sines, their phase given by the first joint."""
    state = torch.rand(batch, 14, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    steps = torch.arange(HORIZON)[None, :, None] / HORIZON
    return {"state": state, "action": 0.5 + 0.3 * torch.sin(2 * state[:, :1, None] + 3 * steps + torch.arange(14))}


@pytest.mark.parametrize("config", [{}, {"network": "transformer", "width": 32}])
def test_act_is_a_function_of_generator_and_observation(robot: RobotDescription, config: dict) -> None:
    policy, batch = make_policy(robot, **config).eval(), waves(4)
    first = policy.act(batch, torch.Generator().manual_seed(1))
    assert first.shape == (4, HORIZON, 14)
    assert not first.requires_grad
    assert torch.equal(first, policy.act(batch, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, policy.act(batch, torch.Generator().manual_seed(2)))


def test_loss_is_per_sample_and_blind_to_masked_rows(robot: RobotDescription) -> None:
    policy, batch = make_policy(robot, width=32, layers=1), waves(5)
    mask = torch.ones(5, HORIZON, dtype=torch.bool)
    mask[1, 4:] = False
    batch["action_mask"] = mask
    loss = policy.loss(batch, torch.Generator().manual_seed(0))
    assert loss.shape == (5,)
    batch["action"] = batch["action"].clone()
    batch["action"][1, 4:] = 1e6
    torch.testing.assert_close(policy.loss(batch, torch.Generator().manual_seed(0)), loss)


def test_weights_multiply_the_gradient_of_their_sample(robot: RobotDescription) -> None:
    policy, batch = make_policy(robot, width=16, layers=1), waves(3)

    def gradient(weights: list[float]) -> torch.Tensor:
        policy.zero_grad()
        (torch.tensor(weights) * policy.loss(batch, torch.Generator().manual_seed(0))).sum().backward()
        return policy.network.enter.weight.grad.clone()

    parts = [gradient([float(i == k) for i in range(3)]) for k in range(3)]
    torch.testing.assert_close(gradient([0.5, 2.0, 0.0]), 0.5 * parts[0] + 2 * parts[1])


@pytest.mark.parametrize(
    "config",
    [
        {"network": "mlp", "target": "action", "width": 128, "layers": 2},
        {"network": "mlp", "target": "velocity", "width": 64, "layers": 2},  # narrower than the chunk of 168 numbers
        {"network": "transformer", "target": "action", "width": 48, "layers": 2},
        {"network": "transformer", "target": "velocity", "width": 48, "layers": 2},
        {"network": "transformer", "target": "velocity", "width": 64, "layers": 2, "rows_per_token": 3},
        {
            "network": "mlp",
            "target": "action",
            "width": 128,
            "layers": 2,
            "bf16": True,
            "method": "midpoint",
            "steps": 5,
        },
    ],
    ids=lambda c: "-".join(str(v) for v in c.values()),
)
def test_every_network_and_target_learns(robot: RobotDescription, config: dict) -> None:
    policy = make_policy(robot, **config)
    optimiser = torch.optim.Adam(policy.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    data, test = waves(2000), waves(100, seed=1)
    steps = 150 if config["target"] == "action" else 400  # the field of Eq. 15 takes longer
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        batch = select(data, torch.randint(2000, (64,), generator=generator))
        optimiser.zero_grad()
        policy.loss(batch, generator).mean().backward()
        optimiser.step()
    error = (policy.eval().act(test, generator) - test["action"]).square().mean().sqrt()
    spread = test["action"].std()
    assert error < 0.4 * spread


class Knows(torch.nn.Module):
    """Knows that the clean chunk is zero, and tells it as a network that was taught `target` does."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: torch.Tensor, eta: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        left = (1 - eta)[:, None, None]
        return x - x / left * left.clamp(min=1 - MAX_ETA) if self.target == "velocity" else torch.zeros_like(x)


@pytest.mark.parametrize("target", ["action", "velocity"])
@pytest.mark.parametrize(("method", "steps"), [("euler", 10), ("euler", 50), ("euler", 1000), ("midpoint", 20)])
def test_a_chunk_that_is_known_is_reached_without_noise(
    robot: RobotDescription, target: str, method: str, steps: int
) -> None:
    policy, batch = make_policy(robot, target=target, method=method, steps=steps).eval(), waves(4)
    policy.network = Knows(target)
    chunk = policy.act(batch, torch.Generator().manual_seed(0))
    assert policy.normalisation["action"](chunk).abs().max() < 1e-5


def test_normalisation_goes_there_and_back() -> None:
    data = np.random.default_rng(0).normal(3.0, [0.0, 2.0], (1000, 2))
    normaliser = Normalisation.of_data({"state": data})["state"]
    x = torch.from_numpy(data).float()
    z = normaliser(x)
    assert normaliser.std[0] == MIN_STD
    torch.testing.assert_close(z[:, 1].std(), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(normaliser.inverse(z), x)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"network": "transformer", "width": 30}, "width 30 is not a multiple of heads 4"),
        ({"network": "transformer", "rows_per_token": 5}, "rows_per_token 5 does not divide the horizon of 12"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_impossible_configurations(robot: RobotDescription, config: dict, message: str) -> None:
    with pytest.raises(AloeError, match=message):
        make_policy(robot, **config)


@pytest.mark.parametrize(
    ("cameras", "instruction", "message"),
    [
        ((), "do it", "policy v needs an image of camera 'overhead', the observation has none"),
        (("overhead",), "", "policy v follows an instruction, the observation has none"),
    ],
)
def test_observations_that_lack_something(
    robot: RobotDescription, cameras: tuple[str, ...], instruction: str, message: str
) -> None:
    one = torch.ones(14)
    spec = PolicySpec.of(robot, HORIZON, ("overhead",), (32, 32))
    config = FlowConfig(width=16, layers=1)
    policy = FlowPolicy(spec, config, Normalisation(dict.fromkeys(("state", "action"), (0 * one, one))))
    images = {camera: np.zeros((32, 32, 3), np.uint8) for camera in cameras}
    observation = Observation(0, np.zeros(14, np.float32), images, instruction)
    with pytest.raises(AloeError, match=message):
        ActingPolicy(policy, "v").propose(observation, np.random.default_rng(0))


def test_a_prefix_is_continued(robot: RobotDescription) -> None:
    policy, batch = make_policy(robot, width=32, layers=1).eval(), waves(2)
    prefix = batch["action"][0, :6]
    chunk = policy.act(batch, torch.Generator().manual_seed(0), prefix, prefix_steps=4)
    torch.testing.assert_close(chunk[:, :4], prefix[:4].expand(2, -1, -1))
