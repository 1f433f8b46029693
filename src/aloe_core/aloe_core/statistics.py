"""Intervals for the numbers we report."""

from __future__ import annotations

from math import sqrt

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (95 % by default), both ends in [0, 1].

    Chosen because it stays inside [0, 1] and keeps its coverage at rates near 0 and 1 and for the 20 to 100 episodes that people run.

    Raises:
        ValueError: not 0 <= successes <= n, or n = 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} is no success rate")
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return min(rate, max(0.0, (centre - spread) / scale)), max(
        rate, min(1.0, (centre + spread) / scale)
    )  # rate: against rounding at 0 and 1


def success_text(successes: int, n: int) -> str:
    """`"18/20 = 90 % (95 % interval 70-97 %)"`."""
    low, high = wilson_interval(successes, n)
    return f"{successes}/{n} = {100 * successes / n:.0f} % (95 % interval {100 * low:.0f}-{100 * high:.0f} %)"
