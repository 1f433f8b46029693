"""ALOE: chunk TD with chunks of the current policy, and advantage-weighted flow matching (arXiv 2602.12691).

Options of the same critic turn it into its relatives: bootstrap `expectile` is IQL's target (2110.06169), `blend` is BEE (2306.02865), `monte_carlo` takes
off-policy bootstrapping away, `action_level` False takes the evaluation of actions away, `td_weight` adds UWAC (2105.08140).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_critic import targets
from aloe_critic.critic import ChunkCritic, CriticConfig, repeat_batch
from aloe_critic.losses import advantage, advantage_weight, critic_loss
from aloe_critic.methods.base import (
    CriticBatch,
    Method,
    NotNegative,
    Positive,
    SampleFacts,
    Share,
    observation_only,
    state_value_config,
)
from aloe_critic.targets import Info, Reduction, polyak_, reduce_heads


@dataclass(frozen=True)
class AloeConfig:
    """Hyper-parameters of ALOE; those marked "ours" are not disclosed in the paper."""

    bootstrap: Literal["policy", "expectile", "blend", "monte_carlo"] = "policy"  # paper: policy
    target_reduction: Reduction = "min"  # over target heads, Eq. 7; ours (ambiguous in the paper)
    polyak: Share = 0.005  # paper
    beta: Positive = 1.0  # temperature of Eq. 11, in units of the advantages' deviation if normalised; ours
    clip: NotNegative = 1.0  # eps of Eq. 11; ours: 3 leaves a fifth of the data and is no better, docs/evidence.md
    normalise: bool = True  # divide advantages by their standard deviation over the replay; ours: beta is then free of the reward's scale
    action_level: bool = True  # Q(s, chunk); False: V(s) and the advantage R + gamma^n V(s') - V(s)
    replay_share: Share = 0.5  # lambda of `blend`; BEE
    expectile: Share = 0.7  # tau of `expectile` and `blend`; BEE .7, IQL .7 / .9
    td_weight: Literal["none", "exp", "inverse"] = "none"  # UWAC's weight by the variance of the target heads
    td_weight_beta: Positive = 1.0  # its beta
    bound_values: bool = True  # keep values within what the rewards allow; ours, see `Aloe._bounded`
    complete_share: Share = (
        1.0  # of the partial chunks, completed by the policy's rows instead of masked; ours, see `complete`
    )
    learn_from_failures: bool = (
        False  # chunks of failed fragments teach the actor too, not only the critic; paper: true, see docs/aloe.md
    )


def complete(batch: CriticBatch, share: float = 1.0) -> CriticBatch:
    """The batch with a random `share` of its chunks completed: steps that were not executed are taken from the policy's own chunk, and no longer masked.

    Our choice. Near the end of a fragment every recorded chunk is partial, while every chunk of the policy is whole: a critic trained on masked chunks alone
    reads the outcome off the mask, and has never seen the outcome for a whole chunk at those states, which is what targets and V(s) ask for.
    What follows a terminal step cannot matter, and after a cut the target continues with the policy: completing by its rows changes no target.
    So that the policy's rows do not betray the end either, the learner cuts chunks everywhere (`LearnerConfig.cut_share`).
    """
    if share == 0 or "policy_action" not in batch:
        return batch
    own_BHA = batch["policy_action"][:, 0]
    horizon = own_BHA.shape[1]
    executed_BH = batch["action_mask"][:, :horizon]
    chosen_B1 = torch.rand(len(own_BHA), 1, device=own_BHA.device) < share
    mask_BH = executed_BH | chosen_B1
    action_BHA = torch.where(executed_BH.unsqueeze(-1), batch["action"][:, :horizon], own_BHA)
    return {**batch, "action": action_BHA, "action_mask": mask_BH}


def as_recorded(batch: CriticBatch) -> Tensor:
    """bool `[B]`: what the critic judges of the chunk was executed, and does not go on with the policy's rows where it was cut; those alone are of the replay's
    actions.

    Rows after a terminal step do not count: nothing follows them. Nor do rows beyond those that the critic judges, which are as many as `policy_action` has.
    """
    terminal_B = batch["bootstrap_discount"] == 0
    if "policy_action" not in batch:
        return torch.ones_like(terminal_B)
    judged_BH = batch["action_mask"][:, : batch["policy_action"].shape[2]]
    return judged_BH.all(dim=1) | terminal_B


class Aloe(Method):
    """Action-level off-policy evaluation."""

    name = "aloe"

    def __init__(
        self,
        critic: CriticConfig,
        config: AloeConfig | None = None,
        return_range: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        """`return_range`: lowest and highest discounted return that the rewards allow."""
        super().__init__()
        self.config = config = config or AloeConfig()
        self.return_range = return_range if config.bound_values else (-math.inf, math.inf)
        if config.td_weight != "none" and config.bootstrap in ("expectile", "monte_carlo"):
            raise AloeError(
                f"td_weight '{config.td_weight}' weighs by the target heads at the next state, which the bootstrap '{config.bootstrap}' does not ask"
            )
        if not config.action_level:
            if config.bootstrap in ("expectile", "blend"):
                raise AloeError(f"action_level false has no chunk values to take the bootstrap '{config.bootstrap}' of")
            critic = state_value_config(critic, heads=critic.heads)
        self.critic = ChunkCritic(critic)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        if config.bootstrap in ("expectile", "blend"):
            self.value = ChunkCritic(state_value_config(critic))

    @property
    def bootstraps(self) -> bool:  # type: ignore[override]
        """Monte-Carlo returns are those of whole chunks as recorded."""
        return not self.monte_carlo

    @property
    def monte_carlo(self) -> bool:  # type: ignore[override]
        """Whether the bootstrap is none."""
        return self.config.bootstrap == "monte_carlo"

    @property
    def needs_policy_chunks(self) -> bool:  # type: ignore[override]
        """ALOE compares with the policy's own chunks; IQL's target and a state value do without."""
        return self.config.action_level and self.config.bootstrap != "expectile"

    def forward(self, batch: CriticBatch) -> tuple[Tensor, Info]:
        """Eq. 8 on the target of Eq. 7, and the expectile loss of V where the bootstrap needs one."""
        c = self.config
        recorded_B = as_recorded(batch)
        batch = complete(batch, c.complete_share)
        with torch.no_grad():
            next_value, variance = self._next_value(batch)
            if c.bootstrap == "monte_carlo":
                known = ~batch["return_to_go"].isnan()
                target, info = targets.td_target(
                    batch["return_to_go"].nan_to_num(), torch.zeros_like(next_value), next_value
                )
                weight = known.to(target.dtype)
            else:
                target, info = targets.td_target(batch["chunk_return"], batch["bootstrap_discount"], next_value)
                weight = None
            if c.td_weight != "none":
                weight = targets.uncertainty_weight(variance, c.td_weight_beta, c.td_weight)
                info |= {"td_weight": weight.mean()}
        loss, critic_info = self._loss(batch, self.critic(batch), target, weight)
        info |= critic_info
        if c.bootstrap in ("expectile", "blend") and recorded_B.any():
            with torch.no_grad():
                q = reduce_heads(self.target(batch), "min")
            difference = q - self.value(batch).squeeze(-1)
            value_loss, value_info = targets.expectile_loss(difference[recorded_B], c.expectile)
            loss = loss + value_loss
            info |= {"value_loss": value_loss.detach(), **value_info}
        return loss, {"critic_loss": loss.detach(), **info}

    def _loss(self, batch: CriticBatch, q_BK: Tensor, target_B: Tensor, weight_B: Tensor | None) -> tuple[Tensor, Info]:
        """Eq. 8; relatives add to it."""
        return critic_loss(q_BK, target_B, weight_B)

    def after_step(self) -> None:
        polyak_(self.target, self.critic, self.config.polyak)

    @torch.no_grad()
    def evaluate(self, batch: CriticBatch) -> dict[str, Tensor]:
        """q, v, advantage (Eq. 10), head_std of each sample `[B]`. Partial chunks are completed, so that they are compared with the policy's like with like."""
        if self.config.complete_share:
            batch = complete(batch)
        heads = self.critic(batch)
        q, spread = self._bounded(reduce_heads(heads, "min")), heads.std(dim=-1, correction=0)
        if not self.config.action_level:
            if self.config.bootstrap == "monte_carlo":
                ahead = batch["return_to_go"]
            else:
                next_q = self._bounded(reduce_heads(self.critic(observation_only(batch["next"])), "min"))
                ahead, _ = targets.td_target(batch["chunk_return"], batch["bootstrap_discount"], next_q)
            return {"q": ahead, "v": q, "advantage": (ahead - q).nan_to_num(), "head_std": spread}
        if self.config.bootstrap == "expectile":
            v = self.value(batch).squeeze(-1)
            return {"q": q, "v": v, "advantage": q - v, "head_std": spread}
        q_policy = self._bounded(self._policy_values(self.critic, batch, batch["policy_action"]).min(dim=-1).values)
        return {"q": q, "v": q_policy.mean(dim=1), "advantage": advantage(q, q_policy), "head_std": spread}

    def weights(self, advantage_N: Tensor, facts: SampleFacts) -> Tensor:
        """Eq. 11 for every sample the protocol lets train the policy."""
        use = facts.train_policy
        if not self.config.learn_from_failures:
            use = use & facts.example
        scale = advantage_N[use].std(correction=0).clamp_min(1e-6) if self.config.normalise and use.any() else 1.0
        return advantage_weight(advantage_N / scale, self.config.beta, self.config.clip) * use

    def _policy_values(self, critic: ChunkCritic, batch: CriticBatch, action_BMHA: Tensor) -> Tensor:
        """Heads of M chunks at each observation, `[B, M, K]`."""
        size, samples = action_BMHA.shape[:2]
        observed = repeat_batch(observation_only(batch), samples)
        return critic({**observed, "action": action_BMHA.flatten(0, 1)}).view(size, samples, -1)

    def _bounded(self, value_B: Tensor) -> Tensor:
        """The value within the range of possible returns.

        Our choice. At states where the policy fails, its fresh chunks are further from the data than the recorded ones; the minimum over heads reads them low,
        the target hands that on, and values sink below what any failure can cost: recorded failures then seem better than the policy.
        """
        return value_B.clamp(*self.return_range)

    def _next_value(self, batch: CriticBatch) -> tuple[Tensor, Tensor]:
        """The value of the state the chunk is backed up to, and the variance of the target heads there, both `[B]`."""
        c = self.config
        following = observation_only(batch["next"])
        if c.bootstrap == "monte_carlo":
            return torch.zeros_like(batch["chunk_return"]), torch.zeros_like(batch["chunk_return"])
        if not c.action_level:
            heads = self.target(following)
            return self._bounded(reduce_heads(heads, c.target_reduction)), heads.var(dim=-1, correction=0)
        replay_value = self.value(following).squeeze(-1) if c.bootstrap in ("expectile", "blend") else None
        if c.bootstrap == "expectile" and replay_value is not None:
            return replay_value, torch.zeros_like(replay_value)
        heads_BMK = self._policy_values(self.target, following, batch["next_policy_action"])
        policy_value = self._bounded(reduce_heads(heads_BMK, c.target_reduction)).mean(dim=1)
        variance = heads_BMK.var(dim=-1, correction=0).mean(dim=1)
        if replay_value is None:
            return policy_value, variance
        return targets.blend(policy_value, replay_value, c.replay_share), variance
