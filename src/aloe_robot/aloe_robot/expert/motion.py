"""From a pose to reach to the next joint command: straight in space, bounded in speed and acceleration, slowing down before it arrives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aloe_robot.expert.kinematics import ArmKinematics, rotation_matrix, rotation_vector

ARM_SLICE = {"left": slice(0, 6), "right": slice(7, 13)}
GRIPPER = {"left": 6, "right": 13}

# At 50 Hz, per control step. Our choice: a quick but careful operator (0.5 m/s, 15 rad/s^2), far inside the limits of the robot description.
MAX_TRAVEL = 0.010  # [m]
MAX_TURN = 0.06  # [rad]
MAX_JOINT_STEP = 0.08  # [rad]
MAX_JOINT_STEP_CHANGE = 0.006  # [rad]
MAX_GRIPPER_STEP = 0.10  # [opening]
CLEARANCE = 0.15  # [m] height from which a contorted arm may swing round: lower down it leans back first, to sweep nothing off the table
SHOULDER_BACK = -1.2  # [rad]
APPROACH_GAIN = 0.15  # share of the remaining distance that one step may cover


@dataclass(frozen=True, slots=True)
class Goal:
    """Where an arm should go."""

    position: np.ndarray  # [3] tool centre point [m]
    rotation: np.ndarray  # [3, 3] tool axes
    opening: float  # gripper, 0 closed .. 1 open
    speed: float = 1.0  # share of the maximal speed


class Mover:
    """Moves one arm towards goals. Holds no state: where the arm is and how fast it moves is told by the last commands.

    The path is straight in space. It is straight in joint space where a straight path may end at a joint limit or a singularity: from a contorted
    posture, or when the waist has to turn far or another joint by half a turn.
    """

    def __init__(self, arm: str) -> None:
        self.arm = arm
        self.kinematics = ArmKinematics(arm)

    def next_command(self, command: np.ndarray, last_step: np.ndarray, goal: Goal, speed: float = 1.0) -> np.ndarray:
        """Command of the next control step `[7]`: joints [rad], gripper opening.

        Args:
            command: last command of both arms `[14]`.
            last_step: its difference to the one before `[14]`.
            goal: where to go.
            speed: share of the full speed.
        """
        joints = command[ARM_SLICE[self.arm]]
        position, rotation = self.kinematics.forward(joints)
        pace = goal.speed * speed
        turn = rotation_vector(goal.rotation @ rotation.T)
        to_go = self.kinematics.inverse(goal.position, goal.rotation) - joints
        if abs(to_go[0]) > 1.2 or np.abs(to_go).max() > 3.0 or self._off_branch(joints, position, rotation):
            if position[2] < CLEARANCE and joints[1] > SHOULDER_BACK:
                to_go = np.array([0.0, SHOULDER_BACK - joints[1] - 0.1, 0.0, 0.0, 0.0, 0.0])
            step = APPROACH_GAIN * to_go
        else:
            target = self.kinematics.inverse(
                position + _limited(goal.position - position, MAX_TRAVEL * pace),
                rotation_matrix(_limited(turn, MAX_TURN * pace)) @ rotation,
            )
            step = target - joints
        step *= min(1.0, MAX_JOINT_STEP * pace / max(float(np.abs(step).max()), 1e-9))
        last = last_step[ARM_SLICE[self.arm]]
        step = last + np.clip(step - last, -MAX_JOINT_STEP_CHANGE, MAX_JOINT_STEP_CHANGE)
        opening = command[GRIPPER[self.arm]]
        return np.append(
            joints + step,
            opening + np.clip(goal.opening - opening, -MAX_GRIPPER_STEP * speed, MAX_GRIPPER_STEP * speed),
        )

    def _off_branch(self, joints: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> bool:
        """Whether the arm uses another solution of the kinematics than `inverse` gives."""
        return bool(np.abs(self.kinematics.inverse(position, rotation) - joints).max() > 0.5)


def _limited(vector: np.ndarray, longest: float) -> np.ndarray:
    """`vector` shortened to `APPROACH_GAIN` of itself, and at most `longest`."""
    length = float(np.linalg.norm(vector))
    return vector * min(APPROACH_GAIN, longest / max(length, 1e-12))
