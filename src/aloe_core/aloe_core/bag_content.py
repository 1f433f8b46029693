"""Collects one episode's messages from a bag; `bag_reader` makes arrays of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core import topics as names
from aloe_core.bag_format import Place, RawMessage
from aloe_core.bag_images import CameraTrack, deserialize
from aloe_core.bag_messages import check_type, resolve
from aloe_core.bag_storage import Storage
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import chunk_from_msg, header_stamp_ns, stamp_to_ns
from aloe_core.observation import Observation, ObservationBuilder
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import EventType, Outcome, Source, Termination, outcome_from_text

LARGEST = np.finfo(np.float32).max  # vectors are float32 from here on


@dataclass(frozen=True, slots=True)
class Event:
    """One `EpisodeEvent` of the recording."""

    stamp_ns: int
    event: EventType
    outcome: Outcome
    termination: Termination
    message: str


@dataclass(slots=True)
class EpisodeContent:
    """Messages of one episode while they are collected from the bag."""

    folder: Path
    robot: RobotDescription
    episode_id: str
    builder: ObservationBuilder = field(init=False)
    has_task_state: bool = False
    joint_stamps: list[int] = field(default_factory=list)
    transitions: list[Any] = field(default_factory=list)
    chunk_messages: list[Any] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    iterations: dict[str, int] = field(default_factory=dict)
    images: dict[str, tuple[str, str, list[tuple[int, Place]]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def where(self, topic: str) -> str:
        return f"bag {self.folder}: {topic}"

    def read(self, storage: Storage, chunks: Sequence[str] = (names.CHUNK,)) -> None:
        """Goes through the bag once. `chunks`: names under which the recorded chunks may be."""
        recorded = storage.topics()
        handlers: dict[str, Callable[[RawMessage], None]] = {}
        for name, type, handler in (
            (self.robot.joint_states_topic, "sensor_msgs/msg/JointState", self._joint_state),
            (names.TRANSITION, "aloe_msgs/msg/Transition", self._transition),
            *((name, "aloe_msgs/msg/ActionChunk", self._chunk) for name in chunks),
            (names.EPISODE_EVENT, "aloe_msgs/msg/EpisodeEvent", self._event),
            (names.POLICY_VERSION, "aloe_msgs/msg/PolicyVersion", self._version),
            (names.TASK_STATE, "aloe_msgs/msg/TaskState", self._task_state),
        ):
            topic = resolve(recorded, name, f"bag {self.folder}")
            if topic is not None:
                if topic.type != type:
                    raise AloeError(f"{self.where(topic.name)} has type {topic.type}, not {type}")
                check_type(topic, f"bag {self.folder}")
                handlers[topic.name] = handler
                self.has_task_state |= name == names.TASK_STATE and topic.count != 0
        for camera in self.robot.cameras:
            for name in (
                camera.raw_topic,
                camera.compressed_topic,
            ):  # where both were recorded, what the policy used: compressed
                topic = resolve(recorded, name, f"bag {self.folder}")
                if topic is not None and topic.count != 0:
                    self.images[camera.name] = (topic.name, topic.type, [])
        cameras = {topic: found for topic, _, found in self.images.values()}
        self.builder = ObservationBuilder(self.robot, use_task_state=self.has_task_state, history=1 << 40)
        for raw in storage.scan(lambda topic: topic in handlers or topic in cameras):
            found = cameras.get(raw.topic)
            if found is not None:
                found.append((header_stamp_ns(raw.data, self.where(raw.topic)), raw.place))
            else:
                handlers[raw.topic](raw)

    def _message(self, raw: RawMessage) -> Any:
        return deserialize(raw.data, raw.type, self.where(raw.topic))

    def _joint_state(self, raw: RawMessage) -> None:
        message = self._message(raw)
        if not len(message.position):  # velocities or efforts on their own
            return
        stamp = stamp_to_ns(message.header.stamp)
        try:
            self.builder.add_joint_state(stamp, message.name, message.position)
        except AloeError as error:
            raise AloeError(f"{self.where(raw.topic)}: {error}") from None
        self.joint_stamps.append(stamp)

    def _transition(self, raw: RawMessage) -> None:
        message = self._message(raw)
        sizes = {"executed": self.robot.action_dim, "source": len(self.robot.arms)}
        if list(message.arm_names) != list(self.robot.arm_names):
            raise AloeError(
                f"{self.where(raw.topic)}: arms {message.arm_names}, the robot '{self.robot.name}' has {self.robot.arm_names}"
            )
        for key, size in sizes.items():
            if len(getattr(message, key)) != size:
                raise AloeError(
                    f"{self.where(raw.topic)}: step {message.step}: {key} has {len(getattr(message, key))} numbers, not {size}"
                )
        if len(message.proposal) not in (0, self.robot.action_dim):
            raise AloeError(
                f"{self.where(raw.topic)}: step {message.step}: proposal has {len(message.proposal)} numbers"
            )
        if max(message.source) > max(Source):
            raise AloeError(f"{self.where(raw.topic)}: step {message.step}: source {max(message.source)} is unknown")
        if not (np.abs(message.executed) < LARGEST).all():
            raise AloeError(f"{self.where(raw.topic)}: step {message.step}: the executed action is not finite")
        self.transitions.append(message)

    def _chunk(self, raw: RawMessage) -> None:
        self.chunk_messages.append(self._message(raw))

    def _event(self, raw: RawMessage) -> None:
        message = self._message(raw)
        if self.episode_id and message.episode_id != self.episode_id:
            return  # latched: the episode before
        try:
            kinds = EventType(message.event), Outcome(message.outcome), Termination(message.termination_reason)
        except ValueError as error:
            raise AloeError(f"{self.where(raw.topic)}: {error}") from None
        self.events.append(Event(stamp_to_ns(message.header.stamp), *kinds, message.message))

    def _version(self, raw: RawMessage) -> None:
        message = self._message(raw)
        self.iterations[message.version] = int(message.iteration)

    def _task_state(self, raw: RawMessage) -> None:
        message = self._message(raw)
        self.builder.add_task_state(stamp_to_ns(message.header.stamp), message.object_state, message.sim_state)

    def build(self, stamp_ns: int) -> Observation:
        """The observation at a stamp, images left out."""
        try:
            with np.errstate(over="ignore"):
                observation = self.builder.build(stamp_ns)
        except AloeError as error:
            raise AloeError(f"bag {self.folder}: {error}") from None
        if not np.isfinite(observation.state).all():
            raise AloeError(
                f"{self.where(self.robot.joint_states_topic)}: the joint state at {stamp_ns} ns is not finite"
            )
        return observation

    def chunks(self) -> list[ActionChunk]:
        """Chunks of this episode, each once: a policy that is asked again says it again. One that does not fit the robot was refused on line as well:
        a problem, no error."""
        chunks: dict[tuple[int, int, str], ActionChunk] = {}
        for message in self.chunk_messages:
            if message.episode_id == self.episode_id:
                try:
                    chunk = chunk_from_msg(message, self.robot)
                except (AloeError, ValueError) as error:
                    self.problems.append(f"{names.CHUNK}: {error}")
                    continue
                chunks.setdefault((chunk.stamp_ns, chunk.chunk_id, chunk.policy_version), chunk)
        return list(chunks.values())

    def tracks(self, storage: Storage) -> dict[str, CameraTrack]:
        return {name: CameraTrack(storage, topic, type, images) for name, (topic, type, images) in self.images.items()}

    def transition_arrays(self) -> dict[str, Any]:
        """Fields of `EpisodeRecord` that come straight from the transitions, sorted by step, each step once."""
        ids = {m.episode_id for m in self.transitions}
        if not self.episode_id:
            if len(ids) > 1:
                raise AloeError(
                    f"bag {self.folder} holds several episodes: {', '.join(sorted(ids))}; record one bag per episode"
                )
            self.episode_id = next(iter(ids), "")
        by_step: dict[int, Any] = {}
        for message in self.transitions:
            if message.episode_id == self.episode_id:
                by_step.setdefault(message.step, message)
        if not by_step:
            others = ", ".join(sorted(ids)) or "none at all"
            self.problems.append(
                f"no transitions of episode '{self.episode_id}' on {names.TRANSITION} (found: {others})"
            )
        rows = [by_step[step] for step in sorted(by_step)]
        count, size = len(rows), self.robot.action_dim

        def column(key: str, dtype: Any) -> np.ndarray:
            return np.array([getattr(m, key) for m in rows], dtype)

        absent = np.full(size, np.nan)
        proposals = np.array([m.proposal if len(m.proposal) else absent for m in rows], np.float64)
        return {
            "step": column("step", np.int64),
            "stamps_ns": np.array([stamp_to_ns(m.header.stamp) for m in rows], np.int64),
            "executed": column("executed", np.float32).reshape(count, size),
            "proposal": np.clip(proposals, -LARGEST, LARGEST).astype(np.float32).reshape(count, size),
            "source": column("source", np.uint8).reshape(count, len(self.robot.arms)),
            **{key: column(key, np.int64) for key in ("fragment", "chunk_id", "chunk_step", "intervention_id")},
            "reward": column("reward", np.float32),
            **{key: column(key, bool) for key in ("terminated", "truncated", "safety_limited")},
            "policy_version": tuple(m.policy_version for m in rows),
        }

    def final_stamp_ns(self, stamps: np.ndarray, dt_ns: int, problems: list[str]) -> int:
        """Stamp of the observation one tick after the last transition: the newest joint state up to then (1 % of a tick is rounding)."""
        if not len(stamps):
            return 0
        last = int(stamps[-1])
        after = [s for s in self.joint_stamps if last < s <= last + dt_ns + dt_ns // 100]
        if not after:
            problems.append("no joint state after the last transition: its observation stands for the final one")
        return max(after, default=last)

    def ending(self, custom: dict[str, str]) -> tuple[Outcome, Termination]:
        """Outcome and termination by the last event that says so, else by the bag's custom data."""
        ended = [e for e in self.events if e.event in (EventType.STOPPED, EventType.LABELLED)]
        reason = next((e.termination for e in reversed(ended) if e.event == EventType.STOPPED), None)
        try:
            written = outcome_from_text(custom.get("outcome", "unlabelled"))
            why = Termination[custom.get("termination", "none").upper()]
        except (ValueError, KeyError) as error:
            raise AloeError(f"bag {self.folder}: custom data: {error}") from None
        return ended[-1].outcome if ended else written, why if reason is None else reason
