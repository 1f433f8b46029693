"""Values of an episode as a Rerun recording, to scrub through beside its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aloe_core.errors import AloeError
from aloe_critic.film import middles
from aloe_critic.judgement import Judgement


def write_overlay(
    file: Path,
    episode_id: str,
    time_s: np.ndarray,
    judged: Judgement,
    human_T: np.ndarray,
    tick_s: float,
    film: Mapping[str, Sequence[np.ndarray]],
) -> None:
    """Writes `file` (.rrd): q, v, advantage and head spread at the judged chunks, who drives at every tick, and the film's frames.

    Args:
        time_s: `[n]`, when the judged chunks start.
        human_T: bool `[T]`, a human drives.
        tick_s: control period [s].
        film: name of a camera -> RGB frames, at the `middles` of the episode.

    Raises:
        AloeError: rerun is not installed.
    """
    try:
        import rerun as rr
    except ModuleNotFoundError:
        raise AloeError("Rerun recordings need the package 'rerun-sdk': pip install aloe_critic[rerun]") from None
    recording = rr.RecordingStream("aloe_critic", recording_id=episode_id)
    recording.save(str(file))
    for number, at in enumerate(time_s):
        recording.set_time("time", duration=float(at))
        for name in ("q", "v", "advantage", "head_std"):
            recording.log(f"critic/{name}", rr.Scalars(float(getattr(judged, name)[number])))
    for tick in np.flatnonzero(np.diff(human_T.astype(int), prepend=-1)):
        recording.set_time("time", duration=float(tick * tick_s))
        recording.log("human_drives", rr.Scalars(float(human_T[tick])))
    for camera, frames in film.items():
        for frame, share in zip(frames, middles(len(frames)), strict=True):
            recording.set_time("time", duration=float(share * len(human_T) * tick_s))
            recording.log(f"camera/{camera.replace(' ', '_')}", rr.Image(frame))
    recording.flush()
