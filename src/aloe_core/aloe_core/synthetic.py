"""Synthetic episodes with known numbers, written as real bags: for tests and benchmarks of whatever reads bags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from aloe_core import topics as names
from aloe_core.bag_format import LATCHED, SENSOR, EpisodeInfo
from aloe_core.bag_writer import CHUNK_BYTES, BagWriter, Compression
from aloe_core.chunk import ActionChunk
from aloe_core.messages import bag_make, chunk_msg, compressed_image_msg, header_msg, joint_state_msg, typestore
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import EventType, Outcome, Source, Termination

START_NS = 1_000_000_000


@dataclass
class SyntheticEpisode:
    """An episode of `steps` transitions on `robot`; everything follows from `seed`.

    A camera shows one grey level per image, `(7 * tick + 40 * camera) % 256`, and has an image at every tick whose number is a multiple of `image_every`.

    Args:
        human: (start, stop) ticks in which a human drives every arm; None: the policy throughout.
        chunk_horizon, chunk_every: a chunk of so many rows is proposed every so many ticks.
        object_size: numbers of privileged object state; 0: a real robot.
    """

    robot: RobotDescription
    steps: int = 40
    seed: int = 0
    cameras: Sequence[str] = ()
    image_size: tuple[int, int] = (48, 64)
    image_every: int = 2
    human: tuple[int, int] | None = None
    outcome: Outcome = Outcome.SUCCESS
    chunk_horizon: int = 12
    chunk_every: int = 5
    object_size: int = 7
    policy_version: str = "test-0-00000000"
    source: Source = Source.POLICY

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        size = self.robot.action_dim
        self.stamps_ns = START_NS + np.arange(self.steps + 1) * self.robot.control_dt_ns  # [T + 1]
        self.state = rng.uniform(0, 1, (self.steps + 1, size)).astype(np.float32)  # [T + 1, A]
        self.executed = rng.uniform(0, 1, (self.steps, size)).astype(np.float32)  # [T, A]
        self.proposal = rng.uniform(0, 1, (self.steps, size)).astype(np.float32)  # [T, A]
        self.objects = rng.uniform(0, 1, (self.steps + 1, self.object_size)).astype(np.float32)  # [T + 1, O]
        self.is_human = np.zeros(self.steps, bool)
        if self.human is not None:
            self.is_human[slice(*self.human)] = True
        self.fragment = (
            np.concatenate([[0], np.cumsum(np.diff(self.is_human))]).astype(int) if self.steps else np.empty(0, int)
        )

    def grey(self, camera: str, tick: int) -> int:
        """Grey level of the newest image of `camera` at `tick`."""
        return (7 * (tick - tick % self.image_every) + 40 * self.robot.cameras.index(self.robot.camera(camera))) % 256

    def jpeg(self, camera: str, tick: int) -> bytes:
        """The image of `camera` that is taken at `tick`."""
        pixels = np.full((*self.image_size, 3), self.grey(camera, tick), np.uint8)
        return cv2.imencode(".jpg", pixels)[1].tobytes()

    def info(self, episode_id: str) -> EpisodeInfo:
        """The bag's information."""
        return EpisodeInfo(
            episode_id=episode_id,
            task="synthetic",
            instruction="do it",
            robot=self.robot.name,
            robot_hash=self.robot.hash,
            policy_version=self.policy_version,
            seed=self.seed,
        )

    def write(
        self, folder: Path, compression: Compression = "lz4", close: bool = True, chunk_bytes: int = CHUNK_BYTES
    ) -> EpisodeInfo:
        """Writes the bag; `close=False` leaves it as a killed recorder would."""
        info = self.info(folder.name)
        bag = BagWriter(folder, info, compression, chunk_bytes)
        bag.add_topic("/" + names.EPISODE_EVENT, "aloe_msgs/msg/EpisodeEvent", LATCHED)
        for camera in self.cameras:
            bag.add_topic(self.robot.camera(camera).compressed_topic, "sensor_msgs/msg/CompressedImage", SENSOR)
        for topic, type, message, time_ns in self.messages(info):
            bag.write(topic, type, typestore().serialize_cdr(message, type).tobytes(), time_ns)
        if close:
            bag.close(self.outcome, Termination.TASK)
        else:
            bag.flush()
        return info

    def messages(self, info: EpisodeInfo) -> list[tuple[str, str, Any, int]]:
        """(topic, type, message, log time [ns]) in the order of recording."""
        out: list[tuple[str, str, Any, int]] = []

        def add(topic: str, type: str, message: Any, time_ns: int) -> None:
            out.append(("/" + topic.lstrip("/"), type, message, time_ns))

        add(names.EPISODE_EVENT, "aloe_msgs/msg/EpisodeEvent", self._event(info, EventType.STARTED, 0), START_NS)
        for t in range(self.steps + 1):
            now = int(self.stamps_ns[t])
            if t:
                add(names.TRANSITION, "aloe_msgs/msg/Transition", self._transition(info, t - 1), now)
            position = self.robot.to_device(self.state[t].astype(np.float64))
            joints = joint_state_msg(bag_make, now, self.robot.action_names, position)
            add(self.robot.joint_states_topic, "sensor_msgs/msg/JointState", joints, now)
            if self.object_size:
                add(names.TASK_STATE, "aloe_msgs/msg/TaskState", self._task_state(info, t), now)
            for camera in self.cameras:
                if t % self.image_every == 0:
                    image = compressed_image_msg(bag_make, now, camera, self.jpeg(camera, t))
                    add(self.robot.camera(camera).compressed_topic, "sensor_msgs/msg/CompressedImage", image, now)
            if t % self.chunk_every == 0 and t < self.steps:
                add(
                    names.CHUNK, "aloe_msgs/msg/ActionChunk", chunk_msg(bag_make, self._chunk(info, t), self.robot), now
                )
        end = int(self.stamps_ns[-1])
        add(names.EPISODE_EVENT, "aloe_msgs/msg/EpisodeEvent", self._event(info, EventType.STOPPED, self.steps), end)
        return out

    def _chunk(self, info: EpisodeInfo, t: int) -> ActionChunk:
        rows = np.resize(self.proposal[t : t + self.chunk_horizon], (self.chunk_horizon, self.robot.action_dim))
        shown = int(self.stamps_ns[t - t % self.image_every])
        return ActionChunk(
            stamp_ns=int(self.stamps_ns[t]),
            positions=rows,
            dt_ns=self.robot.control_dt_ns,
            chunk_id=1 + t // self.chunk_every,
            policy_version=self.policy_version,
            episode_id=info.episode_id,
            camera_stamps_ns=dict.fromkeys(self.cameras, shown),
        )

    def _transition(self, info: EpisodeInfo, t: int) -> Any:
        last = t == self.steps - 1
        ended = self.outcome in (Outcome.SUCCESS, Outcome.FAILURE)
        who = Source.HUMAN if self.is_human[t] else self.source
        return bag_make(
            "aloe_msgs/msg/Transition",
            header=header_msg(bag_make, int(self.stamps_ns[t])),
            episode_id=info.episode_id,
            step=t,
            fragment=int(self.fragment[t]),
            arm_names=list(self.robot.arm_names),
            source=np.full(len(self.robot.arms), who, np.uint8),
            executed=self.executed[t].astype(np.float64),
            proposal=self.proposal[t].astype(np.float64),
            chunk_id=1 + t // self.chunk_every,
            chunk_step=t % self.chunk_every,
            policy_version=self.policy_version,
            intervention_id=int(self.is_human[t]),
            reward=0.0 if last and self.outcome == Outcome.SUCCESS else -1.0,
            terminated=last and ended,
            truncated=last and not ended,
            safety_limited=False,
        )

    def _task_state(self, info: EpisodeInfo, t: int) -> Any:
        return bag_make(
            "aloe_msgs/msg/TaskState",
            header=header_msg(bag_make, int(self.stamps_ns[t])),
            episode_id=info.episode_id,
            task=info.task,
            seed=info.seed,
            step=t,
            outcome=0,
            outcome_message="",
            progress=0.0,
            object_names=[f"object_{i}" for i in range(self.object_size)],
            object_state=self.objects[t].astype(np.float64),
            sim_state=np.full(3, float(t)),
        )

    def _event(self, info: EpisodeInfo, event: EventType, t: int) -> Any:
        stopped = event == EventType.STOPPED
        return bag_make(
            "aloe_msgs/msg/EpisodeEvent",
            header=header_msg(bag_make, int(self.stamps_ns[t])),
            event=int(event),
            episode_id=info.episode_id,
            task=info.task,
            instruction=info.instruction,
            seed=info.seed,
            time_limit=0.0,
            outcome=int(self.outcome) if stopped else 0,
            termination_reason=int(Termination.TASK) if stopped else 0,
            policy_version=info.policy_version,
            message="",
        )
