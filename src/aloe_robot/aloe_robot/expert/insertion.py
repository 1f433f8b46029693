"""The expert's plan for `insertion`: contacts and poses of this instant decide the phase, so it starts from any state."""

from __future__ import annotations

import math

import numpy as np

from aloe_robot.expert.grasping import (
    BAR_SYMMETRIES,
    Aim,
    Graspable,
    carry,
    grasped,
    level,
    pick,
    reachable,
    tool_rotation,
)
from aloe_robot.expert.motion import Goal
from aloe_robot.sim.env import SimEnv

PEG = Graspable("peg", width=0.02, symmetries=BAR_SYMMETRIES)
SOCKET = Graspable("socket", width=0.044, symmetries=BAR_SYMMETRIES)
PITCH = math.radians(70)
LEFT_NOMINAL, RIGHT_NOMINAL = tool_rotation(0.0, PITCH), tool_rotation(math.pi, PITCH)
SOCKET_STATION = np.array([-0.06, 0.5, 0.22])  # [m] where the left arm holds the socket
PEG_STATION = np.array([0.14, 0.5, 0.22])  # [m] where the right arm waits with the peg

# Distances between the centres of peg and socket along the axis of the socket [m]: the peg is 12 cm long, the pin's end is 4 cm from the centre.
CLEAR, MOUTH, PRESSED = 0.14, 0.12, 0.096


def plan(env: SimEnv, aim: Aim) -> tuple[str, Goal, Goal]:
    """Phase, goal of the left arm, goal of the right arm."""
    has_socket, has_peg = grasped(env, "left", SOCKET), grasped(env, "right", PEG)
    if has_socket:
        left = carry(
            env, "left", SOCKET, SOCKET_STATION, reachable(level(env, "left", SOCKET, LEFT_NOMINAL), LEFT_NOMINAL)
        )
    else:
        left = pick(env, "left", SOCKET, aim)
    if not has_peg:
        return "pick both" if not has_socket else "pick peg", left, pick(env, "right", PEG, aim)
    rotation = reachable(level(env, "right", PEG, RIGHT_NOMINAL), RIGHT_NOMINAL)
    if not has_socket:
        return "pick socket", left, carry(env, "right", PEG, PEG_STATION, rotation)
    phase, distance = _approach(env)
    if phase == "bring together":
        return phase, left, carry(env, "right", PEG, PEG_STATION, rotation)
    return phase, left, _along_socket(env, distance)


def _approach(env: SimEnv) -> tuple[str, float]:
    """Phase of the joining, and how far from the socket's centre the peg's centre should be along its axis [m]."""
    world = env.world
    axis = _socket_axis(env)
    to_peg = world.position("peg") - world.position("socket")
    along = float(to_peg @ axis)
    beside = float(np.linalg.norm(to_peg - along * axis))
    tilt = math.acos(min(1.0, abs(float(world.rotation("peg")[:, 0] @ axis))))
    lifted = not (world.touch("peg", "table") or world.touch("socket", "table"))
    if not lifted or np.linalg.norm(world.position("socket") - SOCKET_STATION) > 0.03:
        return "bring together", CLEAR
    if along < MOUTH and beside < 0.012:
        return "insert", PRESSED
    if beside < 0.004 and tilt < 0.06:
        return "insert", PRESSED
    return "align", CLEAR


def _socket_axis(env: SimEnv) -> np.ndarray:
    """Axis of the socket `[3]`, pointing to the right arm."""
    axis = env.world.rotation("socket")[:, 0]
    return axis if axis[0] > 0 else -axis


def _along_socket(env: SimEnv, distance: float) -> Goal:
    """Goal of the right arm that puts the peg on the axis of the socket, `distance` from its centre, parallel to it."""
    world = env.world
    axis, peg_axis, tool = _socket_axis(env), world.rotation("peg")[:, 0], world.tool_rotation("right")
    if peg_axis @ axis < 0:
        peg_axis = -peg_axis
    turn = _rotation_between(peg_axis, axis)
    goal = carry(env, "right", PEG, world.position("socket") + distance * axis, turn @ tool)
    return Goal(goal.position, goal.rotation, 0.0, speed=0.5)


def _rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation `[3, 3]` that takes unit vector `a` to `b` (not opposite to each other)."""
    v = np.cross(a, b)
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + k + k @ k / (1 + a @ b)
