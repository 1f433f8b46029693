"""VA-OPE (2106.11960): linear fitted-Q evaluation on frozen critic features, weighted by the inverse variance of the next value.

Two independent halves of the data: one estimates the variance, the other the value. Milliseconds on a CPU, closed-form intervals: a check on the neural critic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from aloe_core.errors import AloeError
from aloe_critic.ope import Refused


@dataclass(frozen=True)
class LinearValue:
    """Q(s, c) = phi . weights, with the covariance of the weights."""

    weights: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]

    def predict(self, phi_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and standard error of each row `[N]`."""
        return phi_ND @ self.weights, np.sqrt(np.einsum("nd,de,ne->n", phi_ND, self.covariance, phi_ND).clip(min=0))


def weighted_ridge(
    phi_ND: np.ndarray, target_N: np.ndarray, variance_N: np.ndarray | float = 1.0, ridge: float = 0.0
) -> LinearValue:
    """argmin sum (phi w - y)^2 / sigma^2 + ridge |w|^2 with its covariance (sum phi phi^T / sigma^2 + ridge)^-1.

    Raises:
        AloeError: features and targets do not determine the weights.
    """
    phi = np.asarray(phi_ND, np.float64)
    precision = 1.0 / np.broadcast_to(np.asarray(variance_N, np.float64), phi.shape[:1])
    gram = (phi * precision[:, None]).T @ phi + ridge * np.eye(phi.shape[1])
    if np.linalg.matrix_rank(gram) < phi.shape[1]:
        raise AloeError(
            f"{phi.shape[0]} samples do not determine {phi.shape[1]} weights: give a ridge above 0 or more data"
        )
    covariance = np.linalg.inv(gram)
    return LinearValue(covariance @ (phi.T @ (precision * np.asarray(target_N, np.float64))), covariance)


def conditional_variance(
    phi_ND: np.ndarray, next_value_N: np.ndarray, at_MD: np.ndarray, ridge: float, floor: float, add_floor: bool = True
) -> np.ndarray:
    """sigma^2 at `at` `[M]` by regressing V(s')^2 and V(s') on the features; `floor` [reward units squared] is added, or a lower bound."""
    second = weighted_ridge(phi_ND, np.square(next_value_N), ridge=ridge).weights
    first = weighted_ridge(phi_ND, next_value_N, ridge=ridge).weights
    variance = at_MD @ second - np.square(at_MD @ first)
    return floor_variance(variance, floor, add_floor)


def floor_variance(variance_N: np.ndarray, floor: float, add_floor: bool = True) -> np.ndarray:
    """max(floor, Var), plus the floor once more if `add_floor` (the reward's own variance)."""
    return np.maximum(floor, variance_N) + (floor if add_floor else 0.0)


@dataclass(frozen=True)
class Transitions:
    """N back-ups of chunks in features."""

    phi: np.ndarray  # [N, D] at (s, c)
    chunk_return: np.ndarray  # [N]
    discount: np.ndarray  # [N], gamma^n, 0 at terminals
    next_phi: np.ndarray  # [N, D] at (s', c' ~ policy)
    episode: np.ndarray  # int64 [N]

    def of(self, chosen_N: np.ndarray) -> Transitions:
        """Those of a mask or index."""
        return Transitions(*(getattr(self, f.name)[chosen_N] for f in fields(self)))


def variance_aware_value(
    half: Transitions,
    other_half: Transitions,
    ridge: float = 1e-3,
    floor: float = 1e-2,
    add_floor: bool = True,
    sweeps: int = 200,
) -> tuple[LinearValue, np.ndarray]:
    """Linear value of the policy whose next chunks are in the data, and the variance `[N]` by which `half` was weighted.

    The covariance is that of the fixed point A w = sum phi R / sigma^2, A = sum phi (phi - gamma^n phi')^T / sigma^2 + ridge, with episodes as the independent
    units (ours: chunks that start at neighbouring ticks share their steps, so they are not).

    Args:
        half: estimates the value.
        other_half: other episodes; estimates the variance.
        sweeps: fitted-Q iterations at most; gamma^n contracts each where the features do not prevent it.

    Raises:
        Refused: the iterations do not settle.
    """
    value = LinearValue(np.zeros(half.phi.shape[1]), np.eye(half.phi.shape[1]))
    settled = False
    for _ in range(sweeps):
        next_value = other_half.discount * (other_half.next_phi @ value.weights)
        variance = conditional_variance(other_half.phi, next_value, half.phi, ridge, floor, add_floor)
        target = half.chunk_return + half.discount * (half.next_phi @ value.weights)
        if not np.isfinite(target).all():
            break
        new = weighted_ridge(half.phi, target, variance, ridge)
        settled = bool(np.abs(half.phi @ (new.weights - value.weights)).max() < 1e-4)
        value = new
        if settled:
            break
    if not settled:
        raise Refused(f"linear fitted Q does not settle within {sweeps} sweeps on these features")
    return LinearValue(value.weights, _covariance(half, value.weights, variance, ridge)), variance


def _covariance(half: Transitions, weights: np.ndarray, variance: np.ndarray, ridge: float) -> np.ndarray:
    weighted = half.phi / variance[:, None]
    matrix = weighted.T @ (half.phi - half.discount[:, None] * half.next_phi) + ridge * np.eye(len(weights))
    error = half.chunk_return + half.discount * (half.next_phi @ weights) - half.phi @ weights
    units, unit = np.unique(half.episode, return_inverse=True)
    score = np.zeros((len(units), len(weights)))
    np.add.at(score, unit, weighted * error[:, None])
    spread = score.T @ score * len(units) / max(1, len(units) - 1)
    inverse = np.linalg.inv(matrix)
    return inverse @ spread @ inverse.T
