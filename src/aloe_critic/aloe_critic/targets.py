"""Targets of the chunk critic: pure functions of tensors, each with a closed-form test.

Notation: a chunk c = a_{t:t+h} with reward R = sum_{k<n} gamma^k r_{t+k}, and the state s' = s_{t+n} it is backed up to. `bootstrap_discount` is
gamma^n where the episode goes on at s', and 0 where it ended inside the chunk (success, failure); a truncation keeps gamma^n. B is the batch, K the heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Info = dict[str, Tensor]
Reduction = Literal["min", "mean", "mean_minus_std"]


def reduce_heads(q_BK: Tensor, how: Reduction = "min", std_weight: float = 1.0) -> Tensor:
    """One value `[B]` from the heads `[B, K]`; `min` is the paper's pessimism (Eq. 9), the others are options for the target.

    `mean_minus_std` subtracts `std_weight` population standard deviations.
    """
    if how == "min":
        return q_BK.min(dim=-1).values
    if how == "mean":
        return q_BK.mean(dim=-1)
    if how == "mean_minus_std":
        return q_BK.mean(dim=-1) - std_weight * q_BK.std(dim=-1, correction=0)
    raise ValueError(f"reduction '{how}' is not one of: min, mean, mean_minus_std")


def discounted_sum(rewards_BN: Tensor, mask_BN: Tensor, gamma: float) -> Tensor:
    """sum_k gamma^k mask_k r_k `[B]`: the chunk return of rewards `[B, N]`, of which those after an episode's end are masked out."""
    discounts = gamma ** torch.arange(rewards_BN.shape[1], dtype=rewards_BN.dtype, device=rewards_BN.device)
    return (rewards_BN * mask_BN * discounts).sum(dim=1)


def td_target(chunk_return_B: Tensor, bootstrap_discount_B: Tensor, next_value_B: Tensor) -> tuple[Tensor, Info]:
    """y = R + gamma^n (1 - terminal) * value(s') `[B]` without gradient: Eq. 7 with the terminal mask the paper omits.

    What `next_value` is decides the method: `reduce_heads(target(s', c' ~ policy))` for ALOE, `V_tau(s')` for IQL, `blend` of both for BEE.
    """
    # `where` and not only a product: a value that is not used must not be able to spoil the target by being infinite.
    bootstrap = torch.where(
        bootstrap_discount_B > 0, bootstrap_discount_B * next_value_B, torch.zeros_like(next_value_B)
    )
    target_B = (chunk_return_B + bootstrap).detach()
    info = {
        "target_mean": target_B.mean(),
        "target_min": target_B.min(),
        "target_max": target_B.max(),
        "bootstrap_share": (bootstrap_discount_B > 0).float().mean(),
    }
    return target_B, info


def blend(policy_value_B: Tensor, replay_value_B: Tensor, replay_share: float) -> Tensor:
    """lambda V_tau(s') + (1 - lambda) Q(s', c' ~ policy) `[B]`: BEE's operator (2306.02865).

    The ends are exact: share 0 gives ALOE's bootstrap bit by bit, 1 gives IQL's.
    """
    if replay_share == 0:
        return policy_value_B
    if replay_share == 1:
        return replay_value_B
    return replay_share * replay_value_B + (1 - replay_share) * policy_value_B


def expectile_loss(difference_B: Tensor, expectile: float) -> tuple[Tensor, Info]:
    """mean |tau - 1(u < 0)| u^2 with u = Q - V: IQL's value loss (2110.06169). tau = .5 is half the squared error."""
    weight_B = torch.where(difference_B < 0, 1 - expectile, expectile)
    return (weight_B * difference_B.square()).mean(), {"above_share": (difference_B > 0).float().mean()}


def uncertainty_weight(variance_B: Tensor, beta: float, form: Literal["exp", "inverse"] = "exp") -> Tensor:
    """UWAC's weight of a TD error `[B]` (2105.08140): exp(-beta Var) (its code) or beta / Var (its paper), clipped to [0, 1], without gradient.

    `variance` is that of the target heads at (s', c'). The weight multiplies the error inside the square: see `losses.critic_loss`.
    """
    weight_B = torch.exp(-beta * variance_B) if form == "exp" else beta / variance_B
    return weight_B.clamp(0, 1).detach()


@torch.no_grad()
def polyak_(target: nn.Module, online: nn.Module, rate: float = 0.005) -> None:
    """target <- (1 - rate) target + rate online, in place; rate .005 is the paper's. Buffers are copied."""
    kept_weights: list[Tensor] = [*target.parameters()]
    torch._foreach_lerp_(kept_weights, [*online.parameters()], rate)
    for kept, new in zip(target.buffers(), online.buffers(), strict=True):
        kept.copy_(new)
