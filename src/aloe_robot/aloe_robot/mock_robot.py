"""Arms that are not there: they go where they are told, no faster than the description allows, and tell where they are.

For `use_mock_hardware`: the graph of the real robot runs, with its topics and message types, and nothing is touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription


class MockRobot:
    """State of all arms in device units, `[A]` in action order. Starts at home."""

    def __init__(self, robot: RobotDescription) -> None:
        self.robot = robot
        self.position = robot.to_device(robot.home)  # [A]
        self.velocity = np.zeros(robot.action_dim)  # [A], per second
        self._max_velocity = np.abs(robot.to_device(robot.max_velocity) - robot.to_device(np.zeros(robot.action_dim)))
        self._target = self.position.copy()
        self._trajectories: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.command_slices: dict[str, slice] = {}
        self.trajectory_slices: dict[str, slice] = {}
        for arm, span in zip(robot.arms, robot.arm_slices, strict=True):
            if arm.output.gripper_topic:
                self.command_slices[arm.output.gripper_topic] = slice(span.stop - 1, span.stop)
                span = slice(span.start, span.stop - 1)
            is_trajectory = arm.output.type == "joint_trajectory"
            (self.trajectory_slices if is_trajectory else self.command_slices)[arm.output.topic] = span

    def command(self, topic: str, values: Sequence[float]) -> None:
        """Device setpoints of one command topic, as a forward command controller takes them; AloeError if it would not."""
        span = self.command_slices[topic]
        setpoint = np.asarray(values, dtype=np.float64)
        if setpoint.shape != (span.stop - span.start,) or not np.isfinite(setpoint).all():
            raise AloeError(f"{topic}: expected {span.stop - span.start} finite numbers, got {setpoint.tolist()}")
        self._target[span] = setpoint

    def follow(self, topic: str, names: Sequence[str], times: np.ndarray, positions: np.ndarray) -> None:
        """A trajectory on one topic: absolute times `[T]` [s], device positions `[T, n]` of the joints `names`."""
        span = self.trajectory_slices[topic]
        known = self.robot.action_names[span]
        if set(names) != set(known):
            raise AloeError(f"{topic}: the trajectory is for {', '.join(names)}, but this arm has {', '.join(known)}")
        order = [span.start + known.index(name) for name in names]
        shape = (len(times), len(names))
        if (
            len(times) == 0
            or positions.shape != shape
            or not np.isfinite(positions).all()
            or (np.diff(times) <= 0).any()
        ):
            raise AloeError(f"{topic}: expected {shape} finite positions at increasing times, got {positions.shape}")
        self._trajectories[topic] = (np.asarray(order), times, positions)

    def step(self, now: float, dt: float) -> None:
        """Move for `dt` [s] up to the time `now` [s]."""
        for order, times, positions in self._trajectories.values():
            self._target[order] = [np.interp(now, times, column) for column in positions.T]
        reach = self._max_velocity * dt
        moved = np.clip(self._target - self.position, -reach, reach)
        self.position = self.position + moved
        self.velocity = moved / dt
