"""Losses of critic and actor: pure functions `(tensors) -> (loss, info)`, each with a closed-form test."""

from __future__ import annotations

import torch
from torch import Tensor

from aloe_critic.targets import Info


def critic_loss(q_BK: Tensor, target_B: Tensor, weight_B: Tensor | None = None) -> tuple[Tensor, Info]:
    """mean over heads and batch of (Q_i - y)^2: Eq. 8, all heads share one target `[B]`.

    `weight` `[B]` multiplies the error inside the square, as UWAC does; None weighs all samples alike.
    """
    error_BK = q_BK - target_B.detach().unsqueeze(-1)
    weighted_BK = error_BK if weight_B is None else error_BK * weight_B.detach().unsqueeze(-1)
    info = {
        "td_error": error_BK.detach().abs().mean(),
        "q_mean": q_BK.detach().mean(),
        "q_min": q_BK.detach().min(),
        "q_max": q_BK.detach().max(),
        "head_std": q_BK.detach().std(dim=-1, correction=0).mean(),
    }
    return weighted_BK.square().mean(), info


def advantage(q_data_B: Tensor, q_policy_BM: Tensor) -> Tensor:
    """A = Q_pess(s, c) - V(s) `[B]`, V = mean of Q_pess over m chunks sampled from the policy `[B, M]`: Eq. 10, without gradient."""
    return (q_data_B - q_policy_BM.mean(dim=1)).detach()


def advantage_weight(advantage_B: Tensor, beta: float, clip: float) -> Tensor:
    """w = exp(clip(A / beta, -eps, +eps)) `[B]` without gradient: Eq. 11. w(0) = 1, exp(-eps) <= w <= exp(eps)."""
    return torch.exp((advantage_B.detach() / beta).clamp(-clip, clip))


def effective_share(weight_B: Tensor) -> Tensor:
    """Effective sample size (sum w)^2 / sum w^2 as a share of the samples, 0 .. 1: how much data the weights leave over."""
    return weight_B.sum().square() / (weight_B.square().sum() * weight_B.numel()).clamp_min(1e-30)


def weighted_flow_loss(flow_loss_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Info]:
    """mean of w * per-sample flow-matching loss: Eq. 15, for any policy that hands out its loss per sample `[B]`.

    Not divided by sum w: a batch of bad chunks should pull less than a batch of good ones.
    """
    weight_B = weight_B.detach()
    return (weight_B * flow_loss_B).mean(), {
        "flow_loss": flow_loss_B.detach().mean(),
        "weight_mean": weight_B.mean(),
        "weight_effective": effective_share(weight_B),
    }
