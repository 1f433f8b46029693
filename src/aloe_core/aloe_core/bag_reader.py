"""The one way from a bag to arrays: an episode as transitions with the observations they belong to.

Observations are built by `ObservationBuilder` from the recorded messages, hence as on the robot; images are those that the policy's chunk names by stamp
where a chunk was computed at that tick.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core import topics as names
from aloe_core.bag_content import EpisodeContent, Event
from aloe_core.bag_format import EpisodeInfo, iteration_of
from aloe_core.bag_images import CameraTrack
from aloe_core.bag_labels import Label, read_labels
from aloe_core.bag_mcap import McapStorage
from aloe_core.bag_messages import BagMessage, find_bags, iter_messages, read_info
from aloe_core.bag_storage import Storage, open_storage
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription, load_robot
from aloe_core.vocabulary import EventType, Outcome, Termination

__all__ = [
    "BagMessage",
    "EpisodeInfo",
    "EpisodeRecord",
    "Event",
    "find_bags",
    "iter_messages",
    "read_episode",
    "read_info",
]


@dataclass(slots=True)
class EpisodeRecord:
    """One episode. T transitions, A actions, O numbers of object state; tick T is the observation after the last transition.

    Attributes:
        folder: the bag.
        robot: description the vectors follow.
        info: what the bag says about the episode.
        outcome: how it ended: the newest line of `labels.jsonl`, else the recorded events, else unlabelled.
        recorded_outcome: how it ended by the recording alone.
        label: that newest line, or None.
        step: int64 `[T]`, tick of the episode; consecutive unless `problems` says otherwise.
        stamps_ns: int64 `[T]`, observation time [ns].
        state: float32 `[T, A]`, measured at the stamp; joints [rad], grippers 0 closed .. 1 open.
        executed: float32 `[T, A]`, the command that was sent.
        proposal: float32 `[T, A]`, what the policy proposed for this tick; NaN where it had no proposal.
        source: uint8 `[T, arms]`, `Source` per arm.
        fragment, chunk_id, chunk_step, intervention_id: int64 `[T]`, as in `Transition`.
        reward: float32 `[T]`, as known on line.
        terminated, truncated, safety_limited: bool `[T]`.
        policy_version: per tick, the version behind the proposal; empty: none.
        object_state: float32 `[T, O]`, privileged state of a simulated task, or None.
        sim_state: float64 `[T, S]`, whole simulator state (`SimEnv.save_state`), or None.
        final_stamp_ns, final_state, final_object_state: the observation after the last transition: `[]`, `[A]`, `[O]` or None.
        chunks: the policy's chunks as recorded.
        cameras: per camera its images.
        camera_index: per camera int64 `[T + 1]`, the image of each tick; -1: none yet.
        iterations: policy version -> improvement iteration, where that is known.
        problems: what is incomplete, a sentence each; empty for a good bag.
    """

    folder: Path
    robot: RobotDescription
    info: EpisodeInfo
    outcome: Outcome
    termination: Termination
    recorded_outcome: Outcome
    label: Label | None
    step: np.ndarray
    stamps_ns: np.ndarray
    state: np.ndarray
    executed: np.ndarray
    proposal: np.ndarray
    source: np.ndarray
    fragment: np.ndarray
    chunk_id: np.ndarray
    chunk_step: np.ndarray
    intervention_id: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    safety_limited: np.ndarray
    policy_version: tuple[str, ...]
    object_state: np.ndarray | None
    sim_state: np.ndarray | None
    final_stamp_ns: int
    final_state: np.ndarray
    final_object_state: np.ndarray | None
    chunks: tuple[ActionChunk, ...]
    events: tuple[Event, ...]
    cameras: dict[str, CameraTrack]
    camera_index: dict[str, np.ndarray]
    iterations: dict[str, int]
    problems: list[str]

    def __len__(self) -> int:
        return len(self.step)

    @property
    def complete(self) -> bool:
        """Whether the last transition ends the episode, so that its outcome belongs to that transition."""
        return bool(len(self) and (self.terminated[-1] or self.truncated[-1]))

    def runs(self) -> list[tuple[int, int]]:
        """(start, stop) of the stretches of ticks with one value of `fragment`."""
        if not len(self):
            return []
        edges = [0, *(np.flatnonzero(np.diff(self.fragment)) + 1).tolist(), len(self)]
        return list(pairwise(edges))

    def image(self, camera: str, t: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """The image the policy saw (or would have seen) at tick `t` = 0 .. T; T is the observation after the last transition.

        Args:
            size: (height, width) [pixel]; None keeps the camera's own size.

        Returns:
            uint8 `[height, width, 3]`, RGB.

        Raises:
            AloeError: no such camera in the bag, no image up to that tick, or one that cannot be decoded.
        """
        track = self.cameras.get(camera)
        if track is None:
            raise AloeError(
                f"bag {self.folder}: no images of camera '{camera}'; it has: {', '.join(self.cameras) or 'none'}"
            )
        index = int(self.camera_index[camera][t])
        if index < 0:
            raise AloeError(f"bag {self.folder}: {track.topic}: no image up to tick {t}")
        return track.decode(index, size)


def read_episode(folder: Path | str, robot: RobotDescription | None = None) -> EpisodeRecord:
    """Reads one bag. Images stay in the file until `EpisodeRecord.image` asks for them.

    Args:
        folder: the bag's folder.
        robot: the robot it must have been recorded with; None takes the description that the bag names.

    Raises:
        AloeError: not a bag, damaged, from another robot, or with messages that do not fit the robot; the message names bag and topic. What is merely
            incomplete (a killed recording, missing steps) is no error but listed in `EpisodeRecord.problems`.
    """
    folder = Path(folder)
    storage = open_storage(folder)
    custom = storage.custom_data
    info = (
        EpisodeInfo.from_text(custom, f"bag {folder}")
        if custom.get("episode_id")
        else EpisodeInfo("", software_version="")
    )
    robot = _robot_of(info, robot, folder)
    content = EpisodeContent(folder, robot, info.episode_id)
    content.read(storage)
    steps = content.transition_arrays()
    if not info.episode_id:
        info = replace(info, episode_id=content.episode_id)
    stamps, chunks = steps["stamps_ns"], content.chunks()
    problems = [*content.problems, *_gaps(steps), *_ending(steps, storage, custom, content.events)]

    final_stamp = content.final_stamp_ns(stamps, robot.control_dt_ns, problems)
    observations = [content.build(int(t)) for t in ([*stamps.tolist(), final_stamp] if len(stamps) else [])]
    state = _stacked([o.state for o in observations], folder, "state").reshape(-1, robot.action_dim)
    has_task = bool(observations) and all(o.object_state is not None for o in observations)
    objects = _stacked([o.object_state for o in observations], folder, names.TASK_STATE) if has_task else None
    sim_state = _stacked([o.sim_state for o in observations], folder, names.TASK_STATE) if has_task else None
    cameras = {name: track for name, track in content.tracks(storage).items() if len(track)} if len(stamps) else {}
    ticks = np.append(stamps, final_stamp)
    index = {name: _camera_index(name, track, ticks, chunks, problems) for name, track in cameras.items()}
    labels = read_labels(folder)
    outcome, termination = content.ending(custom)
    return EpisodeRecord(
        folder=folder,
        robot=robot,
        info=info,
        outcome=labels[-1].outcome if labels else outcome,
        termination=termination,
        recorded_outcome=outcome,
        label=labels[-1] if labels else None,
        **steps,
        state=state[:-1] if len(stamps) else np.empty((0, robot.action_dim), np.float32),
        object_state=None if objects is None else objects[:-1],
        sim_state=None if sim_state is None else sim_state[:-1],
        final_stamp_ns=final_stamp,
        final_state=state[-1] if len(stamps) else np.full(robot.action_dim, np.nan, np.float32),
        final_object_state=None if objects is None else objects[-1],
        chunks=tuple(chunks),
        events=tuple(content.events),
        cameras=cameras,
        camera_index=index,
        iterations=_iterations({*steps["policy_version"], info.policy_version}, info, content.iterations),
        problems=problems,
    )


def _iterations(versions: set[str], info: EpisodeInfo, announced: dict[str, int]) -> dict[str, int]:
    """Iteration of each policy version: as announced in the recording, else noted in the bag, else by its name."""
    found: dict[str, int] = {}
    for version in sorted(versions - {""}):
        named = iteration_of(version)
        if info.iteration and version == info.policy_version:
            found[version] = info.iteration
        elif named is not None:
            found[version] = named
    return found | announced


def _robot_of(info: EpisodeInfo, robot: RobotDescription | None, folder: Path) -> RobotDescription:
    if robot is None:
        if not info.robot:
            raise AloeError(f"bag {folder} does not say which robot it was recorded with; name the robot")
        robot = load_robot(info.robot)
    if info.robot_hash and info.robot_hash != robot.hash:
        raise AloeError(
            f"bag {folder} was recorded with robot '{info.robot}' (hash {info.robot_hash}), "
            f"not with '{robot.name}' (hash {robot.hash}): joints, grippers, cameras or control rate differ"
        )
    return robot


def _gaps(steps: dict[str, Any]) -> list[str]:
    step, stamps = steps["step"], steps["stamps_ns"]
    problems = [] if not len(step) or step[0] == 0 else [f"the first step is {step[0]}, not 0"]
    for i in np.flatnonzero(np.diff(step) != 1):
        problems.append(f"steps {step[i] + 1} .. {step[i + 1] - 1} are missing")
    if (np.diff(stamps) <= 0).any():
        problems.append("stamps of consecutive transitions do not increase")
    return problems


def _ending(steps: dict[str, Any], storage: Storage, custom: dict[str, str], events: list[Event]) -> list[str]:
    problems = []
    if not storage.finalised:
        whole = isinstance(storage, McapStorage) and storage.complete
        problems.append("metadata.yaml is missing" if whole else "the recording was killed: run aloe bags recover")
    if custom.get("recovered") and not any(e.event == EventType.STOPPED for e in events):
        problems.append("recovered from a recording that was killed before the episode ended")
    if len(steps["step"]) and not (steps["terminated"][-1] or steps["truncated"][-1]):
        problems.append("the final transition is missing: the last one neither terminates nor truncates the episode")
    return problems


def _camera_index(
    camera: str, track: CameraTrack, stamps: np.ndarray, chunks: list[ActionChunk], problems: list[str]
) -> np.ndarray:
    """int64 `[T + 1]`: the image a chunk of that very tick names, else the newest one not newer than the tick."""
    index = track.index_at(stamps)
    named = {c.stamp_ns: c.camera_stamps_ns[camera] for c in chunks if camera in c.camera_stamps_ns}
    lost = 0
    for t, stamp in enumerate(stamps.tolist()):
        if stamp in named:
            at = int(track.index_at(np.int64(named[stamp])))
            if at >= 0 and track.stamps_ns[at] == named[stamp]:
                index[t] = at
            else:
                lost += 1
    if lost:
        problems.append(f"camera '{camera}': {lost} images that the policy used are not in the bag")
    if (index < 0).any():
        problems.append(f"camera '{camera}': no image for the first {int((index < 0).sum())} ticks")
    return index


def _stacked(values: list[Any], folder: Path, topic: str) -> np.ndarray:
    if len({v.shape for v in values}) > 1:
        raise AloeError(f"bag {folder}: {topic}: vectors of different sizes")
    return np.stack(values) if values else np.empty((0, 0), np.float32)
