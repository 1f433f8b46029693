"""Critic updates per second against d3rlpy's fitted-Q evaluation: the same network, batch and K, in turns within one run.

d3rlpy (https://github.com/takuseno/d3rlpy) is no dependency of this project: without it the benchmark says so and has no result. Install it beside the
environment, for instance with `pip install --target FOLDER --no-deps d3rlpy gymnasium structlog dataclasses-json marshmallow typing-inspect h5py
cloudpickle farama-notifications mypy-extensions`, and put FOLDER on PYTHONPATH.

Both critics see 14 joints, an object's pose and a chunk of 50 x 14, in the small Transformer of `aloe_critic.critic`, or in the MLP. d3rlpy gets the network
as an encoder factory and loops over its K networks; ours computes K separate trunks in batched products, or shares one trunk (paper). Chunks of the policy at
the next states are looked up on both sides. Ours also clips gradients and moves the target at every step, as the paper does; d3rlpy copies it every 100.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from bench_critic import ACTIONS, BATCH, HORIZON, NETWORKS, OBJECTS, critic, critic_update, rates
from result import Result
from torch import Tensor, nn


def run() -> list[Result]:
    """See the module."""
    if importlib.util.find_spec("d3rlpy") is None:
        print("d3rlpy is not installed: no comparison with it, see benchmarks/bench_d3rlpy.py")
        return []
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = []
    for network, width in NETWORKS.items():
        for heads in (2, 10):
            ours = [
                critic_update([critic(heads=heads, network=network, width=width, separate_trunks=s)])
                for s in (False, True)
            ]
            per_s = rates([*ours, fqe_update(heads, network)], repeats=3)
            for name, rate in zip(("shared trunk", "separate trunks"), per_s, strict=False):
                title = f"critic updates, {network}, K = {heads}, {name} (baseline: d3rlpy FQE)"
                results.append(Result(title, rate, "1/s", per_s[2]))
    return results


def fqe_update(heads: int, network: str) -> Callable[[], object]:
    """One update of d3rlpy's FQE on a batch that is a tensor already."""
    from d3rlpy.models.encoders import EncoderFactory
    from d3rlpy.ope import FQE, FQEConfig
    from d3rlpy.torch_utility import TorchMiniBatch

    @dataclass()
    class ChunkEncoderFactory(EncoderFactory):  # type: ignore[misc]
        def create_with_action(
            self, observation_shape: object, action_size: int, discrete_action: bool = False
        ) -> nn.Module:
            return ChunkEncoder(network)

        @staticmethod
        def get_type() -> str:
            return "aloe_chunk"

    size, dim = ACTIONS + OBJECTS, HORIZON * ACTIONS
    observation, following = torch.randn(BATCH, size), torch.randn(BATCH, size)
    action, next_action = torch.randn(BATCH, dim), torch.randn(BATCH, dim)
    column = torch.zeros(BATCH, 1)
    batch = TorchMiniBatch(
        observations=observation,
        actions=action,
        rewards=torch.randn(BATCH, 1),
        next_observations=following,
        next_actions=next_action,
        returns_to_go=column,
        terminals=column,
        intervals=torch.full((BATCH, 1), float(HORIZON)),
        device="cpu",
    )
    policy = SimpleNamespace(impl=SimpleNamespace(predict_best_action=lambda observations: next_action))
    config = FQEConfig(
        batch_size=BATCH, n_critics=heads, learning_rate=3e-4, encoder_factory=ChunkEncoderFactory(), gamma=0.99
    )
    fqe: Any = FQE(policy, config, device=False)
    fqe.create_impl((size,), dim)
    steps = iter(range(1, 1 << 30))
    return lambda: fqe.impl.inner_update(batch, next(steps))


class ChunkEncoder(nn.Module):
    """`ChunkCritic` up to its last layer, on flat observations and chunks."""

    def __init__(self, network: str) -> None:
        super().__init__()
        width = NETWORKS[network]
        self.trunk = critic(heads=1, network=network, width=width, head_layers=0, outputs=width)

    def forward(self, x_BO: Tensor, action_BF: Tensor) -> Tensor:
        batch = {
            "state": x_BO[:, :ACTIONS],
            "object_state": x_BO[:, ACTIONS:],
            "action": action_BF.unflatten(1, (HORIZON, ACTIONS)),
        }
        return F.gelu(self.trunk(batch)[:, 0], approximate="tanh")
