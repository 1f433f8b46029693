"""PessORL (2111.05440): pessimism about states outside the data, in proportion to how much an ensemble disagrees there.

J = 1/2 E_D (Q - y)^2 + alpha (E_pi Q - E_data Q) + eps (log sum_s zeta(s) exp V(s) - E_data V). The weight eps is a dual variable, for a fixed one fails.
`methods.pessorl` is the method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aloe_critic.targets import Info


def action_gap(q_policy_B: Tensor, q_data_B: Tensor) -> Tensor:
    """E_pi Q - E_data Q: how much more the critic promises for chunks of the policy than for recorded ones (CQL's penalty)."""
    return q_policy_B.mean() - q_data_B.mean()


def state_gap(value_ood_S: Tensor, disagreement_S: Tensor, value_data_B: Tensor) -> tuple[Tensor, Info]:
    """log sum_s zeta(s) exp V(s) - E_data V, zeta proportional to the disagreement u(s) of an ensemble at the S candidate states.

    An ensemble that agrees everywhere says nothing about where the data end: zeta is uniform then.
    """
    u = disagreement_S.detach()
    zeta = u / u.sum() if u.sum() > 0 else torch.full_like(u, 1 / len(u))
    soft_max = torch.logsumexp(value_ood_S + zeta.clamp_min(1e-30).log(), dim=0)
    gap = soft_max - value_data_B.mean()
    return gap, {"ood_soft_max": soft_max.detach(), "ood_excess": (value_ood_S.max() - value_data_B.mean()).detach()}


def dual_step(log_eps: Tensor, gap: Tensor, budget: float, rate: float, limit: float = math.inf) -> Tensor:
    """The next log eps: it grows while the gap exceeds its budget tau_b, and shrinks below it; eps stays within 1e-4 .. `limit`."""
    return (log_eps + rate * (gap - budget)).clamp(math.log(1e-4), math.log(limit))


def perturbed(embedding_BD: Tensor, scale: float, generator: torch.Generator | None = None) -> Tensor:
    """Candidate states outside the data: recorded embeddings `[B, ...]` moved by Gaussian noise of `scale` standard deviations of each entry.

    Without a generator the noise is torch's, which the learner seeds for every step.
    """
    noise = torch.randn(embedding_BD.shape, generator=generator).to(embedding_BD)
    return embedding_BD + scale * embedding_BD.std(dim=0, correction=0) * noise
