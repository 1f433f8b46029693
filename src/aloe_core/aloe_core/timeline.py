"""The picture of one episode: who drove each arm, interventions, fragments and outcome, and commanded against proposed, on one time axis."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from aloe_core.bag_reader import EpisodeRecord
from aloe_core.errors import AloeError
from aloe_core.fragments import Fragment, Protocol, derive_fragments
from aloe_core.vocabulary import Outcome, Source

SOURCE_COLOURS = {
    Source.NONE: "#d9d9d9",
    Source.SCRIPTED: "#b39ddb",
    Source.POLICY: "#4c78a8",
    Source.HUMAN: "#f58518",
}
OUTCOME_COLOURS = {
    Outcome.UNLABELLED: "#757575",
    Outcome.SUCCESS: "#2e7d32",
    Outcome.FAILURE: "#c62828",
    Outcome.TIMEOUT: "#6d4c41",
}


def draw_timeline(record: EpisodeRecord, protocol: Protocol = "aloe") -> Figure:
    """Draws an episode.

    Args:
        record: from `read_episode`.
        protocol: how interventions are read into fragments.

    Raises:
        AloeError: the episode has no transitions.
    """
    if not len(record):
        raise AloeError(f"bag {record.folder}: no transitions, there is nothing to draw")
    robot = record.robot
    time_s = (record.stamps_ns - record.stamps_ns[0]) / 1e9
    end_s = float(time_s[-1]) + robot.control_dt_ns / 1e9
    fragments = derive_fragments(record.source, record.outcome, protocol)
    arms = len(robot.arms)
    heights = [0.28 * (arms + 2)] + [1.8, 0.55] * arms
    figure = Figure(figsize=(12, 1.1 + sum(heights) * 0.95), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    edges = np.append(time_s, end_s)
    _draw_sources(axes[0], record, fragments, protocol, edges)
    for arm, span in enumerate(robot.arm_slices):
        joints, gripper = axes[1 + 2 * arm], axes[2 + 2 * arm]
        _draw_arm(joints, gripper, record, arm, span, time_s)
    for axis in axes[1:]:
        _shade_humans(axis, record, edges)
        for fragment in fragments[1:]:
            axis.axvline(edges[fragment.start], color="black", linewidth=0.8, linestyle=(0, (4, 3)))
        axis.grid(alpha=0.25)
    axes[-1].set_xlim(0.0, end_s)
    axes[-1].set_xlabel("time [s]")
    info = record.info
    drivers = ", ".join(dict.fromkeys(v for v in record.policy_version if v)) or "no policy"
    ended = f"{record.outcome.name.lower()} ({record.termination.name.lower().replace('_', ' ')})"
    figure.suptitle(f"{info.episode_id}: {info.task}, {drivers} — {ended}", fontsize=11, x=0.01, ha="left")
    return figure


def save_timeline(record: EpisodeRecord, path: Path, protocol: Protocol = "aloe") -> None:
    """Draws an episode into a file, PNG, PDF or SVG by its name.

    Raises:
        AloeError: the episode has no transitions, or the file cannot be written.
    """
    figure = draw_timeline(record, protocol)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise AloeError(f"cannot write the picture {path}: {error}") from None


def _stretches(values: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of the stretches of equal values of `[T]`."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    return list(pairwise([0, *cuts.tolist(), len(values)]))


def _draw_sources(
    axis: Axes, record: EpisodeRecord, fragments: list[Fragment], protocol: Protocol, edges: np.ndarray
) -> None:
    """One bar per arm, one for the fragments under the protocol; the number of each intervention above its first tick."""
    names = list(record.robot.arm_names)
    for row, column in enumerate(record.source.T):
        for start, stop in _stretches(column):
            colour = SOURCE_COLOURS[Source(int(column[start]))]
            axis.barh(row, edges[stop] - edges[start], left=edges[start], height=0.8, color=colour)
    row = len(names)
    for fragment in fragments:
        left, width = edges[fragment.start], edges[fragment.stop] - edges[fragment.start]
        ends = fragment.terminal or fragment.truncated
        colour = OUTCOME_COLOURS[fragment.outcome]
        axis.barh(row, width, left=left, height=0.8, color="white", edgecolor=colour, linewidth=1.5)
        text = fragment.outcome.name.lower() if ends else "goes on"
        if width > 0.09 * edges[-1]:
            axis.text(left + width / 2, row, text, ha="center", va="center", fontsize=8, color=colour)
        if fragment.terminal:
            axis.plot(
                edges[fragment.stop], row, marker="|", color=colour, markersize=16, markeredgewidth=3, clip_on=False
            )
    numbers = record.intervention_id
    for start, _ in _stretches(numbers):
        if numbers[start]:
            axis.text(edges[start], -0.5, f"intervention {numbers[start]}", fontsize=8, ha="left", va="bottom")
    axis.set_yticks(range(row + 1), [*names, f"fragments\n({protocol})"])
    axis.set_ylim(row + 0.5, -1.1)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    present = [s for s in Source if (record.source == s).any()]
    patches = [Patch(color=SOURCE_COLOURS[s], label="nobody" if s == Source.NONE else s.name.lower()) for s in present]
    axis.legend(handles=patches, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _draw_arm(joints: Axes, gripper: Axes, record: EpisodeRecord, arm: int, span: slice, time_s: np.ndarray) -> None:
    """Commanded solid, proposed dotted: joints above, gripper below."""
    description = record.robot.arms[arm]
    has_gripper = description.gripper is not None
    names = description.action_names
    for i, name in enumerate(names):
        axis = gripper if has_gripper and i == len(names) - 1 else joints
        colour = f"C{i}" if axis is joints else "black"
        label = name.removeprefix(description.name + "_")
        axis.plot(time_s, record.executed[:, span.start + i], color=colour, linewidth=1.2, label=label)
        axis.plot(time_s, record.proposal[:, span.start + i], color=colour, linewidth=1.1, linestyle=":")
    joints.set_ylabel(f"{description.name} [rad]")
    joints.plot([], [], color="black", linewidth=1.1, linestyle=":", label="proposed")
    joints.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    gripper.set_ylim(-0.1, 1.1)
    gripper.set_ylabel("gripper")


def _shade_humans(axis: Axes, record: EpisodeRecord, edges: np.ndarray) -> None:
    human = (record.source == Source.HUMAN).any(axis=1)
    for start, stop in _stretches(human):
        if human[start]:
            axis.axvspan(edges[start], edges[stop], color=SOURCE_COLOURS[Source.HUMAN], alpha=0.10, linewidth=0)
