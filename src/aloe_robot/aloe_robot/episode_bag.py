"""Writes the bag of an episode that runs in lockstep without ROS: the topics, types and stamps are those of the graph's recorder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core import topics
from aloe_core.bag_format import COMMAND, LATCHED, RELIABLE, SENSOR, EpisodeInfo, TopicQos
from aloe_core.bag_writer import BagWriter
from aloe_core.chunk import NANOSECONDS, ActionChunk
from aloe_core.messages import bag_make, chunk_msg, header_msg, typestore
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import EventType, Outcome, Termination
from aloe_robot.control.messages import chunk_request_msg, control_state_msg, safety_status_msg, transition_msg
from aloe_robot.control.records import ChunkRequest, TickResult, Transition
from aloe_robot.sim.env import SimEnv
from aloe_robot.sim.messages import camera_info, sim_joint_state, task_state


@cache
def _serializer(type_name: str) -> Callable[[Any], bytes]:
    store = typestore()
    return lambda message: bytes(store.serialize_cdr(message, type_name))


class EpisodeBag:
    """One episode on its way into `<bags>/<episode_id>`.

    Raises:
        AloeError: the folder exists already, or the disk is full.
    """

    def __init__(self, folder: Path, robot: RobotDescription, info: EpisodeInfo, env: SimEnv, limit_steps: int) -> None:
        self._writer = BagWriter(folder, info)
        self._robot, self._info, self._env, self._limit = robot, info, env, limit_steps

    def start(self, stamp_ns: int) -> None:
        """The episode begins; `stamp_ns` [ns] is that of its first observation."""
        self._event(EventType.STARTED, stamp_ns, Outcome.UNLABELLED, Termination.NONE)

    def observation(self, stamp_ns: int, images: dict[str, Any]) -> None:
        """What the sensors say at `stamp_ns` [ns]; `images` are CompressedImage messages by camera name."""
        for name, message in images.items():
            camera = self._robot.camera(name)
            self._write(camera.compressed_topic, message, stamp_ns, SENSOR)
            self._write(camera.info_topic, camera_info(bag_make, self._env, camera, stamp_ns), stamp_ns, SENSOR)
        state = task_state(bag_make, self._env, stamp_ns, self._info.episode_id, self._info.seed, self._limit)
        self._write(topics.TASK_STATE, state, stamp_ns)
        joints = sim_joint_state(bag_make, self._env, self._robot, stamp_ns)
        self._write(self._robot.joint_states_topic, joints, stamp_ns)

    def request(self, request: ChunkRequest) -> None:
        """A chunk was asked for."""
        self._write(topics.CHUNK_REQUEST, chunk_request_msg(bag_make, request), request.stamp_ns)

    def chunk(self, chunk: ActionChunk, now_ns: int) -> None:
        """The policy's answer, at `now_ns` [ns]."""
        self._write(topics.CHUNK, chunk_msg(bag_make, chunk, self._robot), now_ns)

    def tick(self, result: TickResult, stamp_ns: int) -> None:
        """What the control loop did at `stamp_ns` [ns]."""
        device = self._robot.to_device(result.commanded)
        layout = bag_make("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
        for arm, span in zip(self._robot.arms, self._robot.arm_slices, strict=True):
            command = bag_make("std_msgs/msg/Float64MultiArray", layout=layout, data=np.ascontiguousarray(device[span]))
            self._write(arm.output.topic, command, stamp_ns, COMMAND)
        self._write(topics.CONTROL_STATE, control_state_msg(bag_make, result.state, self._robot), stamp_ns)
        if result.transition is not None:
            self.transition(result.transition, stamp_ns)
        if stamp_ns % NANOSECONDS == 0:
            self._write(topics.SAFETY_STATUS, safety_status_msg(bag_make, result.safety, stamp_ns), stamp_ns, LATCHED)

    def transition(self, transition: Transition, now_ns: int) -> None:
        """A complete transition, known at `now_ns` [ns]."""
        self._write(topics.TRANSITION, transition_msg(bag_make, transition, self._robot), now_ns)

    def stop(self, stamp_ns: int, outcome: Outcome, termination: Termination) -> None:
        """The episode ended with the observation at `stamp_ns` [ns]; closes the bag."""
        self._event(EventType.STOPPED, stamp_ns, outcome, termination)
        self._writer.close(outcome, termination)

    def _event(self, event: EventType, stamp_ns: int, outcome: Outcome, termination: Termination) -> None:
        message = bag_make(
            "aloe_msgs/msg/EpisodeEvent",
            header=header_msg(bag_make, stamp_ns),
            event=int(event),
            episode_id=self._info.episode_id,
            task=self._info.task,
            instruction=self._info.instruction,
            seed=self._info.seed,
            time_limit=self._limit / self._robot.control_rate_hz,
            outcome=int(outcome),
            termination_reason=int(termination),
            policy_version=self._info.policy_version,
            message="",
        )
        self._write(topics.EPISODE_EVENT, message, stamp_ns, LATCHED)

    def _write(self, topic: str, message: Any, stamp_ns: int, qos: TopicQos = RELIABLE) -> None:
        name = topic if topic.startswith("/") else f"/{topic}"
        type_name = message.__msgtype__
        self._writer.add_topic(name, type_name, qos)
        self._writer.write(name, type_name, _serializer(type_name)(message), stamp_ns)
