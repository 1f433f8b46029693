"""The simulated bimanual ALOHA robot: scene, tasks, cameras and the environment that steps them. Pure: numpy and mujoco only."""

from aloe_robot.sim.env import ACTION_DIM, SimEnv
from aloe_robot.sim.tasks import TASKS, Task, make_task

__all__ = ["ACTION_DIM", "TASKS", "SimEnv", "Task", "make_task"]
