"""AWR: advantage-weighted regression with Monte-Carlo state values (1910.00177), the paper's on-policy baseline.

V(s) is fitted to the returns that followed; the advantage of a chunk is the return that followed it minus V(s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aloe_critic.critic import ChunkCritic, CriticConfig
from aloe_critic.losses import advantage_weight, critic_loss
from aloe_critic.methods.base import CriticBatch, Method, NotNegative, Positive, SampleFacts, state_value_config
from aloe_critic.targets import Info


@dataclass(frozen=True)
class AwrConfig:
    """Hyper-parameters of AWR."""

    beta: Positive = 1.0  # temperature, in units of the advantages' deviation
    clip: NotNegative = 3.0  # limit of |advantage / beta|
    learn_from_failures: bool = True  # chunks of failed fragments teach the actor too; paper; false: as ALOE does


class Awr(Method):
    """Monte-Carlo AWR."""

    name = "awr"
    monte_carlo = True

    def __init__(self, critic: CriticConfig, config: AwrConfig | None = None) -> None:
        super().__init__()
        self.config = config or AwrConfig()
        self.critic = ChunkCritic(state_value_config(critic))

    def forward(self, batch: CriticBatch) -> tuple[Tensor, Info]:
        """Squared error against the return that followed; fragments without an outcome teach nothing."""
        return_to_go = batch["return_to_go"]
        known = ~return_to_go.isnan()
        loss, info = critic_loss(self.critic(batch), return_to_go.nan_to_num(), known.to(torch.float32))
        return loss, {"critic_loss": loss.detach(), **info}

    @torch.no_grad()
    def evaluate(self, batch: CriticBatch) -> dict[str, Tensor]:
        v = self.critic(batch).squeeze(-1)
        q = batch["return_to_go"]
        return {"q": q, "v": v, "advantage": (q - v).nan_to_num(), "head_std": torch.zeros_like(v)}

    def weights(self, advantage_N: Tensor, facts: SampleFacts) -> Tensor:
        use = facts.train_policy if self.config.learn_from_failures else facts.train_policy & facts.example
        scale = advantage_N[use].std(correction=0).clamp_min(1e-6) if use.any() else 1.0
        return advantage_weight(advantage_N / scale, self.config.beta, self.config.clip) * use
