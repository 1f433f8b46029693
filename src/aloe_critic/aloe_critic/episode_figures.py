"""The pictures of an episode, recorded or replayed: what was seen, valued, driven and commanded on one time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aloe_critic.figures import BLUE, GREEN, GREY, ORANGE, RED

DRIVERS = {"human": "#fde68a", "policy": "#bfdbfe", "scripted": "#c7d2fe", "none": "#e5e7eb", "unknown": "#e5e7eb"}
TAKEN_OVER = "#f59e0b"
DENSE = 40  # more chunks than that are drawn without marks and borders


@dataclass(frozen=True)
class Judged:
    """Values of the chunks of one topic, in the order of time."""

    time_s: np.ndarray  # [n], when the chunks start
    q: np.ndarray  # [n], scaled return
    v: np.ndarray  # [n]

    @property
    def advantage(self) -> np.ndarray:
        """`[n]`."""
        return self.q - self.v


@dataclass(frozen=True)
class Timeline:
    """An episode with time counted from its first tick. T ticks, A actions.

    Attributes:
        time_s: `[T]`.
        drivers: `[T]`, who drove, a key of `DRIVERS`.
        interventions: (begin, end) of each take-over [s].
        commanded, recorded, proposed: `[T, A]`: what was executed (or, where nobody knows, measured), what the recorded policy proposed for the tick, and what
            the replayed one does (of an episode that was not replayed: as recorded); NaN where there is none.
        commanded_name, proposed_name: what to call them in the pictures.
        groups: name of an arm -> its columns.
        names: `[A]`.
        film: name of a camera -> RGB frames, each the picture in the middle of its stretch of the time axis.
        judged: `recorded` and `proposed`, or `executed` chunks, as far as they were judged.
    """

    time_s: np.ndarray
    drivers: Sequence[str]
    interventions: Sequence[tuple[float, float]]
    commanded: np.ndarray
    recorded: np.ndarray
    proposed: np.ndarray
    commanded_name: str
    groups: Mapping[str, slice]
    names: Sequence[str]
    film: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    judged: Mapping[str, Judged] = field(default_factory=dict)
    proposed_name: str = "proposed in the replay"
    title: str = ""

    @property
    def end_s(self) -> float:
        """End of the last tick."""
        return float(self.time_s[-1]) + (
            float(self.time_s[-1]) / (len(self.time_s) - 1) if len(self.time_s) > 1 else 1.0
        )


def interventions(time_s: np.ndarray, intervention_id_T: np.ndarray) -> list[tuple[float, float]]:
    """(begin, end) [s] of each take-over; it ends with the tick after it, or with the episode. `time_s`: of the ticks, `[T]`."""
    found = []
    for number in sorted(set(intervention_id_T.tolist()) - {0}):
        ticks = np.flatnonzero(intervention_id_T == number)
        after = min(int(ticks[-1]) + 1, len(time_s) - 1)
        found.append((float(time_s[ticks[0]]), float(time_s[after])))
    return found


def timeline(shown: Timeline) -> Figure:
    """Cameras, values, sign of the advantage, drivers with take-overs, and per arm commanded against proposed, above each other."""
    heights = [0.9] * len(shown.film)
    heights += [1.6, 0.7] if shown.judged else []
    heights += [0.35, *[1.5] * len(shown.groups)]
    figure, axes = plt.subplots(
        len(heights),
        1,
        sharex=True,
        figsize=(11, 1.25 * sum(heights) + 0.5),
        height_ratios=heights,
        layout="constrained",
    )
    figure.suptitle(shown.title, x=0.01, ha="left", fontsize=10)
    rows = iter(np.atleast_1d(axes))
    for camera, frames in shown.film.items():
        _film(next(rows), camera, frames, shown.end_s)
    if shown.judged:
        _values(next(rows), shown)
        _signs(next(rows), shown)
    _drivers(next(rows), shown)
    for arm, columns in shown.groups.items():
        ax = next(rows)
        _joints(ax, shown, range(*columns.indices(len(shown.names))))
        ax.set_ylabel(f"{arm}\n[rad, gripper 0..1]", fontsize=8)
    ax.set_xlabel(
        f"time [s]; full lines: {shown.commanded_name}, dashed: {shown.proposed_name}; shaded: a person had taken over"
    )
    ax.set_xlim(0, shown.end_s)
    return figure


def joints(shown: Timeline) -> Figure:
    """One small picture per joint: commanded, proposed by the recorded policy, proposed in the replay."""
    columns, rows = len(shown.groups), max(c.stop - c.start for c in shown.groups.values())
    figure, axes = plt.subplots(
        rows, columns, sharex=True, figsize=(5.5 * columns, 1.2 * rows + 0.6), layout="constrained", squeeze=False
    )
    for column, span in enumerate(shown.groups.values()):
        for row in range(rows):
            ax, index = axes[row, column], span.start + row
            if index >= span.stop:
                ax.set_axis_off()
                continue
            _shade(ax, shown)
            ax.plot(shown.time_s, shown.commanded[:, index], color="black", lw=1, label=shown.commanded_name)
            ax.plot(shown.time_s, shown.recorded[:, index], color=GREY, lw=1, ls=":", label="proposed when recorded")
            ax.plot(shown.time_s, shown.proposed[:, index], color=ORANGE, lw=1, label=shown.proposed_name)
            ax.set_title(shown.names[index], loc="left", fontsize=8, pad=2)
            ax.tick_params(labelsize=7)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside upper center", ncols=3
    )
    for ax in axes[-1]:
        ax.set_xlabel("time [s]", fontsize=8)
        ax.set_xlim(0, shown.end_s)
    return figure


def _film(ax: Axes, camera: str, frames: Sequence[np.ndarray], end_s: float) -> None:
    width = end_s / len(frames)
    for index, frame in enumerate(frames):
        ax.imshow(frame, extent=((index + 0.01) * width, (index + 0.99) * width, 0, 1), aspect="auto")
    ax.set_ylim(0, 1)
    ax.set_yticks([])
    ax.tick_params(bottom=False)
    ax.set_ylabel(camera, fontsize=8)
    for side in ax.spines.values():
        side.set_visible(False)


def _values(ax: Axes, shown: Timeline) -> None:
    _shade(ax, shown)
    for (name, judged), (colour, mark) in zip(shown.judged.items(), ((BLUE, "o"), (ORANGE, "s")), strict=False):
        marked = mark if len(judged.q) <= DENSE else ""
        ax.plot(judged.time_s, judged.q, marker=marked, ms=3, lw=1, color=colour, label=f"Q of the {name} chunk")
    newest = list(shown.judged.values())[-1]
    ax.plot(newest.time_s, newest.v, color="black", lw=1, ls="--", label="V")
    ax.set_ylabel("scaled return", fontsize=8)
    ax.legend(fontsize=7, frameon=False, loc="best")


def _signs(ax: Axes, shown: Timeline) -> None:
    """A lane per kind of chunk, coloured by the sign of the advantage until the next chunk."""
    lanes = list(shown.judged.items())
    for lane, (_, judged) in enumerate(lanes):
        ends = np.append(judged.time_s[1:], shown.end_s)
        colours = np.where(judged.advantage >= 0, GREEN, RED)
        ax.barh(
            [-lane] * len(ends),
            ends - judged.time_s,
            left=judged.time_s,
            height=0.8,
            color=colours,
            edgecolor="white",
            lw=0.5 if len(ends) <= DENSE else 0,
        )
    ax.set_yticks([-lane for lane in range(len(lanes))], [f"advantage, {name}" for name, _ in lanes], fontsize=8)
    ax.set_ylim(-len(lanes) + 0.4, 0.6)


def _drivers(ax: Axes, shown: Timeline) -> None:
    """Who drove, with its name where there is room; take-overs framed."""
    edges = [
        0,
        *(i for i in range(1, len(shown.drivers)) if shown.drivers[i] != shown.drivers[i - 1]),
        len(shown.drivers),
    ]
    bounds = np.append(shown.time_s, shown.end_s)
    for first, last in pairwise(edges):
        begin, end, who = bounds[first], bounds[last], shown.drivers[first]
        ax.axvspan(begin, end, color=DRIVERS[who], lw=0)
        if end - begin > 0.06 * shown.end_s:
            ax.text((begin + end) / 2, 0.5, who, ha="center", va="center", fontsize=8)
    for begin, end in shown.interventions:
        ax.axvspan(begin, end, fill=False, edgecolor=TAKEN_OVER, lw=2)
    ax.set_ylim(0, 1)
    ax.set_yticks([])
    ax.set_ylabel("drives", fontsize=8, rotation=0, ha="right", va="center")


def _joints(ax: Axes, shown: Timeline, columns: Sequence[int]) -> None:
    _shade(ax, shown)
    colours = plt.get_cmap("tab10")
    for number, index in enumerate(columns):
        ax.plot(shown.time_s, shown.commanded[:, index], color=colours(number % 10), lw=1.2, label=shown.names[index])
        ax.plot(shown.time_s, shown.proposed[:, index], color=colours(number % 10), lw=1, ls="--")
    ax.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _shade(ax: Axes, shown: Timeline) -> None:
    for begin, end in shown.interventions:
        ax.axvspan(begin, end, color=DRIVERS["human"], lw=0, alpha=0.5)
