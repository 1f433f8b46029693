"""OTA (2505.12737) on the replay: a state value backed up over options, with a reward of -1 and one discount per option, whatever its length.

An option is what a chunk is backed up over: `backup` control steps, fewer at the end of a fragment. The advantage is that of the paper's high-level policy,
A = V(s') - V(s), the weight that of ALOE. From the method the paper builds on (HIQL, 2307.11949): V is an expectile of its targets.

Ours: values are multiplied by 1 - gamma, so that 0 is the goal and -1 never, as the rewards are; a chunk that ends in failure never gets there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_critic.critic import CriticConfig
from aloe_critic.losses import critic_loss
from aloe_critic.methods.aloe import Aloe, AloeConfig
from aloe_critic.methods.base import CriticBatch, Share, observation_only
from aloe_critic.related.ota import option_target
from aloe_critic.targets import Info, expectile_loss, reduce_heads


@dataclass(frozen=True)
class OtaConfig(AloeConfig):
    """Hyper-parameters of OTA on top of those of ALOE; `expectile` is that of V."""

    action_level: bool = False  # it values states
    option_gamma: Share = 0.99  # per option


class Ota(Aloe):
    """Option-aware values of states."""

    name = "ota"
    config: OtaConfig

    def __init__(self, critic: CriticConfig, config: OtaConfig | None = None) -> None:
        config = config or OtaConfig()
        if config.action_level or config.bootstrap != "policy" or config.td_weight != "none":
            raise AloeError("ota values states by back-ups of its own: leave action_level, bootstrap and td_weight")
        super().__init__(critic, config, (-1.0, 0.0))

    def forward(self, batch: CriticBatch) -> tuple[Tensor, Info]:
        """Expectile loss of V on the option's target."""
        return super().forward(self.in_options(batch))

    def in_options(self, batch: CriticBatch) -> dict[str, Any]:
        """The batch with the rewards and the discount of options, scaled by 1 - gamma."""
        gamma = self.config.option_gamma
        ended_B = batch["bootstrap_discount"] == 0
        never_B = torch.full_like(batch["chunk_return"], -1 / (1 - gamma))
        ahead_B = torch.where(ended_B & ~batch["success"], never_B, torch.zeros_like(never_B))
        reward_B = option_target(ahead_B, torch.zeros_like(ended_B), gamma) * (1 - gamma)
        unknown_B = batch["chunk_return"].isnan()
        return {
            **batch,
            "chunk_return": torch.where(unknown_B, torch.nan, reward_B),
            "bootstrap_discount": torch.where(ended_B, 0.0, gamma),
        }

    def _loss(self, batch: CriticBatch, q_BK: Tensor, target_B: Tensor, weight_B: Tensor | None) -> tuple[Tensor, Info]:
        target_B = target_B.clamp(-1.0, 0.0)  # nothing is better than the goal or worse than never
        _, info = critic_loss(q_BK.detach(), target_B)
        loss, expectile_info = expectile_loss(target_B.unsqueeze(-1) - q_BK, self.config.expectile)
        return loss, info | expectile_info

    @torch.no_grad()
    def evaluate(self, batch: CriticBatch) -> dict[str, Tensor]:
        """The option's target as q, V(s), and the advantage V(s') - V(s); at the end of a chunk that ends the task V(s') is 0 or -1."""
        found = super().evaluate(self.in_options(batch))
        ended_B, following_B = batch["bootstrap_discount"] == 0, self._ahead(batch)
        end_B = torch.where(batch["success"], 0.0, -1.0)
        advantage_B = torch.where(ended_B, end_B, following_B) - found["v"]
        return {**found, "advantage": torch.where(batch["chunk_return"].isnan(), 0.0, advantage_B)}

    def _ahead(self, batch: CriticBatch) -> Tensor:
        return self._bounded(reduce_heads(self.critic(observation_only(batch["next"])), "min"))
