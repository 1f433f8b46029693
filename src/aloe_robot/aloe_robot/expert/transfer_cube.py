"""The expert's plan for `transfer_cube`: contacts and poses of this instant decide the phase, so it starts from any state."""

from __future__ import annotations

import math

import numpy as np

from aloe_robot.expert.grasping import (
    CUBE_SYMMETRIES,
    OPEN,
    Aim,
    Graspable,
    carry,
    closing,
    grasped,
    in_jaws,
    level,
    pick,
    reachable,
    tool_rotation,
)
from aloe_robot.expert.kinematics import BASES, rotation_vector
from aloe_robot.expert.motion import GRIPPER, Goal
from aloe_robot.sim.env import SimEnv

CUBE = Graspable("cube", width=0.04, symmetries=CUBE_SYMMETRIES)
MEET = np.array([0.0, 0.5, 0.25])  # where the cube changes hands [m]
RIGHT_AT_MEET = tool_rotation(math.pi, math.radians(70))
LEFT_AT_MEET = np.array(
    [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
)  # straight ahead, rolled by 90 degrees: fingers above and below
LEFT_WAITS = np.array([-0.20, 0.5, 0.28])
AWKWARD = 0.4  # [rad] a cube held across an axis further than this from the right one is grasped afresh
REACH_OF_RIGHT = 0.70  # [m] from the base of the right arm; a cube further away is picked up by the left arm itself


def plan(env: SimEnv, aim: Aim) -> tuple[str, Goal, Goal]:
    """Phase, goal of the left arm, goal of the right arm."""
    world = env.world
    cube = world.position("cube")
    left_holds = grasped(env, "left", CUBE)
    right_holds = grasped(env, "right", CUBE)
    right_stays = Goal(world.tcp("right"), world.tool_rotation("right"), OPEN)

    if left_holds:
        left = Goal(world.tcp("left"), world.tool_rotation("left"), 0.0)
        if world.touch("cube", "right_pads") or in_jaws(env, "right", "cube"):
            if env.joint_positions()[GRIPPER["right"]] < 0.85:
                return "release", left, right_stays
            return "retreat", left, _back_off(env, "right")
        if world.touch("cube", "table") or cube[2] < 0.1:
            raised = Goal(np.array([left.position[0], left.position[1], 0.2]), left.rotation, 0.0)
            return "raise", raised, _home(env, "right")
        return "hold", left, _back_off(env, "right")

    if right_holds:
        rotation = level(env, "right", CUBE, RIGHT_AT_MEET)
        if math.acos(min(1.0, abs(float(rotation[:, 1] @ RIGHT_AT_MEET[:, 1])))) > AWKWARD:
            return "put down", Goal(LEFT_WAITS, LEFT_AT_MEET, OPEN), _put_down(env)
        right = carry(env, "right", CUBE, MEET, reachable(rotation, RIGHT_AT_MEET))
        arrived = bool(np.linalg.norm(cube - MEET) < 0.03)
        return ("meet" if not arrived else "hand over"), _take(env, arrived, aim), right

    base = BASES["right"][0]
    if math.hypot(cube[0] - base[0], cube[1] - base[1]) > REACH_OF_RIGHT:
        return "pick left", pick(env, "left", CUBE, aim), _home(env, "right")
    waiting = LEFT_WAITS - (max(0.0, 0.05 - cube[0]), 0.0, 0.0)
    return "pick", Goal(waiting, LEFT_AT_MEET, OPEN), pick(env, "right", CUBE, aim)


def _put_down(env: SimEnv) -> Goal:
    """The cube sits askew in the right hand: lower it and let go, to grasp it afresh."""
    tcp, tool = env.world.tcp("right"), env.world.tool_rotation("right")
    above_table = np.array([0.1, 0.5, 0.06])
    return Goal(above_table, tool, OPEN if np.linalg.norm(tcp - above_table) < 0.03 else 0.0)


def _take(env: SimEnv, arrived: bool, aim: Aim) -> Goal:
    """The left arm waits before the meeting point, then comes to the cube straight ahead and closes on it from above and below."""
    world, rotation = env.world, LEFT_AT_MEET
    if not arrived:
        return Goal(MEET - 0.11 * rotation[:, 0], rotation, OPEN)
    tcp = world.tcp("left")
    if closing(env, "left", CUBE) and in_jaws(env, "left", "cube"):
        return Goal(tcp, world.tool_rotation("left"), 0.0)
    grasp = world.position("cube") - 0.006 * rotation[:, 0]
    error = rotation.T @ (grasp - tcp)
    beside = float(np.hypot(error[1], error[2]))
    turn = float(np.linalg.norm(rotation_vector(rotation @ world.tool_rotation("left").T)))
    wide = env.joint_positions()[GRIPPER["left"]] > CUBE.opening + 0.15
    if abs(error[0]) < aim.distance and beside < aim.distance and turn < aim.angle and wide:
        return Goal(grasp, rotation, 0.0)
    slope = max(error[0], 0.0)
    if wide and beside < aim.distance + 0.002 + 0.15 * slope and turn < aim.angle + 0.05 + 2.0 * slope:
        return Goal(grasp, rotation, OPEN)
    return Goal(grasp - 0.10 * rotation[:, 0], rotation, OPEN)


def _back_off(env: SimEnv, arm: str) -> Goal:
    """Backwards along the fingers, gripper open, until clear of the cube."""
    tool = env.world.tool_rotation(arm)
    away = env.world.position("cube") - 0.16 * tool[:, 0]
    return Goal(away, tool, OPEN)


def _home(env: SimEnv, arm: str) -> Goal:
    """Out of the other arm's way."""
    sign = 1.0 if arm == "right" else -1.0
    return Goal(np.array([sign * 0.22, 0.5, 0.28]), tool_rotation(BASES[arm][1], 0.2), OPEN)
