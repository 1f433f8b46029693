"""A bag as policy and critic would have met it: observations at any recorded instant, the requests for chunks, and what was executed.

Unlike `aloe_core.bag_reader`, which gives complete episodes to learn from, it takes any bag with joint states, also one of `ros2 bag record` that has no
transitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aloe_core import topics
from aloe_core.bag_content import EpisodeContent
from aloe_core.bag_images import CameraTrack, deserialize
from aloe_core.bag_messages import check_type, resolve
from aloe_core.bag_storage import open_storage
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import stamp_to_ns
from aloe_core.observation import Observation
from aloe_core.robot import RobotDescription, load_robot
from aloe_core.vocabulary import Source
from aloe_policy.replayed_bag import RECORDED_CHUNK, episode_info
from aloe_robot.control.config import ControlConfig

EXECUTE_STEPS = ControlConfig.execute_steps  # ticks between requests where a bag has none
UNKNOWN = "unknown"  # who drove, in a bag without transitions


class Eyes(Protocol):
    """What a policy or a critic looks at; fields as in `ChunkPolicy`."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int] | None
    uses_task_state: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A chunk that was, or is, asked for; fields as in `aloe_msgs/ChunkRequest`, and the time at which it was recorded."""

    stamp_ns: int
    log_time_ns: int
    episode_id: str
    request_id: int
    instruction: str
    prefix: np.ndarray  # float32 [n, A]; n = 0: none
    prefix_steps: int


class Recording:
    """One bag. T ticks, A actions.

    Attributes:
        stamps_ns: int64 `[T]`, ticks: those of the transitions, else those of the joint states at control rate.
        executed: float32 `[T, A]`, the command that was sent; without transitions the position measured one tick later.
        compared_with: `executed` or `measured`, which of the two it is.
        sources: `[T]`, who drove: human (any arm), policy, scripted, none, unknown.
        proposal: float32 `[T, A]`, what the policy proposed for the tick; NaN where it did not, or where there are no transitions.
        intervention_id: int64 `[T]`, number of the take-over; 0: none.
        chunks: recorded chunks; `requests`: recorded requests.

    Raises:
        AloeError: not a bag, damaged, of another robot, or without joint states; the message names bag and topic.
    """

    def __init__(self, folder: Path, robot: RobotDescription | None = None) -> None:
        self.folder = folder
        self._storage = open_storage(folder)
        custom = self._storage.custom_data
        if robot is None:
            if not custom.get("robot"):
                raise AloeError(f"bag {folder} does not say which robot it was recorded with; name the robot")
            robot = load_robot(custom["robot"])
        self.robot = robot
        self.info = episode_info(folder, custom, robot.name, robot.hash)
        self._content = EpisodeContent(folder, robot, custom.get("episode_id", ""))
        self._content.read(self._storage, (topics.CHUNK, RECORDED_CHUNK))
        if not self._content.joint_stamps:
            raise AloeError(
                f"bag {folder}: no joint states on {robot.joint_states_topic}, so no observation can be rebuilt"
            )
        steps = self._content.transition_arrays()
        self.requests = self._read_requests(self._content.episode_id)
        if not self._content.episode_id:
            ids = {r.episode_id for r in self.requests} | {m.episode_id for m in self._content.chunk_messages}
            self._content.episode_id = ids.pop() if len(ids) == 1 else ""
        if self._content.episode_id and not custom.get("episode_id"):
            self.info = replace(self.info, episode_id=self._content.episode_id)
        self.chunks = self._content.chunks()
        self._tracks: dict[str, CameraTrack] = {n: t for n, t in self._content.tracks(self._storage).items() if len(t)}
        self.outcome, self.termination = self._content.ending(custom)
        if len(steps["stamps_ns"]):
            self.compared_with = "executed"
            self.stamps_ns, self.executed = steps["stamps_ns"], steps["executed"]
            self.proposal, self.intervention_id = steps["proposal"], steps["intervention_id"]
            self.sources = [_driver(row) for row in steps["source"]]
        else:
            self.compared_with = "measured"
            ticks = self._joint_ticks()
            states = np.stack([self._content.build(t).state for t in ticks])
            self.stamps_ns, self.executed = np.array(ticks[:-1], np.int64), states[1:]
            self.proposal = np.full_like(self.executed, np.nan)
            self.intervention_id = np.zeros(len(self.stamps_ns), np.int64)
            self.sources = [UNKNOWN] * len(self.stamps_ns)
        self._named = {c.stamp_ns: c.camera_stamps_ns for c in self.chunks}

    def close(self) -> None:
        """Closes the bag's files; observations can no longer be built."""
        self._storage.close()

    def state(self, stamp_ns: int) -> np.ndarray:
        """Measured positions float32 `[A]` at a stamp."""
        return self._content.build(stamp_ns).state

    def camera(self, name: str) -> CameraTrack | None:
        """The images of one camera; None: the bag has none."""
        return self._tracks.get(name)

    def observe(self, stamp_ns: int, eyes: Eyes, instruction: str = "") -> Observation:
        """The observation at a stamp, through `ObservationBuilder`; images are those that a chunk recorded for that stamp names, else the newest up to it.

        Raises:
            AloeError: something that `eyes` looks at is not in the bag, or too old; the message names it.
        """
        seen = self._content.build(stamp_ns)
        if eyes.uses_task_state and seen.object_state is None:
            raise AloeError(f"bag {self.folder}: no {topics.TASK_STATE}, which the policy looks at")
        images, stamps = {}, {}
        for camera in eyes.cameras:
            track, index = self._image_at(camera, stamp_ns)
            images[camera] = track.decode(index, eyes.image_size)
            stamps[camera] = int(track.stamps_ns[index])
        task: dict[str, Any] = {} if eyes.uses_task_state else {"object_state": None, "sim_state": None}
        return replace(seen, images=images, camera_stamps_ns=stamps, instruction=instruction, **task)

    def recorded_chunk(self, stamp_ns: int, request_id: int) -> ActionChunk | None:
        """The chunk that was recorded for an observation, as the answer to this request if there are several."""
        there = [c for c in self.chunks if c.stamp_ns == stamp_ns]
        return next((c for c in there if c.request_id == request_id), there[0] if there else None)

    def asked(self, eyes: Sequence[Eyes], every: int) -> list[Request]:
        """What to ask a policy for: the recorded requests, else recorded chunks, else as often as a control loop would; with `every` > 0 each such tick.

        Ticks at which not everything in `eyes` can be seen are left out.
        """
        if self.requests and not every:
            return self.requests
        if self.chunks and not every:
            stamps = [(c.stamp_ns, c.request_id) for c in self.chunks]
        else:
            seen = [t for t in self.stamps_ns.tolist() if all(self._visible(t, e) for e in eyes)]
            stamps = [(t, number) for number, t in enumerate(seen[:: every or EXECUTE_STEPS], start=1)]
        none = np.empty((0, self.robot.action_dim), np.float32)
        return [Request(t, t, self.info.episode_id, i, self.info.instruction, none, 0) for t, i in stamps]

    def _visible(self, stamp_ns: int, eyes: Eyes) -> bool:
        try:
            for camera in eyes.cameras:
                self._image_at(camera, stamp_ns)
        except AloeError:
            return False
        return True

    def _image_at(self, camera: str, stamp_ns: int) -> tuple[CameraTrack, int]:
        track = self._tracks.get(camera)
        if track is None:
            raise AloeError(
                f"bag {self.folder}: no images of camera '{camera}'; it has: {', '.join(self._tracks) or 'none'}"
            )
        named: Mapping[str, int] = self._named.get(stamp_ns, {})
        index = int(track.index_at(np.int64(named.get(camera, stamp_ns))))
        if camera in named and index >= 0 and track.stamps_ns[index] == named[camera]:
            return track, index
        if camera in named:
            raise AloeError(
                f"bag {self.folder}: {track.topic}: the image that the recorded chunk names is not in the bag"
            )
        if index < 0 or stamp_ns - track.stamps_ns[index] > self._content.builder.max_image_age_ns:
            raise AloeError(f"bag {self.folder}: {track.topic}: no image shortly before {stamp_ns} ns")
        return track, index

    def _joint_ticks(self) -> list[int]:
        """Stamps of the joint states, thinned to the control rate, from the first at which every joint is known."""
        stamps = sorted(set(self._content.joint_stamps))
        least = self.robot.control_dt_ns - self.robot.control_dt_ns // 100  # 1 % is rounding
        ticks: list[int] = []
        for stamp in stamps:
            if ticks and stamp - ticks[-1] < least:
                continue
            if ticks or self._complete(stamp):
                ticks.append(stamp)
        if len(ticks) < 2:
            raise AloeError(
                f"bag {self.folder}: {self.robot.joint_states_topic} never tells the position of every joint of '{self.robot.name}'"
            )
        return ticks

    def _complete(self, stamp_ns: int) -> bool:
        try:
            self._content.build(stamp_ns)
        except AloeError:
            return False
        return True

    def _read_requests(self, episode_id: str) -> list[Request]:
        where = f"bag {self.folder}"
        topic = resolve(self._storage.topics(), topics.CHUNK_REQUEST, where)
        if topic is None:
            return []
        check_type(topic, where)
        found: dict[
            tuple[int, int], Request
        ] = {}  # a request may be published again, for its answer may have been lost
        for raw in self._storage.scan(lambda name: name == topic.name):
            message = deserialize(raw.data, raw.type, f"{where}: {raw.topic}")
            if episode_id and message.episode_id != episode_id:
                continue
            prefix = np.asarray(message.prefix, np.float32)
            if prefix.size % self.robot.action_dim:
                raise AloeError(
                    f"{where}: {raw.topic}: request {message.request_id}: a prefix of {prefix.size} numbers"
                )
            request = Request(
                stamp_ns=stamp_to_ns(message.header.stamp),
                log_time_ns=raw.log_time_ns,
                episode_id=message.episode_id,
                request_id=message.request_id,
                instruction=message.instruction,
                prefix=prefix.reshape(-1, self.robot.action_dim),
                prefix_steps=message.prefix_steps,
            )
            found.setdefault((request.request_id, request.stamp_ns), request)
        return list(found.values())


def _driver(row: np.ndarray) -> str:
    """Who drives in a tick, from the source of each arm: as for fragments, one human arm makes it the human's."""
    present = [s for s in (Source.HUMAN, Source.POLICY, Source.SCRIPTED) if s in row]
    return (present[0] if present else Source.NONE).name.lower()
