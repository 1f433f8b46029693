"""Closed-form kinematics of one ViperX 300 S arm: exact, branch-stable, some tens of microseconds.

The wrist is spherical (forearm roll about x, wrist angle about y, wrist rotate about x, all through one point), so position and orientation separate.
All poses are those of the tool centre point in the world; rotations are `[3, 3]` with tool axes as columns (x to the finger tips, y closing direction).
"""

from __future__ import annotations

import math

import numpy as np

from aloe_robot.sim.scene import TCP_OFFSET

# Dimensions of the MJCF [m]
SHOULDER_HEIGHT = 0.12705
UPPER_ARM = (0.05955, 0.3)  # shoulder to elbow: forward, up
FOREARM = 0.3  # elbow to wrist centre
HAND = 0.069744 + float(TCP_OFFSET[0])  # wrist centre to tool centre point
BASES = {"left": ((-0.469, 0.5), 0.0), "right": ((0.469, 0.5), math.pi)}  # xy, yaw

_UPPER_LENGTH = math.hypot(*UPPER_ARM)
_UPPER_ANGLE = math.atan2(-UPPER_ARM[1], UPPER_ARM[0])
_LOW = np.array([-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158])
_HIGH = np.array([3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158])
_MAX_REACH = 0.999 * (_UPPER_LENGTH + FOREARM)
_MIN_REACH = 0.08


def rot_x(angle: float) -> np.ndarray:
    """Rotation about x, `[3, 3]`."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rot_y(angle: float) -> np.ndarray:
    """Rotation about y, `[3, 3]`."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rot_z(angle: float) -> np.ndarray:
    """Rotation about z, `[3, 3]`."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle `[3]` [rad] of a rotation matrix."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(skew) / 2, (np.trace(rotation) - 1) / 2
    if sine < 1e-9:
        if cosine > 0:
            return skew / 2
        axis = np.argmax(np.diag(rotation))  # half a turn: any column of R + 1 is along the axis
        column = rotation[:, axis] + np.eye(3)[axis]
        return math.pi * column / np.linalg.norm(column)
    return skew / (2 * sine) * math.atan2(sine, cosine)


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix of axis times angle `[3]` [rad] (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k


class ArmKinematics:
    """Forward and inverse kinematics of the arm `left` or `right`."""

    def __init__(self, arm: str) -> None:
        (x, y), self._yaw = BASES[arm]
        self.shoulder = np.array([x, y, SHOULDER_HEIGHT])
        self._base = rot_z(self._yaw)

    def forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joints `[6]` [rad] -> position `[3]` [m] and rotation `[3, 3]` of the tool centre point."""
        waist, shoulder, elbow, roll, angle, rotate = joints.tolist()
        waist_rotation = rot_z(self._yaw + waist)
        tilt, forearm_tilt = _UPPER_ANGLE + shoulder, shoulder + elbow
        forward = _UPPER_LENGTH * math.cos(tilt) + FOREARM * math.cos(forearm_tilt)
        up = -_UPPER_LENGTH * math.sin(tilt) - FOREARM * math.sin(forearm_tilt)
        rotation = waist_rotation @ rot_y(forearm_tilt) @ rot_x(roll) @ rot_y(angle) @ rot_x(rotate)
        wrist = self.shoulder + waist_rotation @ (forward, 0.0, up)
        return wrist + HAND * rotation[:, 0], rotation

    def inverse(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Joints `[6]` [rad] of a tool pose; elbow up, forearm roll within a quarter turn of zero.

        Outside the workspace the nearest wrist position is used, and joints are clipped to their limits. Where the hand is in line with the forearm
        (singular), the forearm roll fades to zero: a small orientation error instead of a flip.
        """
        wrist = self._base.T @ (position - HAND * rotation[:, 0] - self.shoulder)
        waist = math.atan2(wrist[1], wrist[0])
        forward, down = math.hypot(wrist[0], wrist[1]), -wrist[2]
        reach = min(max(math.hypot(forward, down), _MIN_REACH), _MAX_REACH)
        aim = math.atan2(down, forward)
        at_shoulder = math.acos(_cosine(_UPPER_LENGTH, reach, FOREARM))
        at_wrist = math.acos(_cosine(FOREARM, reach, _UPPER_LENGTH))
        shoulder = aim - at_shoulder - _UPPER_ANGLE
        forearm_tilt = aim + at_wrist

        hand = rot_y(-forearm_tilt) @ rot_z(-self._yaw - waist) @ rotation  # = Rx(roll) Ry(angle) Rx(rotate)
        sine = math.hypot(hand[1, 0], hand[2, 0])
        roll = math.atan2(hand[1, 0], -hand[2, 0])
        if abs(roll) > math.pi / 2:
            roll -= math.copysign(math.pi, roll)
        fade = min(sine / 0.2, 1.0)
        roll *= fade * fade * (3 - 2 * fade)
        hand = rot_x(-roll) @ hand
        angle = math.atan2(-hand[2, 0], hand[0, 0])
        hand = rot_y(-angle) @ hand
        rotate = math.atan2(hand[2, 1], hand[1, 1])
        return np.clip([waist, shoulder, forearm_tilt - shoulder, roll, angle, rotate], _LOW, _HIGH)


def _cosine(a: float, b: float, opposite: float) -> float:
    """Cosine of the angle between sides `a` and `b` of a triangle, clipped to a triangle that exists."""
    return min(max((a * a + b * b - opposite * opposite) / (2 * a * b), -1.0), 1.0)
