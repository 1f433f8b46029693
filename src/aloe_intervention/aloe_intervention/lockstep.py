"""The simulated operator and its teleoperation as one object, for roll-outs without ROS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aloe_core.robot import RobotDescription
from aloe_intervention.dead_man import DeadManConfig
from aloe_intervention.kinematics import arm_kinematics
from aloe_intervention.operator_sim import OperatorConfig, SimulatedOperator
from aloe_intervention.teleop import SIMULATED_HANDS, Stick, TeleopConfig, Teleoperator
from aloe_robot.control.records import TeleopInput
from aloe_robot.expert.motion import GRIPPER
from aloe_robot.sim.env import SimEnv


class LockstepOperator:
    """Does in one call per tick what `operator_node` and `teleop_node` do in the graph.

    Args:
        robot: the simulated robot.
        task: name of the task.
        operator: how good the operator is.
        teleop: how the sticks drive the arms; by default `SIMULATED_HANDS`.
        dead_man: when a take-over begins and ends.
    """

    def __init__(
        self,
        robot: RobotDescription,
        task: str,
        operator: OperatorConfig | None = None,
        teleop: TeleopConfig | None = None,
        dead_man: DeadManConfig | None = None,
    ) -> None:
        teleop = teleop or SIMULATED_HANDS
        self._robot, self._teleop = robot, (teleop, dead_man)
        self._kinematics = {arm.name: arm_kinematics(robot, arm.name, Path()) for arm in robot.arms}
        self.operator = SimulatedOperator(robot, task, operator, teleop, dead_man)

    def reset(self, env: SimEnv) -> None:
        """A new episode begins, from the state `env` is in."""
        self.operator.reset(env, env.time_ns)
        self._arms = {a.name: Teleoperator(a, self._kinematics[a.name], *self._teleop) for a in self._robot.arms}
        self._engaged = dict.fromkeys(self._arms, False)
        self.sticks: Mapping[str, Stick] = {}

    def step(self, env: SimEnv, measured: np.ndarray, now_ns: int) -> dict[str, TeleopInput]:
        """What the operator wants each arm to do in the tick at `now_ns`.

        Args:
            env: the simulation as it is; only looked at.
            measured: joints and grippers `[A]`, action order.
            now_ns: time of that state; `env.time_ns` of the episode's first tick was given to `reset`.
        """
        self.sticks = self.operator.step(env, now_ns, self._engaged)
        outputs = {}
        for name, span in zip(self._robot.arm_names, self._robot.arm_slices, strict=True):
            opening = float(env.command[GRIPPER[name]])
            outputs[name] = self._arms[name].step(now_ns, self.sticks[name], measured[span], opening)
            self._engaged[name] = outputs[name].engaged
        return outputs
