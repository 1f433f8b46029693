"""DPE (2308.14897, our reading): importance-weighted returns with an *estimated* behaviour density, which beats the true one because it knows what was drawn.

Densities are fitted to logged chunks and to chunks of the evaluation policy at the same states. Every estimate comes with its effective sample size.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from aloe_critic.ope import Refused


@dataclass(frozen=True)
class RatioEstimate:
    """A value by importance weighting."""

    value: float
    effective_samples: float  # (sum w)^2 / sum w^2
    samples: int


def effective_samples(ratio_N: np.ndarray) -> float:
    """(sum w)^2 / sum w^2, between 1 and N; 0 if all weights are."""
    ratio_N = np.asarray(ratio_N, np.float64)
    return float(ratio_N.sum() ** 2 / max(np.square(ratio_N).sum(), 1e-300))


def ratio_value(
    policy_density_N: np.ndarray,
    behaviour_density_N: np.ndarray,
    return_N: np.ndarray,
    *,
    self_normalised: bool = False,
    clip: float = np.inf,
    min_effective: float = 1.0,
) -> RatioEstimate:
    """Mean of ratio * return over logged chunks, or, self-normalised, sum(w R) / sum(w).

    Raises:
        Refused: fewer effective samples than `min_effective`: the number would be that of a handful of chunks.
    """
    ratio = np.minimum(np.asarray(policy_density_N, np.float64) / np.asarray(behaviour_density_N, np.float64), clip)
    if np.allclose(ratio, 1.0):
        warnings.warn("all ratios are 1: were both densities fitted to the same chunks?", stacklevel=2)
    effective = effective_samples(ratio)
    if not effective >= min_effective:
        raise Refused(
            f"only {effective:.1f} effective samples of {len(ratio)}, {min_effective:g} are needed: the policies differ too much for ratios"
        )
    total = float((ratio * np.asarray(return_N, np.float64)).sum())
    return RatioEstimate(total / (ratio.sum() if self_normalised else len(ratio)), effective, len(ratio))


@dataclass(frozen=True)
class GaussianDensity:
    """A diagonal Gaussian over chunks whose mean is linear in the state: enough to see whether two sources overlap.

    A density over hundreds of numbers gives degenerate ratios: project chunks to a few dimensions first.
    """

    weights: np.ndarray  # [S + 1, D]
    std: np.ndarray  # [D]

    @staticmethod
    def fit(state_NS: np.ndarray, chunk_ND: np.ndarray, ridge: float = 1e-3) -> GaussianDensity:
        """Least squares of chunks on states."""
        x = np.column_stack([state_NS, np.ones(len(state_NS))])
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ chunk_ND)
        return GaussianDensity(weights, (chunk_ND - x @ weights).std(axis=0).clip(min=1e-3))

    def log_density(self, state_NS: np.ndarray, chunk_ND: np.ndarray) -> np.ndarray:
        """log p(chunk | state) `[N]`."""
        error = (chunk_ND - np.column_stack([state_NS, np.ones(len(state_NS))]) @ self.weights) / self.std
        return -0.5 * (np.square(error) + np.log(2 * np.pi) + 2 * np.log(self.std)).sum(axis=1)
