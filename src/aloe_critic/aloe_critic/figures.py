"""The pictures of the report, one function each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#2563eb", "#ea580c", "#16a34a", "#dc2626", "#6b7280"


def histograms(groups: Mapping[str, np.ndarray], title: str) -> Figure:
    """Overlaid histograms of values, one colour per group, means marked."""
    figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    everything = np.concatenate(list(groups.values()))
    low, high = np.quantile(everything, [0.005, 0.995])
    bins = np.linspace(low, max(high, low + 1e-6), 40).tolist()
    for (name, values), colour in zip(groups.items(), (RED, ORANGE, GREEN, BLUE), strict=False):
        ax.hist(
            values,
            bins=bins,
            density=True,
            histtype="stepfilled",
            alpha=0.35,
            color=colour,
            label=f"{name} ({values.mean():.3f})",
        )
        ax.axvline(values.mean(), color=colour, lw=1.5)
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel("pessimistic value [scaled return]")
    ax.set_yticks([])
    ax.legend(fontsize=8, frameon=False)
    return figure


def spread_against_error(head_std: np.ndarray, error: np.ndarray, correlation: float) -> Figure:
    """Mean absolute error of Q in bins of equal counts of the head spread."""
    figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    order = np.argsort(head_std)
    parts = [p for p in np.array_split(order, 10) if len(p)]
    ax.plot([head_std[p].mean() for p in parts], [error[p].mean() for p in parts], "o-", color=BLUE)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("spread of the heads")
    ax.set_ylabel("|Q - return that followed|")
    ax.set_title(f"rank correlation {correlation:.2f}", loc="left", fontsize=10)
    return figure


def calibration(curve: Sequence[tuple[float, float, int]]) -> Figure:
    """Predicted against actual return in bins of equal counts."""
    figure, ax = plt.subplots(figsize=(3.6, 3.2), layout="constrained")
    predicted, actual = [c[0] for c in curve], [c[1] for c in curve]
    ends = [min(predicted + actual), max(predicted + actual)]
    ax.plot(ends, ends, color=GREY, lw=0.8)
    ax.plot(predicted, actual, "o-", color=BLUE)
    ax.set_xlabel("Q")
    ax.set_ylabel("return that followed")
    return figure


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and values of the critic, loss of the actor, over their steps."""
    panels = [
        ("critic", ("critic_loss",), "critic loss", True),
        ("critic", ("q_mean", "target_mean"), "mean value", False),
        ("critic", ("head_std",), "head spread", False),
        ("actor", ("flow_loss",), "actor loss", True),
    ]
    there = [p for p in panels if any(r["stage"] == p[0] and p[1][0] in r for r in rows)]
    figure, axes = plt.subplots(
        1, max(1, len(there)), figsize=(3 * max(1, len(there)), 2.6), layout="constrained", squeeze=False
    )
    for ax, (stage, keys, title, log) in zip(axes[0], there, strict=False):
        for key, colour in zip(keys, (BLUE, ORANGE), strict=False):
            points = [(r["step"], r[key]) for r in rows if r["stage"] == stage and key in r]
            ax.plot(*zip(*points, strict=True), color=colour, label=key)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel(f"{stage} step")
        if log:
            ax.set_yscale("log")
        if len(keys) > 1:
            ax.legend(fontsize=8, frameon=False)
    return figure


def replay_composition(rows: Sequence[Any]) -> Figure:
    """Frames by source in every iteration; `rows` of `ReplayReport`."""
    figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    iterations = sorted({r.iteration for r in rows})
    bottom = np.zeros(len(iterations))
    for name, colour in (("scripted", "#a5b4fc"), ("policy", BLUE), ("human", "#f59e0b"), ("none", "#d1d5db")):
        heights = np.array([sum(r.frames for r in rows if r.iteration == i and r.source == name) for i in iterations])
        if heights.any():
            ax.bar([str(i) for i in iterations], heights, bottom=bottom, color=colour, label=name)
            bottom += heights
    ax.set_xlabel("iteration")
    ax.set_ylabel("frames")
    ax.legend(fontsize=8, frameon=False)
    return figure
