"""A picture of what a policy would have done: camera views, and its chunks over time against the recorded actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from aloe_core.bag_reader import EpisodeRecord
from aloe_core.observation import Observation
from aloe_core.policy import ChunkPolicy

VIEWS = 4  # instants of which camera views are shown


def observation_at(episode: EpisodeRecord, tick: int, policy: ChunkPolicy) -> Observation:
    """What `policy` would have been given at a tick of a recorded episode.

    Raises:
        AloeError: the bag lacks a camera.
    """
    task = policy.uses_task_state
    return Observation(
        stamp_ns=int(episode.stamps_ns[tick]),
        state=episode.state[tick],
        images={camera: episode.image(camera, tick, policy.image_size) for camera in policy.cameras},
        instruction=episode.info.instruction,
        object_state=episode.object_state[tick] if task and episode.object_state is not None else None,
        sim_state=episode.sim_state[tick] if task and episode.sim_state is not None else None,
    )


def chunks_along(
    policy: ChunkPolicy, episode: EpisodeRecord, every: int, samples: int, seed: int = 0
) -> dict[int, np.ndarray]:
    """Tick -> chunks float32 `[samples, H, A]` that the policy proposes there, every `every` ticks."""
    chunks = {}
    for tick in range(0, len(episode), every):
        observation = observation_at(episode, tick, policy)
        generators = (np.random.default_rng((seed, tick, k)) for k in range(samples))
        chunks[tick] = np.stack([policy.propose(observation, generator) for generator in generators])
    return chunks


def mean_error(chunks: dict[int, np.ndarray], executed: np.ndarray) -> float:
    """Mean absolute difference between chunks and what was executed from their tick on, over all entries that have a counterpart [rad, opening]."""
    errors = []
    for tick, sampled in chunks.items():
        rows = min(sampled.shape[1], len(executed) - tick)
        errors.append(np.abs(sampled[:, :rows] - executed[tick : tick + rows]).ravel())
    return float(np.concatenate(errors).mean())


def draw_policy(
    file: Path, episode: EpisodeRecord, chunks: dict[int, np.ndarray], cameras: Sequence[str], title: str
) -> None:
    """Writes the picture as PNG: views of `cameras` on top, then one plot per entry of the action."""
    names, arms = episode.robot.action_names, episode.robot.arm_slices
    rows = max(s.stop - s.start for s in arms)
    time = (episode.stamps_ns - episode.stamps_ns[0]) / 1e9  # [s]
    views = np.linspace(0, len(episode) - 1, VIEWS).astype(int)
    figure = Figure(figsize=(6.5 * len(arms), 1.5 * rows + 2.2 * len(cameras) + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    heights = [2.2 * len(cameras), 1.5 * rows] if cameras else [1.5 * rows]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if cameras:
        grid = parts[0].subplots(len(cameras), VIEWS, squeeze=False)
        for row, camera in zip(grid, cameras, strict=True):
            for axes, tick in zip(row, views, strict=True):
                axes.imshow(episode.image(camera, int(tick)))
                axes.set_title(f"{camera}, {time[tick]:.1f} s", fontsize=8)
                axes.axis("off")
    plots = parts[-1].subplots(rows, len(arms), sharex=True, squeeze=False)
    dt = episode.robot.control_dt_ns / 1e9
    for column, span in enumerate(arms):
        for row in range(rows):
            axes, entry = plots[row, column], span.start + row
            if entry >= span.stop:
                axes.axis("off")
                continue
            for tick, sampled in chunks.items():
                at = time[tick] + dt * np.arange(sampled.shape[1])
                colour = colormaps["viridis"](tick / len(episode))
                axes.plot(at, sampled[:, :, entry].T, color=colour, linewidth=0.8, alpha=0.8)
                axes.plot(at[0], sampled[0, 0, entry], ".", color=colour, markersize=4)
            axes.plot(time, episode.executed[:, entry], color="black", linewidth=1.2)
            axes.set_ylabel(names[entry], fontsize=7)
            axes.tick_params(labelsize=7)
        plots[-1, column].set_xlabel("time [s]    black: executed, coloured: proposed", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
