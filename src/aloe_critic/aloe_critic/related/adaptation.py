"""GC-TTT (2507.18809): adapt to what is in front of the robot, with recorded experience that starts here and went well.

Also a replay browser: "show me what worked from here".
"""

from __future__ import annotations

import math

import numpy as np


def value_to_distance(value: float, gamma: float) -> float:
    """Steps to the goal behind a value of -1 per step: log(1 + (1 - gamma) V) / log gamma; infinite where the value says never."""
    inside = 1 + (1 - gamma) * value
    return math.log(inside) / math.log(gamma) if inside > 0 else math.inf


def distance_to_value(distance: float, gamma: float) -> float:
    """The inverse: -(1 - gamma^d) / (1 - gamma)."""
    return -(1 - gamma**distance) / (1 - gamma)


def what_worked_from_here(
    state_D: np.ndarray,
    states_ND: np.ndarray,
    steps_return_N: np.ndarray,
    end_value_N: np.ndarray,
    *,
    reach: float,
    top_share: float = 0.2,
) -> np.ndarray:
    """Indices of recorded sub-trajectories that start within `reach` of a state and rank in the top share, best first.

    Args:
        state_D: where the robot is, in normalised units.
        states_ND: where the sub-trajectories start.
        steps_return_N: discounted return of their H steps.
        end_value_N: discounted value where they end.
        reach: largest distance that still counts as here.
        top_share: q, of those near by.
    """
    near = np.flatnonzero(np.linalg.norm(states_ND - state_D, axis=1) <= reach)
    score = (steps_return_N + end_value_N)[near]
    keep = math.ceil(top_share * len(near))
    return near[np.argsort(-score, kind="stable")[:keep]]
