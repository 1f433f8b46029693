"""Picking an object up with one arm: where to grasp, how to get there without knocking it over, and whether it is held."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from aloe_robot.expert.kinematics import BASES, rotation_matrix, rotation_vector
from aloe_robot.expert.motion import GRIPPER, Goal
from aloe_robot.sim.env import FINGER_CLOSED, FINGER_OPEN, SimEnv
from aloe_robot.sim.scene import PAD_ZERO

OPEN = 0.95
FINGER_AT_REST = 1.5  # [opening/s] a freely closing finger is three times faster
LOWEST = 0.021  # [m] the tool centre point never goes lower: the finger tips reach 2 cm further
MAX_WRIST_TURN = 0.45  # [rad] from the nominal posture with a held object
HOVER = 0.09  # [m] height above the grasp from which the arm comes down


@dataclass(frozen=True, slots=True)
class Aim:
    """How exactly a demonstrator grasps."""

    offset: np.ndarray  # [3] systematic error of the grasp position [m]
    distance: float  # the hand closes when it is within this distance [m] ...
    angle: float  # ... and angle [rad] of the grasp


# The 24 rotations that map a cube onto itself, and the 8 of them that keep the x axis of a square bar.
CUBE_SYMMETRIES = tuple(
    m
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
    if np.linalg.det(m := np.eye(3)[list(order)] * signs) > 0
)
BAR_SYMMETRIES = tuple(m for m in CUBE_SYMMETRIES if abs(m[0, 0]) == 1)


@dataclass(frozen=True, slots=True)
class Graspable:
    """An object as the gripper sees it: a cube, or a square bar along its x axis."""

    name: str
    width: float  # between the pads [m]
    symmetries: tuple[np.ndarray, ...]

    @property
    def is_bar(self) -> bool:
        """Whether it has to be grasped across its x axis."""
        return self.symmetries is BAR_SYMMETRIES

    @property
    def opening(self) -> float:
        """Gripper opening when its pads touch the object on both sides."""
        return (PAD_ZERO + self.width / 2 - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)


def tool_rotation(heading: float, pitch: float) -> np.ndarray:
    """Tool axes `[3, 3]` of a gripper that points along `heading` [rad, about z] and down by `pitch` [rad], closing horizontally."""
    ch, sh, cp, sp = math.cos(heading), math.sin(heading), math.cos(pitch), math.sin(pitch)
    return np.array([[ch * cp, -sh, ch * sp], [sh * cp, ch, sh * sp], [-sp, 0.0, cp]])


def in_jaws(env: SimEnv, arm: str, name: str) -> bool:
    """Whether the centre of an object lies between the finger tips."""
    offset = env.world.tool_rotation(arm).T @ (env.world.position(name) - env.world.tcp(arm))
    return bool(abs(offset[0]) < 0.028 and abs(offset[1]) < 0.02 and abs(offset[2]) < 0.022)


def closing(env: SimEnv, arm: str, item: Graspable) -> bool:
    """Whether the gripper is commanded tighter than the object is wide."""
    return bool(env.command[GRIPPER[arm]] < item.opening - 0.02)


def grasped(env: SimEnv, arm: str, item: Graspable) -> bool:
    """Whether the arm holds the object: it is between the jaws, and the closing fingers have come to rest on it."""
    opening = float(env.joint_positions()[GRIPPER[arm]])
    resting = abs(float(env.joint_velocities()[GRIPPER[arm]])) < FINGER_AT_REST
    felt = (
        env.world.touch(item.name, f"{arm}_pads") or abs(opening - item.opening) < 0.05
    )  # contacts come and go for a step
    return closing(env, arm, item) and in_jaws(env, arm, item.name) and resting and felt


def grasp_rotation(env: SimEnv, arm: str, item: Graspable) -> np.ndarray:
    """Tool axes for picking `item` off the table: closing along its most level side, heading as straight away from the arm as that allows."""
    away = env.world.position(item.name)[:2] - BASES[arm][0]
    radial = math.atan2(away[1], away[0])
    axes = env.world.rotation(item.name)
    heading, least = radial, math.inf
    for side in axes[:, 1:].T if item.is_bar else axes.T:
        across = math.atan2(side[1], side[0]) + math.pi / 2
        candidate = across + math.pi * round((radial - across) / math.pi)
        cost = abs(candidate - radial) + 3.0 * abs(side[2])  # objects may lean: closing on a slanted side turns them
        if cost < least:
            heading, least = candidate, cost
    distance = float(np.hypot(*away))
    pitch = math.radians(np.interp(distance, (0.17, 0.27, 0.60, 0.75), (90, 70, 70, 45)))
    return tool_rotation(heading, pitch)


def pick(env: SimEnv, arm: str, item: Graspable, aim: Aim) -> Goal:
    """Next goal on the way to a grasp of an object that lies on the table.

    Up if too low beside it, over to it at hover height, down within a narrow funnel, then close. Where the hand is decides, so it starts from anywhere.
    """
    tcp = env.world.tcp(arm)
    rotation = grasp_rotation(env, arm, item)
    grasp = env.world.position(item.name) + aim.offset
    grasp[2] = max(grasp[2], LOWEST)
    if closing(env, arm, item) and in_jaws(env, arm, item.name):
        return Goal(tcp, env.world.tool_rotation(arm), 0.0)
    error = grasp - tcp
    lateral = float(np.hypot(error[0], error[1]))
    turn = float(np.linalg.norm(rotation_vector(rotation @ env.world.tool_rotation(arm).T)))
    wide = env.joint_positions()[GRIPPER[arm]] > item.opening + 0.15
    if lateral < aim.distance and abs(error[2]) < aim.distance and turn < aim.angle and wide:
        return Goal(grasp, rotation, 0.0)
    height = -error[2]
    slope = max(height, 0.0)
    narrow = lateral < aim.distance + 0.002 + 0.15 * slope and turn < aim.angle + 0.05 + 2.0 * slope
    if narrow and (wide or height > 0.05):
        return Goal(grasp, rotation, OPEN)
    hover = grasp + (0.0, 0.0, HOVER)
    if height < HOVER - 0.03 and lateral > 0.01:
        hover[:2] = tcp[:2]
        return Goal(hover, env.world.tool_rotation(arm), OPEN)
    return Goal(hover, rotation, OPEN)


def level(env: SimEnv, arm: str, item: Graspable, nominal: np.ndarray) -> np.ndarray:
    """Tool axes `[3, 3]` that align the held object with the world, as near to `nominal` as its symmetries allow."""
    in_hand = env.world.rotation(item.name).T @ env.world.tool_rotation(arm)
    return max((s @ in_hand for s in item.symmetries), key=lambda r: float(np.sum(r * nominal)))


def reachable(rotation: np.ndarray, nominal: np.ndarray) -> np.ndarray:
    """Tool axes `[3, 3]`: `rotation`, or as far on the way to it from `nominal` as the wrist can surely turn."""
    turn = rotation_vector(rotation @ nominal.T)
    return rotation_matrix(turn * min(1.0, MAX_WRIST_TURN / max(float(np.linalg.norm(turn)), 1e-9))) @ nominal


def carry(env: SimEnv, arm: str, item: Graspable, position: np.ndarray, rotation: np.ndarray) -> Goal:
    """Goal that brings the centre of the held object to `position` with tool axes `rotation`; straight up while it is on the table."""
    tcp, tool = env.world.tcp(arm), env.world.tool_rotation(arm)
    if env.world.touch(item.name, "table"):
        return Goal(np.array([tcp[0], tcp[1], tcp[2] + 0.08]), tool, 0.0)
    grip = tool.T @ (tcp - env.world.position(item.name))
    return Goal(position + rotation @ grip, rotation, 0.0)
