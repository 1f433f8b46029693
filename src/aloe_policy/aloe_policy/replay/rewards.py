"""Rewards of a task, from outcomes alone (paper Eq. 14), and their discounted sums in closed form.

-1 on every step; 0 on the step that ends in success; -C_fail on the step that ends in failure. All are multiplied by `reward_scale`.
Nothing is stored with the data, so a new label or another configuration needs no new ingest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome


@dataclass(frozen=True)
class RewardConfig:
    """The task's reward.

    Attributes:
        gamma: discount per control step; paper: 0.99.
        reward_scale: factor on every reward; None: 1 - gamma, so that paths to success lie in [-1, 0] (our choice: the paper does not disclose it).
        failure_cost: C_fail [steps]; None: mean length of the successful episodes, of all while none has succeeded (our choice; paper: mean length of all).
        timeout_is_failure: running out of time is a failure (as in the paper's tasks), not a mere cut.
    """

    gamma: float = 0.99
    reward_scale: float | None = None
    failure_cost: float | None = None
    timeout_is_failure: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise AloeError(f"reward: gamma must lie in (0, 1], not {self.gamma}")
        if self.reward_scale is None and self.gamma == 1:
            raise AloeError("reward: without discount (gamma 1) give reward_scale")
        if self.reward_scale is not None and not 0 < self.reward_scale < np.inf:
            raise AloeError(f"reward: reward_scale must be positive, not {self.reward_scale}")
        if self.failure_cost is not None and not 0 <= self.failure_cost < np.inf:
            raise AloeError(f"reward: failure_cost must not be negative, but is {self.failure_cost}")

    @property
    def scale(self) -> float:
        """Factor on every reward."""
        return 1 - self.gamma if self.reward_scale is None else self.reward_scale

    def cost(self, lengths: np.ndarray, outcomes: np.ndarray) -> float:
        """C_fail [steps] for episodes of `lengths [E]` that ended in `outcomes [E]`."""
        if self.failure_cost is not None:
            return self.failure_cost
        successes = lengths[outcomes == Outcome.SUCCESS]
        counted = successes if len(successes) else lengths
        return float(counted.mean()) if len(counted) else 0.0

    def end_reward(self, outcome: Outcome, terminal: bool, cost: float) -> float:
        """Unscaled reward of the last step of a fragment."""
        if not terminal:
            return -1.0
        return 0.0 if outcome == Outcome.SUCCESS else -cost

    def discounted(self, steps: np.ndarray, ends: np.ndarray, end_reward: np.ndarray) -> np.ndarray:
        """sum_{k < steps} gamma^k r_k with -1 on every step but the last one, which gives `end_reward` where `ends`, float64 `[...]`."""
        g = self.gamma
        gone = g ** np.asarray(steps, np.float64)
        running = -(1 - gone) / (1 - g) if g < 1 else -np.asarray(steps, np.float64)
        return self.scale * (running + np.where(ends, (end_reward + 1) * gone / g, 0.0))

    def bounds(self, cost: float) -> tuple[float, float]:
        """Lowest and highest discounted return that any fragment can have; the lowest of an endless one is -1 / (1 - gamma) before scaling."""
        endless = 1 / (1 - self.gamma) if self.gamma < 1 else np.inf
        return -self.scale * max(endless, cost), 0.0
