"""OTA (2505.12737): a second value that is backed up over options of n control steps with one discount per option.

With gamma per control step the values of states thousands of steps from the goal all look alike; with one gamma per option their order survives.
`methods.ota` is the method.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor


def option_target(next_value_B: Tensor, reached_B: Tensor, gamma: float) -> Tensor:
    """-1 + gamma V(s_{t+n}) `[B]`, and 0 at the goal: the reward is -1 per option, whatever its length."""
    return ((-1.0 + gamma * next_value_B) * (~reached_B)).detach()


def distance_value(distance: float, option_steps: int, gamma: float) -> float:
    """Closed form: the value of a state `distance` steps from the goal, -(1 - gamma^k) / (1 - gamma) with k = ceil(distance / n) options.

    The last option may be shorter and costs as much as the others.
    """
    return -(1 - gamma ** math.ceil(distance / option_steps)) / (1 - gamma)


def ordered_share(values_T: np.ndarray, gap: int = 1) -> float:
    """Share of pairs `gap` or more ticks apart on a success whose later state has the higher value: 1 is a perfect order, .5 is chance."""
    values_T = np.asarray(values_T, np.float64)
    first, second = np.triu_indices(len(values_T), k=gap)
    if not first.size:
        return float("nan")
    difference = values_T[second] - values_T[first]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
