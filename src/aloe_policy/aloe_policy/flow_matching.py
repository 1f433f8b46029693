"""Flow matching, in the convention of the ALOE paper: eta runs from 0 (noise) to 1 (action), and the field f points from the action to the noise.

    x_eta = eta a + (1 - eta) eps,      f = eps - a = -dx/d eta        (paper Eq. 15)

Pure functions over chunks `[B, H, A]` and times eta `[B]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]  # f(x [B, H, A], eta [B]) -> [B, H, A]


def interpolate(action: Tensor, noise: Tensor, eta: Tensor) -> Tensor:
    """x_eta between noise (eta = 0) and action (eta = 1)."""
    eta = eta[:, None, None]
    return eta * action + (1 - eta) * noise


def field_target(action: Tensor, noise: Tensor) -> Tensor:
    """What f is regressed on (paper Eq. 15); the negative of the velocity dx/d eta."""
    return noise - action


def field_from_action(x: Tensor, action: Tensor, eta: Tensor) -> Tensor:
    """f at x when the clean chunk is predicted as `action`; eta < 1."""
    return (x - action) / (1 - eta[:, None, None])


def action_from_field(x: Tensor, field: Tensor, eta: Tensor) -> Tensor:
    """The clean chunk that f at x points away from."""
    return x - (1 - eta[:, None, None]) * field


def integrate(field: Field, noise: Tensor, steps: int, method: str = "euler") -> Tensor:
    """Carries noise to actions along dx/d eta = -f.

    Args:
        field: evaluated at eta < 1 only.
        noise: `[B, H, A]`.
        steps: number of equal steps.
        method: `euler` (one evaluation a step) or `midpoint` (two).
    """
    x, step = noise, 1.0 / steps
    for index in range(steps):
        eta = noise.new_full((len(noise),), index * step)
        if method == "midpoint":
            middle = x - step / 2 * field(x, eta)
            x = x - step * field(middle, eta + step / 2)
        else:
            x = x - step * field(x, eta)
    return x


def masked_mean_square(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean square of `[B, H, A]` over the rows that count, `[B]`; `mask` bool `[B, H]`. A sample without such a row has 0."""
    square = error.square().mean(-1)
    if mask is None:
        return square.mean(-1)
    square = torch.where(mask, square, 0.0)
    return square.sum(-1) / mask.sum(-1).clamp(min=1)


def guidance_weights(horizon: int, frozen: int, known: int) -> Tensor:
    """How firmly each row of a new chunk is held to the running one, `[H]` (real-time chunking, Black et al. 2025, Eq. 5).

    1 for the `frozen` rows that will be executed anyway, decaying over the rest of the `known` rows, 0 after them.
    """
    index = torch.arange(horizon, dtype=torch.float32)
    c = ((known - index) / (known - frozen + 1)).clamp(0.0, 1.0)
    weights = c * torch.expm1(c) / (torch.e - 1)
    return torch.where(index < frozen, 1.0, torch.where(index < known, weights, 0.0))


def integrate_with_prefix(
    field: Field, noise: Tensor, steps: int, prefix: Tensor, prefix_steps: int, max_guidance: float = 5.0
) -> Tensor:
    """Generates chunks that continue a running one: flow in-painting with soft guidance (real-time chunking, Black et al. 2025, Algorithm 1).

    The first `prefix_steps` rows are held on the straight path from their noise to the prefix and so come out equal to it; at every Euler step the remaining
    known rows pull the clean chunk predicted from x towards the prefix, through the Jacobian of that prediction.

    Args:
        field: differentiable.
        noise: `[B, H, A]`.
        steps: Euler steps.
        prefix: `[n, A]` rows of the running chunk, in the same units as the chunks; n <= H.
        prefix_steps: rows of `prefix` that will certainly be executed.
        max_guidance: limit of the guidance weight, which the formula lets grow without bound towards eta = 0 (paper: 5).
    """
    batch, horizon, _ = noise.shape
    known = len(prefix)
    weights = guidance_weights(horizon, prefix_steps, known).to(noise)[:, None]
    goal = torch.zeros_like(noise)
    goal[:, :known] = prefix
    x, step = noise, 1.0 / steps
    for index in range(steps):
        time = index * step
        eta = noise.new_full((batch,), time)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            f = field(x, eta)
            clean = action_from_field(x, f, eta)
            error = weights * (goal - clean.detach())
            (pull,) = torch.autograd.grad(clean, x, error)
        variance = (1 - time) ** 2 / (
            time**2 + (1 - time) ** 2
        )  # of the clean chunk given x, for a unit Gaussian prior
        guidance = min(max_guidance, (1 - time) / (time * variance)) if time > 0 else max_guidance
        x = (x - step * (f - guidance * pull)).detach()
        after = time + step
        x[:, :prefix_steps] = after * prefix[:prefix_steps] + (1 - after) * noise[:, :prefix_steps]
    return x
