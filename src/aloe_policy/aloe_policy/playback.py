"""What of a bag is played into a live graph in shadow mode, when, and how long it waits for the policy.

Only what the policy, the critic and displays look at is played, by name: commands, and chunks under the name that a control loop listens to, can not be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aloe_core import topics
from aloe_core.bag_format import RELIABLE, RawMessage, Topic, TopicQos
from aloe_core.bag_messages import check_type, resolve
from aloe_core.bag_storage import open_storage
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_policy.replayed_bag import RECORDED_CHUNK, recorded_qos

SHOWN = {  # harmless, for displays
    topics.EPISODE_EVENT: "aloe_msgs/msg/EpisodeEvent",
    topics.CONTROL_STATE: "aloe_msgs/msg/ControlState",
    topics.TRANSITION: "aloe_msgs/msg/Transition",
    "/tf": "tf2_msgs/msg/TFMessage",
    "/tf_static": "tf2_msgs/msg/TFMessage",
}


@dataclass(frozen=True, slots=True)
class PlayedTopic:
    """A recorded topic and the name under which it is played."""

    recorded: str
    played: str
    type: str
    qos: TopicQos


class Playback:
    """An open bag, ready to be played.

    Args:
        folder: the bag.
        robot: says which topics are sensors.

    Raises:
        AloeError: no bag there, no joint states in it, messages of another type than belongs under their name, or of another version.
    """

    def __init__(self, folder: Path, robot: RobotDescription) -> None:
        self.folder = folder
        self._storage = open_storage(folder)
        recorded = self._storage.topics()
        qos = recorded_qos(folder, self._storage)
        where = f"bag {folder}"
        self.topics: dict[str, PlayedTopic] = {}
        for name, type in _wanted(robot).items():
            topic = resolve(recorded, name, where)
            if topic is None or topic.count == 0:
                continue
            if topic.type != type:
                raise AloeError(f"{where}: {topic.name} holds {topic.type}, only {type} is played under that name")
            check_type(topic, where)
            played = RECORDED_CHUNK if name == topics.CHUNK else name
            self.topics[topic.name] = PlayedTopic(topic.name, played, type, qos.get(topic.name, RELIABLE))
        self.joint_states = self._found(recorded, robot.joint_states_topic)
        if self.joint_states is None:
            raise AloeError(f"{where}: no joint states on {robot.joint_states_topic}, so no observation can be played")
        self.requests = self._found(recorded, topics.CHUNK_REQUEST)
        images = {t for c in robot.cameras for t in (c.compressed_topic, c.raw_topic)}
        self.images = {t.recorded for t in self.topics.values() if t.played in images}

    def messages(self) -> Iterator[RawMessage]:
        """What is played, in the order of recording."""
        return self._storage.scan(self.topics.__contains__)

    def close(self) -> None:
        """Closes the bag's files."""
        self._storage.close()

    def _found(self, recorded: list[Topic], name: str) -> str | None:
        topic = resolve(recorded, name, f"bag {self.folder}")
        return topic.name if topic is not None and topic.name in self.topics else None


def _wanted(robot: RobotDescription) -> dict[str, str]:
    """Name of each topic that is played -> its type."""
    cameras: dict[str, str] = {}
    for camera in robot.cameras:
        cameras[camera.compressed_topic] = "sensor_msgs/msg/CompressedImage"
        cameras[camera.raw_topic] = "sensor_msgs/msg/Image"
        cameras[camera.info_topic] = "sensor_msgs/msg/CameraInfo"
    return {
        robot.joint_states_topic: "sensor_msgs/msg/JointState",
        **cameras,
        topics.TASK_STATE: "aloe_msgs/msg/TaskState",
        topics.CHUNK_REQUEST: "aloe_msgs/msg/ChunkRequest",
        topics.CHUNK: "aloe_msgs/msg/ActionChunk",
        **SHOWN,
    }


@dataclass(slots=True)
class Questions:
    """When to ask for chunks along a bag without requests: at every `every`-th tick of the joint states, once every camera has shown something.

    Args:
        every: ticks between questions.
        step_ns: one control step [ns]; joint states that come faster are thinned to it.
        unseen: recorded names of the image topics that have shown nothing yet.
    """

    every: int
    step_ns: int
    unseen: set[str]
    _tick_ns: int | None = None
    _ticks: int = 0
    _due_ns: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise AloeError(f"parameter 'every': {self.every} is not above 0")

    def joint_state(self, stamp_ns: int) -> int | None:
        """A joint state of that stamp is next. The stamp to ask for now, if any: a tick, when all joint states of its time have been played."""
        ask = None
        if self._due_ns is not None and stamp_ns > self._due_ns:
            ask, self._due_ns = self._due_ns, None
        if self._tick_ns is None or stamp_ns - self._tick_ns >= self.step_ns - self.step_ns // 100:  # 1 % is rounding
            self._tick_ns = stamp_ns
            if not self.unseen:
                if self._ticks % self.every == 0:
                    self._due_ns = stamp_ns
                self._ticks += 1
        return ask


@dataclass(slots=True)
class Pace:
    """When the next message may be played.

    At rate 0 a bag is played as fast as the policy (and the critic) answers. What was recorded up to the time of a question is played at once. What came later
    is played bit by bit until the answer is there, for a sensor message of that time may have come late; one after the other, so that it does not push what the
    answer needs out of a subscriber's queue; and no more than `hold_ns` of it.

    Args:
        rate: recorded seconds per wall second, or 0.
        hold_ns: recorded time [ns]; our choice: later than any sensor message that an observation waits for.
        trickle: wall time between messages that are later than a question [s].
    """

    rate: float
    hold_ns: int = 300_000_000
    trickle: float = 0.01
    pending: dict[tuple[str, int], int] = field(
        default_factory=dict
    )  # questions without an answer -> their time in the bag [ns]
    _began: tuple[float, int] | None = None  # wall time [s] and time in the bag [ns] of the first message

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise AloeError(
                f"a replay rate of {self.rate} is not possible: 0 is as fast as the policy answers, 1 real time"
            )

    def due(self, time_ns: int, since: float) -> float:
        """Wall time [s] at which a message recorded at `time_ns` may be played that is next since wall time `since` [s]; infinite: with an answer."""
        if self.rate:
            self._began = self._began or (since, time_ns)
            wall, first_ns = self._began
            return wall + (time_ns - first_ns) / 1e9 / self.rate
        ahead_ns = time_ns - min(self.pending.values(), default=time_ns)
        if ahead_ns <= 0:
            return since
        return since + self.trickle if ahead_ns <= self.hold_ns else math.inf
