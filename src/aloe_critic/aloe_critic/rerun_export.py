"""One episode as a Rerun recording: cameras, values, who drove, and commanded against proposed per joint, on one time axis.

Works on any bag that `Recording` reads; what a replay or the graph said about it (`replay/chunk`, `replay/value`, `critic/value`) is shown where it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from aloe_core.errors import AloeError
from aloe_critic.recording import Recording
from aloe_critic.replay_summary import ReplayedEpisode, newest_rows
from aloe_critic.scoring import ChunkScorer

TIMELINE = "time"  # [s] since the first tick
COLOURS = {"commanded": 0x111111FF, "measured": 0x9E9E9EFF, "proposed": 0x4C78A8FF, "replayed": 0xE45756FF}
DRIVERS = {"human": 0xF58518FF, "policy": 0x4C78A8FF, "scripted": 0xB39DDBFF, "none": 0xD9D9D9FF, "unknown": 0xD9D9D9FF}
VALUES = {"q": 0x4C78A8FF, "v": 0x111111FF, "advantage": 0xF58518FF}
GOOD, BAD = 0x2E7D32FF, 0xC62828FF
NAMES = {"recorded": "recorded chunks", "proposed": "proposed chunks", "executed": "executed actions"}


def export(episode: ReplayedEpisode, output: Path, scorer: ChunkScorer | None = None, every: int = 5) -> list[str]:
    """Writes the file `output` (.rrd) with a layout for the viewer.

    Args:
        scorer: also judges what was executed: the actions of the next H ticks as a chunk, whoever drove.
        every: it does so at each `every`-th tick.

    Returns:
        Entity paths that were written.

    Raises:
        AloeError: the file cannot be written, or the critic does not fit.
    """
    recording = episode.recording
    if not len(recording.stamps_ns):
        raise AloeError(f"bag {recording.folder}: no ticks to show")
    judged = {"recorded": _values(episode.recorded_values), "proposed": _values(episode.proposed_values)}
    if scorer is not None:
        judged["executed"] = judge_executed(recording, scorer, every)
    shown = {name: values for name, values in judged.items() if len(values)}
    log = _Log(recording, output, _blueprint(recording, list(shown)))
    _cameras(log, recording)
    _joints(log, episode)
    _drivers(log, recording)
    for name, values in shown.items():
        _judgement(log, name, values)
    log.close()
    return log.paths


def judge_executed(recording: Recording, scorer: ChunkScorer, every: int) -> np.ndarray:
    """float64 `[n, 4]`: stamp [ns], q, v and advantage of the executed actions from each `every`-th tick on, where H ticks follow without a gap."""
    horizon, dt = scorer.critic.config.horizon, recording.robot.control_dt_ns
    rows = []
    for start in range(0, len(recording.stamps_ns) - horizon + 1, every):
        stamps = recording.stamps_ns[start : start + horizon]
        if stamps[-1] - stamps[0] > (horizon - 0.5) * dt:
            continue
        seen = recording.observe(int(stamps[0]), scorer, recording.info.instruction)
        score = scorer.score(seen, recording.executed[start : start + horizon], start)
        rows.append((stamps[0], score.q, score.v, score.advantage))
    return np.array(rows, np.float64).reshape(-1, 4)


class _Log:
    """The recording under way, with time counted from the first tick."""

    def __init__(self, recording: Recording, output: Path, blueprint: rrb.Blueprint) -> None:
        self.begin_ns = int(recording.stamps_ns[0])
        self.paths: list[str] = []
        self.stream = rr.RecordingStream("aloe", recording_id=recording.info.episode_id, send_properties=False)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.touch()
        except OSError as error:
            raise AloeError(f"cannot write the recording {output}: {error.strerror}") from None
        self.stream.save(output)
        self.stream.send_blueprint(blueprint)

    def columns(self, path: str, stamps_ns: Iterable[int], columns: Any) -> None:
        since = np.asarray(list(stamps_ns), np.int64) - self.begin_ns
        index = rr.TimeColumn(TIMELINE, duration=since.astype("timedelta64[ns]"))
        rr.send_columns(path, indexes=[index], columns=columns, recording=self.stream, strict=True)
        self.paths.append(path)

    def line(self, path: str, stamps_ns: Iterable[int], values: np.ndarray, name: str, colour: int) -> None:
        self.stream.log(path, rr.SeriesLines(colors=[colour], names=[name]), static=True, strict=True)
        self.columns(path, stamps_ns, rr.Scalars.columns(scalars=np.asarray(values, np.float64)))

    def states(self, path: str, stamps_ns: Sequence[int], states: Sequence[str], colours: dict[str, int]) -> None:
        """A lane of spans: `states` `[n]` holds at each stamp; only changes are written."""
        style = rr.StateConfiguration(values=list(colours), labels=list(colours), colors=list(colours.values()))
        self.stream.log(path, style, static=True, strict=True)
        change = [i for i in range(len(states)) if i == 0 or states[i] != states[i - 1]]
        self.columns(path, [stamps_ns[i] for i in change], rr.StateChange.columns(state=[states[i] for i in change]))

    def close(self) -> None:
        self.stream.flush()
        self.stream.disconnect()


def _cameras(log: _Log, recording: Recording) -> None:
    for camera in recording.robot.cameras:
        track = recording.camera(camera.name)
        if track is None:
            continue
        blobs = [_encoded(track.encoded(i)) for i in range(len(track))]
        kinds = ["image/png" if b.startswith(b"\x89PNG") else "image/jpeg" for b in blobs]
        log.columns(
            f"cameras/{camera.name}", track.stamps_ns.tolist(), rr.EncodedImage.columns(blob=blobs, media_type=kinds)
        )


def _encoded(image: np.ndarray) -> bytes:
    """JPEG or PNG bytes as recorded; an uncompressed image `[h, w, 3]` RGB becomes a PNG."""
    if image.ndim == 1:
        return image.tobytes()
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _joints(log: _Log, episode: ReplayedEpisode) -> None:
    """Per joint [rad] and gripper [0..1]: what was commanded, measured, proposed when recorded, and proposed in the replay."""
    recording = episode.recording
    stamps = recording.stamps_ns
    series = {"measured": np.stack([recording.state(int(t)) for t in stamps])}
    if recording.compared_with == "executed":
        series = {"commanded": recording.executed, **series}
    if np.isfinite(recording.proposal).any():
        series["proposed"] = recording.proposal
    if episode.proposals:
        series["replayed"] = newest_rows(episode.proposals, stamps)
    for column, joint in enumerate(recording.robot.action_names):
        for name, values in series.items():
            there = np.isfinite(values[:, column])
            if there.any():
                log.line(f"joints/{joint}/{name}", stamps[there].tolist(), values[there, column], name, COLOURS[name])


def _drivers(log: _Log, recording: Recording) -> None:
    """Who drives, take-overs and the outcome, as lanes of spans."""
    stamps = recording.stamps_ns.tolist()
    log.states("lanes/driver", stamps, recording.sources, {k: c for k, c in DRIVERS.items() if k in recording.sources})
    if recording.intervention_id.any():
        lanes = [f"take-over {n}" if n else "none" for n in recording.intervention_id.tolist()]
        log.states("lanes/intervention", stamps, lanes, {n: DRIVERS["none" if n == "none" else "human"] for n in lanes})
    outcome = recording.outcome.name.lower()
    log.states("lanes/outcome", [stamps[-1]], [outcome], {outcome: GOOD if outcome == "success" else BAD})


def _values(messages: dict[tuple[int, int], Any]) -> np.ndarray:
    """float64 `[n, 4]`: stamp [ns], q, v, advantage of each `CriticValue`, by stamp."""
    rows = [(stamp, m.q, m.v, m.advantage) for (stamp, _), m in sorted(messages.items())]
    return np.array(rows, np.float64).reshape(-1, 4)


def _judgement(log: _Log, name: str, values: np.ndarray) -> None:
    """q, v and advantage as curves, and the sign of the advantage as a lane."""
    stamps = [int(s) for s in values[:, 0]]
    for column, (key, colour) in enumerate(VALUES.items(), start=1):
        log.line(f"critic/{name}/{key}", stamps, values[:, column], key, colour)
    signs = ["positive" if a > 0 else "negative" for a in values[:, 3]]
    log.states(f"lanes/advantage_{name}", stamps, signs, {"positive": GOOD, "negative": BAD})


def _blueprint(recording: Recording, judged: Sequence[str]) -> rrb.Blueprint:
    """Cameras above, lanes and values in the middle, the joints of one arm per tab below."""
    cameras = [c.name for c in recording.robot.cameras if recording.camera(c.name) is not None]
    views = [rrb.Spatial2DView(origin=f"/cameras/{name}", name=name) for name in cameras]
    values = [rrb.TimeSeriesView(origin=f"/critic/{name}", name=f"value of {NAMES[name]}") for name in judged]
    arms = [
        rrb.Grid(*(rrb.TimeSeriesView(origin=f"/joints/{j}", name=j) for j in arm.action_names), name=f"{arm.name} arm")
        for arm in recording.robot.arms
    ]
    rows: list[Any] = [rrb.Horizontal(*views)] if views else []
    rows += [rrb.StateTimelineView(origin="/lanes", name="who drives, advantage"), *values, rrb.Tabs(*arms)]
    return rrb.Blueprint(rrb.Vertical(*rows), rrb.TimePanel(timeline=TIMELINE), collapse_panels=True)
