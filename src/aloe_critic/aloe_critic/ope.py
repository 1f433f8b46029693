"""Off-policy evaluation: what a policy is worth, judged from recordings of others, and how good such judgements are.

The value of a policy is its discounted return from the first observation of an episode, in units of the scaled reward. Estimators: fitted-Q evaluation
with chunks (the critic trained with a' ~ the policy), the mean return where the policy collected the recordings itself, and those of `estimators`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aloe_core.errors import AloeError
from aloe_critic.critic import ChunkCritic, repeat_batch
from aloe_critic.targets import Reduction, reduce_heads
from aloe_policy.protocol import SampleBatch, TrainablePolicy
from aloe_policy.training_state import random_numbers


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over episodes."""

    value: float
    low: float
    high: float
    episodes: int
    effective: float  # sample size that is left after weighting, in the estimator's own samples

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:.3f} .. {self.high:.3f}"
        return f"{self.value:.3f} ({interval}, {self.episodes} episodes, effective sample size {self.effective:.1f})"


class Refused(AloeError):
    """The data do not carry an estimate; the message says why."""


def bootstrap_estimate(values_E: np.ndarray, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Mean of one value per episode `[E]` with a percentile bootstrap interval over episodes.

    The interval covers which episodes were drawn, not errors of the critic.
    """
    values_E = np.asarray(values_E, np.float64)
    if not values_E.size or not np.isfinite(values_E).all():
        raise AloeError(
            f"an estimate needs finite values of at least one episode, not {values_E.size} with {(~np.isfinite(values_E)).sum()} bad ones"
        )
    draws = np.random.default_rng(seed).integers(values_E.size, size=(resamples, values_E.size))
    low, high = np.quantile(values_E[draws].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values_E.mean()), float(low), float(high), values_E.size, float(values_E.size))


def bootstrap_weighted(
    values_E: np.ndarray, weights_E: np.ndarray, seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over episodes of sum(w v) / sum(w)."""
    draws = np.random.default_rng(seed).integers(values_E.size, size=(resamples, values_E.size))
    total = weights_E[draws].sum(axis=1)
    means = (weights_E * values_E)[draws].sum(axis=1)[total > 0] / total[total > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@torch.no_grad()
def state_values(
    critic: ChunkCritic,
    policy: TrainablePolicy,
    observations: SampleBatch,
    samples: int,
    key: tuple[int, ...],
    reduction: Reduction = "min",
) -> torch.Tensor:
    """V(s) `[B]`, the mean over `samples` chunks of the policy of its heads' `reduction`; `key` seeds the chunks.

    `min` is the pessimistic value that improvement uses; `mean` is the better estimate of what a policy is worth.
    """
    repeated: Any = repeat_batch(observations, samples)
    chunks = policy.act(repeated, random_numbers(*key))
    heads = critic({**repeated, "action": chunks})
    return reduce_heads(heads, reduction).view(-1, samples).mean(dim=1)


# -- how good estimates are, where the truth is known ------------------------------------------------------------------------------------------


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties share their mean rank."""
    values = np.asarray(values, np.float64)
    order = values.argsort(kind="stable")
    rank = np.empty(values.size)
    rank[order] = np.arange(values.size)
    _, group = np.unique(values, return_inverse=True)
    return (np.bincount(group, rank) / np.bincount(group))[group]


def spearman(estimates: Sequence[float] | np.ndarray, truth: Sequence[float] | np.ndarray) -> float:
    """Rank correlation -1 .. 1; NaN when either side is constant."""
    a, b = ranks(np.asarray(estimates)), ranks(np.asarray(truth))
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def regret_at_k(estimates: Sequence[float], truth: Sequence[float], k: int = 1) -> float:
    """How much worse the best of the k policies chosen by the estimates is than the best of all, as a share of (max - min), 0 .. 1."""
    true = np.asarray(truth, np.float64)
    span = true.max() - true.min()
    if span == 0:
        return 0.0
    chosen = np.argsort(-np.asarray(estimates, np.float64), kind="stable")[:k]
    return float((true.max() - true[chosen].max()) / span)


def mean_absolute_error(estimates: Sequence[float], truth: Sequence[float]) -> float:
    """Mean of |estimate - truth|."""
    return float(np.abs(np.asarray(estimates, np.float64) - np.asarray(truth, np.float64)).mean())


def calibration_curve(predicted: np.ndarray, actual: np.ndarray, bins: int = 8) -> list[tuple[float, float, int]]:
    """(mean prediction, mean outcome, count) in bins of equal counts; on the diagonal a prediction can be taken at its word."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if part.size]
    return [(float(predicted[p].mean()), float(actual[p].mean()), int(p.size)) for p in parts]


def action_auc(better: np.ndarray, worse: np.ndarray) -> float:
    """Share of pairs from the same state in which the truly better chunk has the higher estimate; ties count half."""
    better, worse = np.asarray(better), np.asarray(worse)
    return float(((better > worse) + 0.5 * (better == worse)).mean())


def value_order_correlation(values_T: np.ndarray) -> float:
    """VOC: rank correlation of a successful episode's values with time; 1 when the critic sees steady progress."""
    return spearman(values_T, np.arange(len(values_T)))


def compare(estimates: Mapping[str, float], truth: Mapping[str, float]) -> dict[str, Any]:
    """All metrics of one estimator over the policies whose true value is known; `calibration` is the curve of truth over estimate, at most 8 points.

    Raises:
        AloeError: fewer than two policies have both.
    """
    names = [name for name in estimates if name in truth]
    if len(names) < 2:
        raise AloeError(f"comparing estimates with the truth needs two policies or more with both, not {len(names)}")
    e, t = [estimates[n] for n in names], [truth[n] for n in names]
    return {
        "policies": len(names),
        "spearman": spearman(e, t),
        "regret_at_1": regret_at_k(e, t, 1),
        "regret_at_2": regret_at_k(e, t, 2),
        "absolute_error": mean_absolute_error(e, t),
        "calibration": calibration_curve(np.array(e), np.array(t)),
    }
