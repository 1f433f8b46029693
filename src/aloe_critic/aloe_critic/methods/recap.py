"""RECAP: a distributional value of returns, and a policy conditioned on whether a chunk was better than expected (pi*0.6, 2511.14759).

1. V(s) is a categorical distribution over returns, trained by cross-entropy on the Monte-Carlo return.
2. The advantage of a chunk is R + gamma^n E[V(s')] - E[V(s)].
3. A chunk is marked *good* when its advantage lies in the upper share of the replay, or when a human drove.
4. The policy learns from all chunks, conditioned on the mark, which is hidden from it at times; it acts on *good* with classifier-free guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import Self

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription, explain
from aloe_critic.critic import ChunkCritic, CriticConfig
from aloe_critic.losses import weighted_flow_loss
from aloe_critic.methods.base import (
    CriticBatch,
    Method,
    NotNegative,
    SampleFacts,
    Share,
    observation_only,
    state_value_config,
)
from aloe_critic.targets import Info, td_target
from aloe_policy import flow_matching
from aloe_policy.acting import ActingPolicy
from aloe_policy.checkpoint import PolicySpec, check_robot, read_checkpoint, write_checkpoint
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation
from aloe_policy.protocol import SampleBatch, TrainablePolicy, batch_size

TYPE = "recap"
GOOD, UNKNOWN, BAD = 1.0, 0.0, -1.0


@dataclass(frozen=True)
class RecapConfig:
    """Hyper-parameters of RECAP."""

    bins: Annotated[int, Field(ge=2)] = 101  # of the return's distribution; paper: 201
    good_share: Share = 0.4  # share of the policy's own chunks marked good; paper: about .4 when fine-tuning
    hide: Share = 0.3  # probability of hiding the mark in training; paper
    guidance: NotNegative = 1.5  # weight of classifier-free guidance when acting; 1: none; paper: 1 .. 2.5


class Recap(Method):
    """Advantage-conditioned policy improvement."""

    name = "recap"
    monte_carlo = True
    support: Tensor

    def __init__(
        self, critic: CriticConfig, config: RecapConfig | None = None, return_range: tuple[float, float] = (-2.0, 0.0)
    ) -> None:
        """`return_range`: lowest and highest discounted return of the replay."""
        super().__init__()
        self.config = config or RecapConfig()
        low, high = return_range
        if not low < high or math.isinf(high - low):
            raise AloeError(
                f"recap needs returns that differ and have bounds; those of the replay lie in [{low:g}, {high:g}]"
            )
        self.critic = ChunkCritic(state_value_config(critic, outputs=self.config.bins))
        self.register_buffer("support", torch.linspace(low, high, self.config.bins))

    def continue_from(self, previous: Self) -> None:
        """All but the support, which is that of this replay's returns: a bin then stands for a slightly different return, and is taught it."""
        self.load_state_dict(previous.state_dict() | {"support": self.support})

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
        if isinstance(policy, ConditionedPolicy):
            policy.guidance = self.config.guidance
            return policy
        assert isinstance(policy, FlowPolicy)
        return ConditionedPolicy.extend(policy, self.config.guidance)

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


class MarkedFlowPolicy(FlowPolicy):
    """A FlowPolicy that also looks at the batch's `mark` `[B]` (+1 good, 0 unknown, -1 bad), added to the token of the state; at first it is blind to it."""

    def __init__(self, spec: PolicySpec, config: FlowConfig, normalisation: Normalisation) -> None:
        super().__init__(spec, config, normalisation)
        self.mark = nn.Linear(1, config.width, bias=False)
        nn.init.zeros_(self.mark.weight)

    def _tokens(self, batch: SampleBatch) -> Tensor:
        tokens_BND = super()._tokens(batch)
        mark_B11 = batch["mark"].to(tokens_BND)[:, None, None]  # type: ignore[typeddict-item]
        return torch.cat([tokens_BND[:, :1] + self.mark(mark_B11), tokens_BND[:, 1:]], dim=1)


class ConditionedPolicy(TrainablePolicy):
    """A policy that acts on the mark *good*, by guidance away from *unknown*."""

    def __init__(self, inner: MarkedFlowPolicy, guidance: float) -> None:
        super().__init__()
        self.inner, self.guidance, self.spec = inner, guidance, inner.spec

    @property
    def frozen_encoder(self) -> str:
        return self.inner.frozen_encoder

    @classmethod
    def extend(cls, policy: FlowPolicy, guidance: float) -> Self:
        """The same policy, blind to the mark at first: its weights are kept and those of the mark start at zero."""
        inner = MarkedFlowPolicy(policy.spec, policy.config, policy.normalisation).to(policy.device)
        inner.load_state_dict(policy.state_dict(), strict=False)
        return cls(inner, guidance)

    def loss(self, batch: SampleBatch, generator: torch.Generator) -> Tensor:
        """Flow loss `[B]` under the batch's `mark` `[B]`; without one the mark is unknown."""
        mark: Any = batch.get("mark", torch.full((batch_size(batch),), UNKNOWN, device=self.device))
        return self.inner.loss(_marked(batch, mark), generator)

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
        good, unknown = (inner._tokens(_marked(batch, mark)) for mark in marks)

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
        checkpoint = read_checkpoint(folder, TYPE)
        if robot is not None:
            check_robot(checkpoint.spec, robot, f"policy {folder}")
        settings = dict(checkpoint.config)
        guidance = settings.pop("guidance", None)
        if not isinstance(guidance, float | int):
            raise AloeError(f"{folder}: config: guidance is missing")
        spec = checkpoint.spec
        sizes = {"state": spec.action_dim, "action": spec.action_dim}
        sizes |= {"object_state": spec.object_dim} if spec.object_dim else {}
        normalisation = Normalisation.from_json(checkpoint.normalisation, sizes, str(folder))
        try:
            inner = MarkedFlowPolicy(spec, TypeAdapter(FlowConfig).validate_python(settings), normalisation)
            inner.load_state_dict(checkpoint.weights)
        except ValidationError as error:
            raise AloeError(f"{folder}: config: {explain(error)}") from None
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:200]
            raise AloeError(f"{folder}: the weights do not fit the configuration: {detail}") from None
        return cls(inner.to(device).eval(), float(guidance)), checkpoint.version


def _marked(batch: SampleBatch, mark_B: Tensor) -> SampleBatch:
    return SampleBatch(**{**batch, "mark": mark_B})  # type: ignore[typeddict-unknown-key]


def load_policy(spec: str, robot: RobotDescription, device: str = "cpu") -> ActingPolicy:
    """Serves a RECAP checkpoint to the control side; entry point `recap` of group `aloe.policies`."""
    policy, version = ConditionedPolicy.load_with_version(Path(spec), robot, device)
    return ActingPolicy(policy, version)
