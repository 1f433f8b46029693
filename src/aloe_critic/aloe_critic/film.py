"""Frames of a recorded episode for the report: recorded images, or, in simulation, the recorded simulator states drawn again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from aloe_core.bag_reader import EpisodeRecord, read_episode
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

HEIGHT = 120  # [pixel]
FRAMES = 7  # of a camera; our choice: nearly as wide as they are, in the width of a timeline
DRAWN_AGAIN = "drawn again"  # stands where the name of a camera does


def middles(stretches: int) -> np.ndarray:
    """`[stretches]` in 0..1: where the frames of a film are taken, in the middle of each of even stretches."""
    return (np.arange(stretches) + 0.5) / stretches


def film_strip(bag: Path, robot: RobotDescription, frames: int = FRAMES) -> dict[str, list[np.ndarray]]:
    """Name of a camera -> RGB images of even height at the `middles` of the episode; without images the simulator's states, drawn again; else empty.

    Raises:
        AloeError: the bag is gone or damaged.
    """
    episode = read_episode(bag, robot)
    ticks = (middles(frames) * (len(episode.state) - 1)).round().astype(int)
    for camera, index in episode.camera_index.items():
        found = [int(index[t]) for t in ticks]
        if min(found) >= 0:
            return {camera: [small(episode.cameras[camera].decode(i)) for i in found]}
    drawn = _drawn_again(episode, ticks)
    return {DRAWN_AGAIN: drawn} if drawn else {}


def drawn_at(bag: Path, robot: RobotDescription, shares: np.ndarray) -> list[np.ndarray]:
    """The simulator's recorded states at `shares` `[n]` (0..1) of the episode, drawn again; empty if there are none or no EGL."""
    if robot.simulator is None:
        return []
    try:
        episode = read_episode(bag, robot)
        return _drawn_again(episode, (shares * (len(episode.state) - 1)).round().astype(int))
    except AloeError:  # a bag without transitions, or of a task that is not ours
        return []


def _drawn_again(episode: EpisodeRecord, ticks: np.ndarray) -> list[np.ndarray]:
    if episode.sim_state is None:
        return []
    from aloe_robot.sim.env import SimEnv

    env = SimEnv(episode.info.task)
    try:
        drawn = []
        for tick in ticks:
            env.restore_state(episode.sim_state[tick])
            drawn.append(small(env.render(env.cameras[0], 320, 240)))
        return drawn
    except AloeError:  # no EGL on this machine: the report does without
        return []
    finally:
        env.close()


def small(image: np.ndarray) -> np.ndarray:
    """An RGB image at the height of the film."""
    width = round(image.shape[1] * HEIGHT / image.shape[0])
    return cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
