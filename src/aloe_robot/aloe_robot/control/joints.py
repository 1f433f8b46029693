"""Joint states of the whole robot out of messages that may each carry a part of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

NEW_CLOCK_NS = NANOSECONDS  # a stamp that goes back by more comes from a clock that was set (our choice: messages do not overtake each other by so much)


class JointMerger:
    """The newest measurement of every joint. Its stamp is that of the oldest part: nothing in it is older."""

    def __init__(self, robot: RobotDescription) -> None:
        self._robot = robot
        self._index = {name: i for i, name in enumerate(robot.action_names)}
        self._device = np.zeros(robot.action_dim)
        self._stamps = [-1] * robot.action_dim

    def add(self, stamp_ns: int, names: Sequence[str], positions: Sequence[float]) -> None:
        """One JointState message, whole or partial, in device values; joints of others and measurements older than the present ones are ignored.

        A measurement older by more than NEW_CLOCK_NS is taken: the driver's clock was set back.

        Raises:
            AloeError: it has not one position for each name.
        """
        if len(names) != len(positions):
            raise AloeError(
                f"{self._robot.joint_states_topic}: a joint state has {len(names)} names but {len(positions)} positions"
            )
        for name, position in zip(names, positions, strict=True):
            index = self._index.get(name)
            if index is None:
                continue
            if stamp_ns >= self._stamps[index] or stamp_ns < self._stamps[index] - NEW_CLOCK_NS:
                self._device[index], self._stamps[index] = position, stamp_ns

    @property
    def missing(self) -> list[str]:
        """Joints that have not been measured yet."""
        return [name for name, index in self._index.items() if self._stamps[index] < 0]

    @property
    def stamp_ns(self) -> int:
        """Stamp of the oldest part; -1 while a joint is missing."""
        return min(self._stamps)

    @property
    def positions(self) -> np.ndarray:
        """`[A]` joints [rad], grippers 0..1."""
        return self._robot.from_device(self._device)
