"""How commands reach the arms: adapters from one command per tick to what the controllers of the robot description take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from aloe_core.chunk import NANOSECONDS
from aloe_core.messages import Make, header_msg
from aloe_core.robot import Arm, RobotDescription

FORWARD, TRAJECTORY = "std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory"
LOOK_AHEAD_TICKS = 200  # longest trajectory that is sent
TELEOP_PERIOD_TICKS = (
    5  # our choice: a human's targets go out as trajectories 10 times a second at 50 Hz; controllers choke on more
)
TOLERANCE = 1e-9  # [rad] a command nearer than this to what was sent ahead needs no new trajectory


class Output(Protocol):
    """One arm's way out."""

    topics: Sequence[tuple[str, str]]  # (topic, message type)

    def send(
        self, make: Make, stamp_ns: int, commanded: np.ndarray, human: bool, forecast: Callable[[int], np.ndarray]
    ) -> list[tuple[str, Any]]:
        """Messages of one tick as (topic, message).

        Args:
            make: builds messages.
            stamp_ns: time of the tick.
            commanded: `[A]` the command of the whole robot.
            human: a human drives the arm, so that nothing ahead is known.
            forecast: `ControlLoop.forecast`.
        """
        ...


def command_outputs(robot: RobotDescription) -> list[Output]:
    """The output of each arm, as its description says."""
    kinds: dict[str, type[ForwardPosition] | type[JointTrajectory]] = {
        "forward_position": ForwardPosition,
        "joint_trajectory": JointTrajectory,
    }
    return [kinds[arm.output.type](robot, arm, span) for arm, span in zip(robot.arms, robot.arm_slices, strict=True)]


def float_array_msg(make: Make, values: np.ndarray) -> Any:
    """`std_msgs/Float64MultiArray` with plain data."""
    layout = make("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
    return make(FORWARD, layout=layout, data=np.ascontiguousarray(values, np.float64))


class ForwardPosition:
    """`Float64MultiArray` every tick, in the order of the arm's joints; the gripper last, or alone on its own topic."""

    def __init__(self, robot: RobotDescription, arm: Arm, span: slice) -> None:
        self._robot, self._topic, self._gripper_topic = robot, arm.output.topic, arm.output.gripper_topic
        self._span, self._gripper = arm_spans(arm, span)
        self.topics: Sequence[tuple[str, str]] = [(self._topic, FORWARD)] + (
            [(self._gripper_topic, FORWARD)] if self._gripper_topic else []
        )

    def send(
        self, make: Make, stamp_ns: int, commanded: np.ndarray, human: bool, forecast: Callable[[int], np.ndarray]
    ) -> list[tuple[str, Any]]:
        device = self._robot.to_device(commanded)
        messages = [(self._topic, float_array_msg(make, device[self._span]))]
        if self._gripper_topic:
            messages.append((self._gripper_topic, float_array_msg(make, device[self._gripper])))
        return messages


class JointTrajectory:
    """One multi-point `JointTrajectory` of filtered commands per chunk, for joint_trajectory_controller.

    What will be commanded is known until the running chunk ends, so it is sent at once, and again only when a tick's command differs from it: a new
    chunk, a release, a stop. Point k is reached (k + 1) control periods after the header's stamp, the time of the tick. A gripper topic of its own is
    commanded every tick.
    """

    def __init__(self, robot: RobotDescription, arm: Arm, span: slice) -> None:
        self._robot, self._topic, self._gripper_topic = robot, arm.output.topic, arm.output.gripper_topic
        self._span, self._gripper = arm_spans(arm, span)
        self._names = list(robot.action_names[self._span])
        self._ahead = np.zeros((0, len(self._names)))  # commands sent for the ticks to come
        self._at_rest: np.ndarray | None = None  # where the arm stays after that
        self._wait = 0  # ticks until a human's arm may be sent again
        self.topics: Sequence[tuple[str, str]] = [(self._topic, TRAJECTORY)] + (
            [(self._gripper_topic, FORWARD)] if self._gripper_topic else []
        )

    def send(
        self, make: Make, stamp_ns: int, commanded: np.ndarray, human: bool, forecast: Callable[[int], np.ndarray]
    ) -> list[tuple[str, Any]]:
        command, messages = commanded[self._span], []
        if len(self._ahead):
            known, self._ahead = bool(np.max(np.abs(self._ahead[0] - command)) <= TOLERANCE), self._ahead[1:]
        else:
            # After its last point the controller stays there.
            known = self._at_rest is not None and bool(np.array_equal(self._at_rest, command))
        self._wait = max(self._wait - 1, 0)
        if not known and not (human and self._wait):
            self._ahead = forecast(LOOK_AHEAD_TICKS)[:, self._span]
            self._wait = TELEOP_PERIOD_TICKS
            points = np.concatenate((command[None], self._ahead))
            self._at_rest = points[-1]
            messages.append((self._topic, self._trajectory(make, stamp_ns, points)))
        if self._gripper_topic:
            device = self._robot.to_device(commanded)
            messages.append((self._gripper_topic, float_array_msg(make, device[self._gripper])))
        return messages

    def _trajectory(self, make: Make, stamp_ns: int, points: np.ndarray) -> Any:
        full = np.zeros((len(points), self._robot.action_dim))
        full[:, self._span] = points
        device = self._robot.to_device(full)[:, self._span]
        empty = np.zeros(0)
        return make(
            TRAJECTORY,
            header=header_msg(make, stamp_ns),
            joint_names=self._names,
            points=[
                make(
                    "trajectory_msgs/msg/JointTrajectoryPoint",
                    positions=position,
                    velocities=empty,
                    accelerations=empty,
                    effort=empty,
                    time_from_start=duration_msg(make, (k + 1) * self._robot.control_dt_ns),
                )
                for k, position in enumerate(device)
            ],
        )


def arm_spans(arm: Arm, span: slice) -> tuple[slice, slice]:
    """Which entries of an action go to the arm's own topic, and which to the gripper's (empty without one)."""
    if arm.output.gripper_topic is None:
        return span, slice(span.stop, span.stop)
    return slice(span.start, span.stop - 1), slice(span.stop - 1, span.stop)


def duration_msg(make: Make, ns: int) -> Any:
    """`builtin_interfaces/Duration`."""
    return make("builtin_interfaces/msg/Duration", sec=ns // NANOSECONDS, nanosec=ns % NANOSECONDS)
