"""Tasks: initial poses, success, failure and progress. A task holds no state, it judges the current `World`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aloe_core.errors import AloeError
from aloe_robot.sim.world import World

FALLEN = -0.03  # [m] an object whose centre is lower than this has left the table top (z = 0) for good
NEAR = 0.06  # [m] between tool centre point and object: "approached"


@dataclass(frozen=True, slots=True)
class Status:
    """Judgement of one instant."""

    progress: float  # 0 .. 1, milestone reached at this instant
    goal: bool  # the goal condition holds now; success needs it `hold_steps` times in a row
    failure: str | None = None  # why the task can never be finished any more


class Task(Protocol):
    """What the simulator needs to know about a task."""

    name: str
    instruction: str
    scene_file: str  # gym-aloha MJCF
    objects: Mapping[str, str]  # our name -> MuJoCo body
    parts: tuple[str, ...]  # geoms that count as contact parties of their own
    time_limit: int  # [control steps]
    hold_steps: int  # control steps in a row for which the goal condition must hold

    def initial_poses(self, generator: np.random.Generator) -> np.ndarray:
        """Poses of the objects at the start, `[objects, 7]`: xyz [m], quaternion wxyz."""
        ...

    def evaluate(self, world: World) -> Status:
        """Judges the current instant."""
        ...


class TransferCube:
    """The right arm picks the cube up and hands it over to the left arm.

    Goal: the cube touches a pad of the left gripper, no pad of the right one, and not the table. *Either* pad of a gripper counts: the stock ALOHA test reads
    one of the two and misses a good part of the firm grasps. The cube starts where the stock task puts it.

    Progress: 0.2 right hand near the cube, 0.4 touches it, 0.6 lifted, 0.8 in both hands, 0.9 in the left hand, 1 held.
    """

    name = "transfer_cube"
    instruction = "Pick up the red cube with the right arm and hand it over to the left arm."
    scene_file = "bimanual_viperx_transfer_cube.xml"
    objects: Mapping[str, str] = {"cube": "box"}
    parts: tuple[str, ...] = ()
    time_limit = 400
    hold_steps = 10

    def initial_poses(self, generator: np.random.Generator) -> np.ndarray:
        xy = generator.uniform((0.0, 0.4), (0.2, 0.6))
        return np.array([[*xy, 0.02, 1, 0, 0, 0]])

    def evaluate(self, world: World) -> Status:
        left, right, table = (world.touch("cube", party) for party in ("left_pads", "right_pads", "table"))
        if world.position("cube")[2] < FALLEN:
            return Status(0.0, False, "the cube fell off the table")
        if left and not table:
            return Status(0.8 if right else 0.9, goal=not right)
        if right:
            return Status(0.4 if table else 0.6, False)
        return Status(0.2 if np.linalg.norm(world.tcp("right") - world.position("cube")) < NEAR else 0.0, False)


class Insertion:
    """The right arm picks the peg, the left arm the socket, and they join in the air until the peg touches the pin inside the socket.

    Goal: the peg touches the pin (2 cm deep: it can only be reached from inside), both objects are held by their gripper and neither touches the table.

    Progress: 0.1 a hand near its object, 0.3 one object held, 0.4 both, 0.6 both lifted, 0.8 they touch, 0.9 pin reached, 1 held there.
    """

    name = "insertion"
    instruction = "Pick up the red peg with the right arm and the blue socket with the left arm, and insert the peg into the socket."
    scene_file = "bimanual_viperx_insertion.xml"
    objects: Mapping[str, str] = {"peg": "peg", "socket": "socket"}
    parts: tuple[str, ...] = ("pin",)
    time_limit = 500
    hold_steps = 10

    def initial_poses(self, generator: np.random.Generator) -> np.ndarray:
        peg = generator.uniform((0.1, 0.4), (0.2, 0.6))
        socket = generator.uniform((-0.2, 0.4), (-0.1, 0.6))
        return np.array([[*peg, 0.01, 1, 0, 0, 0], [*socket, 0.022, 1, 0, 0, 0]])

    def evaluate(self, world: World) -> Status:
        for name in self.objects:
            if world.position(name)[2] < FALLEN:
                return Status(0.0, False, f"the {name} fell off the table")
        held = (world.touch("peg", "right_pads"), world.touch("socket", "left_pads"))
        lifted = not (world.touch("peg", "table") or world.touch("socket", "table"))
        if all(held) and lifted:
            if world.touch("peg", "pin"):
                return Status(0.9, goal=True)
            return Status(0.8 if world.touch("peg", "socket") else 0.6, False)
        if any(held):
            return Status(0.4 if all(held) else 0.3, False)
        near = any(
            np.linalg.norm(world.tcp(arm) - world.position(name)) < NEAR
            for arm, name in (("right", "peg"), ("left", "socket"))
        )
        return Status(0.1 if near else 0.0, False)


TASKS: Mapping[str, type[Task]] = {task.name: task for task in (TransferCube, Insertion)}


def make_task(name: str) -> Task:
    """The task of that name.

    Raises:
        AloeError: unknown name.
    """
    if name not in TASKS:
        raise AloeError(f"unknown task '{name}'; known tasks: {', '.join(TASKS)}")
    return TASKS[name]()
