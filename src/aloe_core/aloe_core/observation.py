"""The one way from sensor messages to what a policy sees: live, from bags and in simulation.

A policy trained on observations built differently from those it is given on the robot fails silently, so nothing else in the project
builds observations.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

V = TypeVar("V")
ImageData = bytes | memoryview | np.ndarray  # JPEG or PNG bytes, or an RGB array


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy is given at one instant.

    Attributes:
        stamp_ns: time it stands for [ns].
        state: float32 `[A]`, measured positions in action order; joints [rad], grippers 0 closed .. 1 open.
        images: camera name -> uint8 `[height, width, 3]`, RGB.
        instruction: language instruction.
        object_state: float32 `[O]`, privileged object poses of a simulated task, or None.
        sim_state: float64 flat simulator state (`SimEnv.save_state`), or None; for scripted experts only.
        camera_stamps_ns: stamp of each image [ns].
    """

    stamp_ns: int
    state: np.ndarray
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    instruction: str = ""
    object_state: np.ndarray | None = None
    sim_state: np.ndarray | None = None
    camera_stamps_ns: Mapping[str, int] = field(default_factory=dict)


class _History(Generic[V]):
    """The last `size` values by stamp; out-of-order stamps are sorted in, a repeated stamp is kept once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.stamps: list[int] = []
        self.values: list[V] = []

    def add(self, stamp_ns: int, value: V) -> None:
        at = bisect_right(self.stamps, stamp_ns)
        if at and self.stamps[at - 1] == stamp_ns:
            return
        self.stamps.insert(at, stamp_ns)
        self.values.insert(at, value)
        if len(self.stamps) > self.size:
            del self.stamps[0], self.values[0]

    def latest(self, stamp_ns: int) -> tuple[int, V] | None:
        """The newest entry not newer than `stamp_ns`."""
        at = bisect_right(self.stamps, stamp_ns)
        return (self.stamps[at - 1], self.values[at - 1]) if at else None


class ObservationBuilder:
    """Collects sensor messages and builds the observation of any recent instant.

    At time t a joint has its newest measurement not newer than t, a camera its newest image not newer than t (zero-order hold). The result
    therefore depends on message stamps alone, never on the order or time of arrival, provided `ready(t)` held.

    Args:
        robot: gives the order of the state vector and the cameras.
        cameras: cameras to use, all must exist in `robot`; empty for state observations.
        image_size: (height, width) [pixel] of the images handed out; None keeps the camera's own size.
        max_image_age_s: an older image counts as missing [s].
        use_task_state: also hand out privileged object and simulator state.
        history: messages kept per source.
    """

    def __init__(
        self,
        robot: RobotDescription,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] | None = None,
        max_image_age_s: float = 0.5,
        use_task_state: bool = False,
        history: int = 128,
    ) -> None:
        self.robot = robot
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.max_image_age_ns = round(max_image_age_s * 1e9)
        self.use_task_state = use_task_state
        self._period_ns = {name: round(1e9 / robot.camera(name).rate_hz) for name in self.cameras}
        self._joint_index = {name: i for i, name in enumerate(robot.action_names)}
        self._joints = [_History[float](history) for _ in robot.action_names]
        self._images = {name: _History[ImageData](history) for name in self.cameras}
        self._task = _History[tuple[np.ndarray, np.ndarray]](history)

    def add_joint_state(self, stamp_ns: int, names: Sequence[str], positions: Sequence[float]) -> None:
        """One JointState message, whole or partial; unknown joints and a message without positions are ignored.

        Raises:
            AloeError: names and positions differ in number.
        """
        if not len(positions):  # of a driver that reports velocities or efforts on their own
            return
        if len(names) != len(positions):
            raise AloeError(f"joint state has {len(names)} names but {len(positions)} positions")
        for name, position in zip(names, positions, strict=True):
            index = self._joint_index.get(name)
            if index is not None:
                self._joints[index].add(stamp_ns, float(position))

    def add_image(self, camera: str, stamp_ns: int, data: ImageData) -> None:
        """One CompressedImage payload (JPEG or PNG), or an RGB array uint8 `[h, w, 3]`. Decoded only when used."""
        if camera in self._images:
            self._images[camera].add(stamp_ns, data)

    def add_task_state(self, stamp_ns: int, object_state: ArrayLike, sim_state: ArrayLike) -> None:
        """Privileged state of the simulated task."""
        if self.use_task_state:
            self._task.add(stamp_ns, (np.asarray(object_state, np.float32), np.asarray(sim_state, np.float64)))

    def missing(self, stamp_ns: int) -> list[str]:
        """What has not arrived yet for the observation at `stamp_ns`: one phrase per source; empty when it is complete.

        A joint is complete when a measurement not older than the observation is there, whichever driver it comes from; a camera when an image
        younger than one frame period is, or one that is newer than the observation. Each source's messages come in order, so none that still
        arrives can replace the one used, and the observation no longer depends on message timing.
        """
        reasons = []
        absent = [n for n, i in self._joint_index.items() if not self._joints[i].stamps]
        behind = [n for n, i in self._joint_index.items() if self._joints[i].stamps[-1:] < [stamp_ns]]
        if absent:
            reasons.append(f"joint states of {', '.join(absent)} on {self.robot.joint_states_topic}")
        elif behind:
            which = f" of {', '.join(behind)}" if len(behind) < len(self._joints) else ""
            reasons.append(f"a joint state{which} as new as {stamp_ns} ns on {self.robot.joint_states_topic}")
        for name in self.cameras:
            image, newest = self._images[name].latest(stamp_ns), self._images[name].stamps[-1:]
            if image is None or (stamp_ns - image[0] >= self._period_ns[name] and newest == [image[0]]):
                reasons.append(f"an image of camera '{name}' on {self.robot.camera(name).compressed_topic}")
        if self.use_task_state and ((task := self._task.latest(stamp_ns)) is None or task[0] != stamp_ns):
            reasons.append("the simulator's task state")
        return reasons

    def unheard(self) -> list[str]:
        """Sources of which nothing has come yet, one phrase each."""
        sources = []
        if not all(h.stamps for h in self._joints):
            sources.append(f"joint states on {self.robot.joint_states_topic}")
        sources += [f"images of camera '{name}'" for name in self.cameras if not self._images[name].stamps]
        if self.use_task_state and not self._task.stamps:
            sources.append("the simulator's task state")
        return sources

    def ready(self, stamp_ns: int) -> bool:
        """Whether the observation at `stamp_ns` can no longer change."""
        return not self.missing(stamp_ns)

    def build(self, stamp_ns: int, instruction: str = "") -> Observation:
        """The observation at `stamp_ns` from what has arrived.

        Raises:
            AloeError: a joint has no measurement, or a camera no image younger than the limit; the message names it.
        """
        values = np.empty(self.robot.action_dim, dtype=np.float64)
        for name, index in self._joint_index.items():
            found = self._joints[index].latest(stamp_ns)
            if found is None:
                raise AloeError(f"no joint state of '{name}' up to {stamp_ns} ns on {self.robot.joint_states_topic}")
            values[index] = found[1]
        images, stamps = {}, {}
        for camera in self.cameras:
            image = self._images[camera].latest(stamp_ns)
            topic = self.robot.camera(camera).compressed_topic
            if image is None:
                raise AloeError(f"no image of camera '{camera}' on {topic}")
            age = stamp_ns - image[0]
            if age > self.max_image_age_ns:
                raise AloeError(f"the newest image of camera '{camera}' on {topic} is {age / 1e9:.2f} s old")
            images[camera] = decode_image(image[1], self.image_size, where=topic)
            stamps[camera] = image[0]
        object_state = sim_state = None
        if self.use_task_state:
            task = self._task.latest(stamp_ns)
            if task is None:
                raise AloeError(
                    "no task state from the simulator; a policy on privileged state runs in simulation only"
                )
            object_state, sim_state = task[1]
        return Observation(
            stamp_ns=stamp_ns,
            state=self.robot.from_device(values).astype(np.float32),
            images=images,
            instruction=instruction,
            object_state=object_state,
            sim_state=sim_state,
            camera_stamps_ns=stamps,
        )


def decode_image(
    data: bytes | memoryview | np.ndarray, size: tuple[int, int] | None, where: str = "image"
) -> np.ndarray:
    """JPEG/PNG bytes, or an RGB array, -> uint8 `[height, width, 3]` RGB, area-resized to `size` = (height, width) when given."""
    if isinstance(data, np.ndarray) and data.ndim == 3:
        image = data
    else:
        try:
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:  # no bytes at all, or a header that claims an impossible size
            decoded = None
        if decoded is None:
            raise AloeError(f"{where}: {len(data)} bytes that are not a JPEG or PNG image")
        image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    if size is not None and image.shape[:2] != tuple(size):
        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return image
