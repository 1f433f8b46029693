"""Vlearn (2403.04453): a state value learned off-policy with truncated importance ratios, L = E[min(rho, 1) (V(s) - y)^2].

The ratio multiplies the *whole* squared error, so the fixed point is the value of the policy proportional to min(pi, pi_b), not of pi.
`methods.vlearn` is the method.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aloe_critic.targets import Info


def truncated_value_loss(value_B: Tensor, target_B: Tensor, ratio_B: Tensor, limit: float = 1.0) -> tuple[Tensor, Info]:
    """Loss on targets y = R + gamma^n m min_i Vbar_i(s'); `ratio` = pi(c|s) / pi_b(c|s), not self-normalised. Shapes may be any that broadcast.

    `overlap` = E min(rho, 1) is 1 minus the total variation between pi and pi_b: near 0 the data say next to nothing about the policy.
    """
    weight_B = ratio_B.detach().clamp(max=limit)
    loss = (weight_B * (value_B - target_B.detach()).square()).mean()
    return loss, {"overlap": ratio_B.detach().clamp(max=1.0).mean()}


def fixed_point(policy_C: Tensor, behaviour_C: Tensor, target_C: Tensor, limit: float = 1.0) -> Tensor:
    """Closed form at one state with C chunks: the mean target under weights pi_b min(pi / pi_b, limit)."""
    weight_C = torch.minimum(policy_C, limit * behaviour_C)
    return (weight_C * target_C).sum() / weight_C.sum()


def classified_ratio(logits_policy_B2: Tensor, logits_data_B2: Tensor) -> tuple[Tensor, Tensor, Info]:
    """pi(c|s) / pi_b(c|s) at the recorded chunks `[B]` by a classifier of (recorded, policy's), and the classifier's loss.

    Ours: a flow policy hands out no densities. At the optimum the difference of the logits is the log ratio. `ratio_mean` should then be 1.
    """
    picked = logits_policy_B2.log_softmax(dim=-1)[:, 1].mean() + logits_data_B2.log_softmax(dim=-1)[:, 0].mean()
    ratio_B = (logits_data_B2[:, 1] - logits_data_B2[:, 0]).detach().exp()
    right = (logits_policy_B2.argmax(dim=-1) == 1).float().mean() + (logits_data_B2.argmax(dim=-1) == 0).float().mean()
    return ratio_B, -picked / 2, {"ratio_mean": ratio_B.mean(), "told_apart": right / 2}


def piece_means(chunk_BHA: Tensor, mask_BH: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
    """Means over the executed steps of each of `pieces` equal parts `[B, pieces, A]`, and which parts have any `[B, pieces]`."""
    mask_BPS1 = mask_BH.unflatten(1, (pieces, -1)).unsqueeze(-1).to(chunk_BHA.dtype)
    count_BP1 = mask_BPS1.sum(dim=2)
    total_BPA = (chunk_BHA.unflatten(1, (pieces, -1)) * mask_BPS1).sum(dim=2)
    return total_BPA / count_BP1.clamp_min(1), count_BP1.squeeze(-1) > 0
