"""RECAP: a distributional value of returns, and a policy conditioned on whether a chunk was better than expected (pi*0.6, 2511.14759).

1. V(s) is a categorical distribution over returns, trained by cross-entropy on the Monte-Carlo return.
2. The advantage of a chunk is R + gamma^n E[V(s')] - E[V(s)].
3. A chunk is marked *good* when its advantage lies in the upper share of the replay, or when a human drove.
4. The policy learns from all chunks, conditioned on the mark, which is hidden from it at times; it acts on *good* with classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_critic.critic import ChunkCritic, CriticConfig
from aloe_critic.losses import weighted_flow_loss
from aloe_critic.methods.base import CriticBatch, Method, SampleFacts, observation_only, state_value_config
from aloe_critic.targets import Info, td_target
from aloe_policy import flow_matching
from aloe_policy.acting import ActingPolicy
from aloe_policy.checkpoint import read_checkpoint, write_checkpoint
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation
from aloe_policy.protocol import SampleBatch, TrainablePolicy, batch_size

TYPE = "recap"
GOOD, UNKNOWN, BAD = 1.0, 0.0, -1.0


@dataclass(frozen=True)
class RecapConfig:
    """Hyper-parameters of RECAP."""

    bins: int = 101  # of the return's distribution; paper: 201
    good_share: float = 0.4  # share of the policy's own chunks marked good; paper: about .4 when fine-tuning
    hide: float = 0.3  # probability of hiding the mark in training; paper
    guidance: float = 1.5  # weight of classifier-free guidance when acting; 1: none; paper: 1 .. 2.5


class Recap(Method):
    """Advantage-conditioned policy improvement."""

    name = "recap"
    support: Tensor

    def __init__(
        self, critic: CriticConfig, config: RecapConfig | None = None, return_range: tuple[float, float] = (-2.0, 0.0)
    ) -> None:
        """`return_range`: lowest and highest discounted return of the replay."""
        super().__init__()
        self.config = config or RecapConfig()
        low, high = return_range
        if not low < high:
            raise AloeError(f"recap needs returns that differ; all of the replay lie in [{low:g}, {high:g}]")
        self.critic = ChunkCritic(state_value_config(critic, outputs=self.config.bins))
        self.register_buffer("support", torch.linspace(low, high, self.config.bins))

    def forward(self, batch: CriticBatch) -> tuple[Tensor, Info]:
        """Cross-entropy with the return shared between its two neighbouring bins."""
        known = ~batch["return_to_go"].isnan()
        goal = two_hot(batch["return_to_go"].nan_to_num(), self.support)
        loss_B = -(goal * F.log_softmax(self.critic(batch).squeeze(1), dim=-1)).sum(dim=-1)
        loss = (loss_B * known).sum() / known.sum().clamp_min(1)
        return loss, {"critic_loss": loss.detach()}

    def value(self, batch: Mapping[str, Any]) -> Tensor:
        """E[V(s)] `[B]`."""
        return self.critic(batch).squeeze(1).softmax(dim=-1) @ self.support

    @torch.no_grad()
    def evaluate(self, batch: CriticBatch) -> dict[str, Tensor]:
        v = self.value(batch)
        q, _ = td_target(
            batch["chunk_return"], batch["bootstrap_discount"], self.value(observation_only(batch["next"]))
        )
        return {"q": q, "v": v, "advantage": q - v, "head_std": torch.zeros_like(v)}

    def weights(self, advantage_N: Tensor, facts: SampleFacts) -> Tensor:
        """+1 for chunks marked good, -1 for the others, 0 for those left out: the sign is the condition, the size the weight."""
        own = facts.train_policy & ~facts.human
        threshold = advantage_N[own].quantile(1 - self.config.good_share) if own.any() else advantage_N.new_zeros(())
        good = facts.human | (advantage_N > threshold)
        return torch.where(good, GOOD, BAD) * facts.train_policy

    def check_policy(self, policy: TrainablePolicy) -> None:
        if not isinstance(policy, FlowPolicy | ConditionedPolicy):
            raise AloeError(f"recap conditions policies of type 'flow', not {type(policy).__name__}")

    def actor(self, policy: TrainablePolicy) -> TrainablePolicy:
        self.check_policy(policy)
        return ConditionedPolicy.extend(policy, self.config.guidance) if isinstance(policy, FlowPolicy) else policy

    def actor_loss(
        self, policy: nn.Module, batch: SampleBatch, weight_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Info]:
        hidden = (
            torch.rand(len(weight_B), generator=generator, device=generator.device).to(weight_B.device)
            < self.config.hide
        )
        mark = torch.where(hidden, UNKNOWN, weight_B.sign())
        return weighted_flow_loss(policy({**batch, "mark": mark}, generator), weight_B.abs())


def two_hot(value_B: Tensor, support_N: Tensor) -> Tensor:
    """Distribution `[B, N]` over an even support whose mean is `value` (clipped to the support's ends)."""
    step = support_N[1] - support_N[0]
    place = ((value_B - support_N[0]) / step).clamp(0, len(support_N) - 1)
    low = place.floor().clamp(max=len(support_N) - 2).long()
    upper = place - low
    out = torch.zeros(len(value_B), len(support_N), dtype=value_B.dtype, device=value_B.device)
    return out.scatter_(1, low[:, None], (1 - upper)[:, None]).scatter_(1, low[:, None] + 1, upper[:, None])


class ConditionedPolicy(TrainablePolicy):
    """A FlowPolicy with the mark (+1 good, 0 unknown, -1 bad) as one more entry of its object state; acts on *good*."""

    def __init__(self, inner: FlowPolicy, guidance: float) -> None:
        super().__init__()
        self.inner, self.guidance = inner, guidance
        self.spec = replace(inner.spec, object_dim=inner.spec.object_dim - 1)

    @property
    def frozen_encoder(self) -> str:
        return self.inner.frozen_encoder

    @classmethod
    def extend(cls, policy: FlowPolicy, guidance: float) -> Self:
        """The same policy, blind to the mark at first: its weights are kept and those of the mark start at zero."""
        spec = replace(policy.spec, object_dim=policy.spec.object_dim + 1)
        statistics = {
            key: (policy.normalisation[key].mean, policy.normalisation[key].std) for key in policy.normalisation.of
        }
        none = torch.zeros(0)
        mean, std = statistics.get("object_state", (none, none))
        one = mean.new_ones(1)
        statistics["object_state"] = (torch.cat([mean, 0 * one]), torch.cat([std, one]))
        inner = FlowPolicy(spec, policy.config, Normalisation(statistics)).to(policy.device)
        weights, grown = policy.state_dict(), inner.state_dict()
        for key, value in grown.items():
            if key not in weights:  # no object token before: it starts silent
                weights[key] = torch.zeros_like(value) if key.startswith("object_token.2") else value
            elif weights[key].shape != value.shape:
                padded = torch.zeros_like(value)
                padded[tuple(slice(n) for n in weights[key].shape)] = weights[key]
                weights[key] = padded
        inner.load_state_dict(weights)
        return cls(inner, guidance)

    def _marked(self, batch: SampleBatch, mark_B: Tensor) -> SampleBatch:
        seen = [batch["object_state"]] if self.spec.object_dim else []
        return SampleBatch(**{**batch, "object_state": torch.cat([*seen, mark_B.unsqueeze(1)], dim=1)})

    def loss(self, batch: SampleBatch, generator: torch.Generator) -> Tensor:
        """Flow loss `[B]` under the batch's `mark` `[B]`; without one the mark is unknown."""
        mark: Any = batch.get("mark", torch.full((batch_size(batch),), UNKNOWN, device=self.device))
        return self.inner.loss(self._marked(batch, mark), generator)

    @torch.no_grad()
    def act(
        self, batch: SampleBatch, generator: torch.Generator, prefix: Tensor | None = None, prefix_steps: int = 0
    ) -> Tensor:
        """Chunks from the guided field f(unknown) + guidance (f(good) - f(unknown)); a running chunk's prefix is not used."""
        size, inner = batch_size(batch), self.inner
        noise = torch.randn(
            (size, self.spec.horizon, self.spec.action_dim), generator=generator, device=generator.device
        )
        marks = torch.tensor([GOOD, UNKNOWN], device=self.device).view(2, 1).expand(2, size)
        good, unknown = (inner._tokens(self._marked(batch, mark)) for mark in marks)

        def field(x: Tensor, eta: Tensor) -> Tensor:
            wanted = inner._predict(x, eta, good)[1]
            if self.guidance == 1:
                return wanted
            plain = inner._predict(x, eta, unknown)[1]
            return plain + self.guidance * (wanted - plain)

        chunk = flow_matching.integrate(field, noise.to(self.device), inner.config.steps, inner.config.method)
        return inner.normalisation["action"].inverse(chunk)

    def save(self, folder: Path, name: str = "policy-0") -> str:
        return write_checkpoint(
            Path(folder),
            type=TYPE,
            name=name,
            spec=self.inner.spec,
            config={**asdict(self.inner.config), "guidance": self.guidance},
            normalisation=self.inner.normalisation.to_json(),
            weights=self.inner.state_dict(),
        )

    @classmethod
    def load(cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu") -> Self:
        return cls.load_with_version(folder, robot, device)[0]

    @classmethod
    def load_with_version(
        cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu"
    ) -> tuple[Self, str]:
        """Like `load`, with the checkpoint's version."""
        from aloe_policy.checkpoint import check_robot

        checkpoint = read_checkpoint(folder, TYPE)
        if robot is not None:
            check_robot(checkpoint.spec, robot, f"policy {folder}")
        config = dict(checkpoint.config)
        guidance = config.pop("guidance", None)
        if not isinstance(guidance, float | int):
            raise AloeError(f"{folder}: config: guidance is missing")
        spec = checkpoint.spec
        sizes = {"state": spec.action_dim, "action": spec.action_dim, "object_state": spec.object_dim}
        inner = FlowPolicy(
            spec, FlowConfig(**config), Normalisation.from_json(checkpoint.normalisation, sizes, str(folder))
        )
        inner.load_state_dict(checkpoint.weights)
        return cls(inner.to(device).eval(), float(guidance)), checkpoint.version


def load_policy(spec: str, robot: RobotDescription, device: str = "cpu") -> ActingPolicy:
    """Serves a RECAP checkpoint to the control side; entry point `recap` of group `aloe.policies`."""
    policy, version = ConditionedPolicy.load_with_version(Path(spec), robot, device)
    return ActingPolicy(policy, version)
