"""PessORL (2111.05440) on the chunk critic: ALOE, and two penalties that keep values down where there are no data.

    L = 1/2 TD + alpha (E_pi Q - E_data Q) + eps (log sum_s zeta(s) exp V(s) - E_data V)

Values in the penalties are divided by the width of the range of returns ("normalise Q first"): our rewards are scaled so that returns lie in about [-1, 0],
or down to the failure cost, so alpha and the budget are shares of that range. The candidate states s are recorded observations with noise, V there is of the
policy's chunk at the unmoved observation (ours: a table of chunks knows no others), and zeta follows the disagreement of n heads, which with
`separate_trunks` are n networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_critic.critic import CriticConfig
from aloe_critic.losses import critic_loss
from aloe_critic.methods.aloe import Aloe, AloeConfig
from aloe_critic.methods.base import Count, CriticBatch, NotNegative, Positive, observation_only
from aloe_critic.related.pessorl import action_gap, dual_step, perturbed, state_gap
from aloe_critic.targets import Info

MOVED = ("state", "object_state", "features")  # what is known of the instruction stays true


@dataclass(frozen=True)
class PessorlConfig(AloeConfig):
    """Hyper-parameters of PessORL on top of those of ALOE; shares are of the range of returns."""

    models: Count = 5  # n, heads of the critic; paper: 5 models
    alpha: NotNegative = 0.05  # weight of the action gap; ours
    gap_budget: NotNegative = 0.02  # tau_b, state gap that costs nothing [share]; ours
    eps_start: Positive = 0.1  # weight of the state gap at the start; ours
    eps_rate: NotNegative = 0.1  # step of log eps per critic step and unit of gap; ours
    eps_limit: Positive = 10.0  # largest eps, for budgets that cannot be met; ours
    perturbation: NotNegative = 0.5  # of the candidate states, in standard deviations of each entry; ours


class Pessorl(Aloe):
    """Pessimism in states and chunks."""

    name = "pessorl"
    log_eps: Tensor
    config: PessorlConfig

    def __init__(
        self, critic: CriticConfig, config: PessorlConfig | None = None, return_range: tuple[float, float] = (-2.0, 0.0)
    ) -> None:
        """`return_range`: lowest and highest discounted return of the replay."""
        config = config or PessorlConfig()
        if config.models < 2:
            raise AloeError(f"pessorl: models {config.models} cannot disagree; at least 2")
        super().__init__(replace(critic, heads=config.models), config, return_range)
        if not self.needs_policy_chunks:
            raise AloeError(
                "pessorl penalises values of the policy's chunks, which action_level false and the bootstrap 'expectile' do without"
            )
        self.width = max(return_range[1] - return_range[0], 1e-6)
        self.register_buffer("log_eps", torch.tensor(math.log(config.eps_start)))
        self._gap = self.log_eps.new_tensor(config.gap_budget)

    def _loss(self, batch: CriticBatch, q_BK: Tensor, target_B: Tensor, weight_B: Tensor | None) -> tuple[Tensor, Info]:
        c = self.config
        td, info = critic_loss(q_BK, target_B, weight_B)
        observed = observation_only(batch)
        q_policy_BMK = self._policy_values(self.critic, observed, batch["policy_action"]) / self.width
        q_ood_BMK = (
            self._policy_values(self.critic, moved(observed, c.perturbation), batch["policy_action"]) / self.width
        )
        actions = action_gap(q_policy_BMK, q_BK / self.width)
        v_ood_BK = q_ood_BMK.mean(dim=1)
        states, gap_info = state_gap(
            v_ood_BK.mean(dim=1), v_ood_BK.std(dim=1, correction=0), q_policy_BMK.mean(dim=(1, 2))
        )
        eps = self.log_eps.exp()
        self._gap = states.detach()
        info |= {"action_gap": actions.detach(), "state_gap": states.detach(), "eps": eps.clone(), **gap_info}
        return 0.5 * td + c.alpha * actions + eps * states, info

    def after_step(self) -> None:
        """Moves the target network, and eps by the gap of the step."""
        super().after_step()
        c = self.config
        self.log_eps.copy_(dual_step(self.log_eps, self._gap, c.gap_budget, c.eps_rate, c.eps_limit))


def moved(observed: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Observations beside the recorded ones."""
    return {
        key: value
        if key not in MOVED
        else {camera: perturbed(grid.float(), scale) for camera, grid in value.items()}
        if isinstance(value, Mapping)
        else perturbed(value, scale)
        for key, value in observed.items()
    }
