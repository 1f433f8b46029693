"""VITA (2506.10085): a value of task progress from frozen image and text features, with a linear memory that adapts at test time.

At every frame the memory takes one gradient step on a self-supervised reconstruction and is never reset within an episode; the value reads the updated memory:
l_self = || P_K z theta - P_V z ||^2,  theta <- theta - eta grad l_self,  V = h(P_Q z theta).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ProgressValue(nn.Module):
    """Value of progress in an episode, from features z `[T, F]` of its frames."""

    def __init__(self, features: int, width: int = 64, rate: float = 0.1) -> None:
        """`rate`: step size eta of the memory at test time."""
        super().__init__()
        self.key, self.query, self.content = (nn.Linear(features, width, bias=False) for _ in range(3))
        self.initial = nn.Parameter(torch.zeros(width, width))
        self.read = nn.Linear(width, 1, bias=False)
        self.rate = rate

    def forward(self, z_TF: Tensor) -> tuple[Tensor, Tensor]:
        """Value `[T]` after each frame and the self-supervised loss `[T]` before its update; both carry gradients through the updates (meta-training)."""
        theta: Tensor = self.initial
        values, losses = [], []
        keys, queries, contents = self.key(z_TF), self.query(z_TF), self.content(z_TF)
        for k, q, v in zip(keys, queries, contents, strict=True):
            error = k @ theta - v
            losses.append(error.square().sum())
            theta = theta - self.rate * 2 * torch.outer(k, error)  # the gradient of |k theta - v|^2
            values.append(self.read(q @ theta).squeeze(-1))
        return torch.stack(values), torch.stack(losses)


def progress_loss(model: ProgressValue, z_TF: Tensor, self_weight: float = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
    """Meta-training loss on one success: (V - t/T)^2 + .5 l_self."""
    value_T, self_T = model(z_TF)
    progress_T = torch.linspace(0, 1, len(z_TF), dtype=value_T.dtype, device=value_T.device)
    fit = (value_T - progress_T).square().mean()
    return fit + self_weight * self_T.mean(), {"progress_error": fit.detach(), "self_loss": self_T.mean().detach()}
