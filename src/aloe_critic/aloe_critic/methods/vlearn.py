"""Vlearn (2403.04453) on the replay: a state value of the policy from chunks of others, the squared error of each weighted by min(pi / pi_b, 1).

The ratio of a flow policy's chunks has to be estimated. Ours: a classifier tells recorded chunks from the policy's at the same states; what it sees of a chunk
is the mean of its executed steps over `pieces` parts, because over hundreds of numbers any two sources can be told apart and every ratio is 0.
`overlap` in the metrics is E min(rho, 1), one minus the total variation of policy and recording: near 0 there is nothing to learn from, and the method warns.
The advantage is that of one back-up, R + gamma^n V(s') - V(s), as in `state_td`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_critic.critic import ChunkCritic, CriticConfig
from aloe_critic.losses import critic_loss
from aloe_critic.methods.aloe import Aloe, AloeConfig
from aloe_critic.methods.base import Count, CriticBatch, Positive, SampleFacts, Share, observation_only
from aloe_critic.related.vlearn import classified_ratio, piece_means, truncated_value_loss
from aloe_critic.targets import Info


@dataclass(frozen=True)
class VlearnConfig(AloeConfig):
    """Hyper-parameters of Vlearn on top of those of ALOE."""

    action_level: bool = False  # it values states
    complete_share: Share = 0.0  # V sees no chunks, and the ratio compares executed steps only
    ratio_limit: Positive = 1.0  # of rho; paper: 1
    pieces: Count = 1  # parts of a chunk whose means the classifier sees; ours
    least_overlap: Share = 0.1  # of policy and recording, below which the method warns; ours


class Vlearn(Aloe):
    """V only, with truncated ratios."""

    name = "vlearn"
    overlap: Tensor
    config: VlearnConfig
    needs_policy_chunks = True  # for the classifier

    def __init__(
        self, critic: CriticConfig, config: VlearnConfig | None = None, return_range: tuple[float, float] = (-2.0, 0.0)
    ) -> None:
        """`return_range`: lowest and highest discounted return that the rewards allow."""
        config = config or VlearnConfig()
        if config.action_level or config.bootstrap != "policy" or config.td_weight != "none" or config.complete_share:
            raise AloeError(
                "vlearn values states by back-ups with weights of its own: leave action_level, bootstrap, td_weight and complete_share"
            )
        if config.pieces < 1 or critic.horizon % config.pieces:
            raise AloeError(f"vlearn: {config.pieces} pieces do not divide the critic's horizon {critic.horizon}")
        super().__init__(critic, config, return_range)
        self._steps = critic.horizon
        told = replace(
            critic, horizon=config.pieces, steps_per_token=1, heads=1, outputs=2, layers=1, separate_trunks=False
        )
        self.classifier = ChunkCritic(told)
        self.register_buffer("overlap", torch.ones(()))  # running mean over critic steps
        self._seen = torch.ones(())

    @property
    def chunk_steps(self) -> int:
        return self._steps

    def _loss(self, batch: CriticBatch, q_BK: Tensor, target_B: Tensor, weight_B: Tensor | None) -> tuple[Tensor, Info]:
        _, info = critic_loss(q_BK.detach(), target_B)
        ratio_B, classifier_loss, ratio_info = self._ratio(batch)
        loss, overlap = truncated_value_loss(
            q_BK, target_B.unsqueeze(-1), ratio_B.unsqueeze(-1), self.config.ratio_limit
        )
        self._seen = overlap["overlap"]
        info |= {"classifier_loss": classifier_loss.detach(), **ratio_info, **overlap}
        return loss + classifier_loss, info

    def _ratio(self, batch: CriticBatch) -> tuple[Tensor, Tensor, Info]:
        observed, steps = observation_only(batch), self._steps
        mask_BH = batch["action_mask"][:, :steps].bool()
        logits = []
        for chunk_BHA in (batch["policy_action"][:, 0], batch["action"][:, :steps]):
            means, seen = piece_means(chunk_BHA, mask_BH, self.config.pieces)
            logits.append(self.classifier({**observed, "action": means, "action_mask": seen}).squeeze(1))
        return classified_ratio(*logits)

    def after_step(self) -> None:
        """Moves the target network and the running overlap."""
        super().after_step()
        self.overlap.lerp_(self._seen.to(self.overlap), 0.02)

    def weights(self, advantage_N: Tensor, facts: SampleFacts) -> Tensor:
        if self.overlap < self.config.least_overlap:
            warnings.warn(
                f"vlearn: policy and recording overlap by {float(self.overlap):.2f} only, so the values say next to nothing about the policy",
                stacklevel=2,
            )
        return super().weights(advantage_N, facts)
