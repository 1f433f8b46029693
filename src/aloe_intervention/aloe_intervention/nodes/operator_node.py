"""The simulated operator as a person sits in the graph: it sees the task, and moves two SpaceMice.

It publishes `{arm}/spacenav/twist` and `{arm}/spacenav/joy` for every `TaskState`, stamped as the state is, and knows from `TeleopCommand` whether its
take-over has been heard. With `lockstep` it waits for the commands of the state before, so that an episode does not depend on when messages arrive.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from geometry_msgs.msg import Twist, Vector3
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import Joy

from aloe_core import topics
from aloe_core.messages import header_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot
from aloe_intervention.dead_man import DeadManConfig
from aloe_intervention.gate import Gate
from aloe_intervention.operator_sim import OperatorConfig, SimulatedOperator
from aloe_intervention.operators import operator_config
from aloe_intervention.teleop import SIMULATED_HANDS, Stick, TeleopConfig
from aloe_msgs.msg import TaskState, TeleopCommand
from aloe_robot.nodes.lifecycle import spin
from aloe_robot.nodes.parameters import declare, declare_config
from aloe_robot.sim.env import SimEnv


class OperatorNode(Node):
    """One `SimulatedOperator`.

    Parameters: `robot`, `operator` (a name in `operators`), `lockstep`, `max_wait` [s], those of `OperatorConfig`, and those of
    `teleop_node`, to be given alike: `home_buttons` are [2] here, and in `teleop_node` where it is in lockstep.
    """

    def __init__(self) -> None:
        super().__init__("operator_node")
        self.robot = load_robot(declare(self, "robot", "aloha_sim"))
        self.lockstep = declare(self, "lockstep", True)
        self.gate = Gate(declare(self, "max_wait", 5.0))
        who = operator_config(declare(self, "operator", "practised"))
        self.config = declare_config(self, OperatorConfig, who)
        self.hands = declare_config(self, TeleopConfig, SIMULATED_HANDS), declare_config(self, DeadManConfig)
        self.env: SimEnv | None = None
        self.operator: SimulatedOperator | None = None
        self.episode_id = ""
        self.reason = ""
        self.sticks: dict[str, Stick] = {}
        self.pending: TaskState | None = None
        self.done_ns = -1
        self.engaged = dict.fromkeys(self.robot.arm_names, False)
        self.commands_ns = dict.fromkeys(self.robot.arm_names, -1)
        self.joys = {a: self.create_publisher(Joy, topics.SPACENAV_JOY.format(arm=a), 10) for a in self.engaged}
        self.twists = {a: self.create_publisher(Twist, topics.SPACENAV_TWIST.format(arm=a), 10) for a in self.engaged}
        for arm in self.engaged:
            topic = topics.TELEOP_COMMAND.format(arm=arm)
            self.create_subscription(TeleopCommand, topic, partial(self._on_command, arm), 10)
        self.create_subscription(TaskState, topics.TASK_STATE, self._on_task_state, 10)
        if self.lockstep:
            self.create_timer(0.2, self._step, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info("the simulated operator watches")

    def _on_command(self, arm: str, message: TeleopCommand) -> None:
        self.engaged[arm] = message.engaged
        self.commands_ns[arm] = stamp_to_ns(message.header.stamp)
        if self.lockstep:
            self._step()

    def _on_task_state(self, message: TaskState) -> None:
        self.pending = message
        self._step()

    def _step(self) -> None:
        if self.pending is None:
            return
        stamp = stamp_to_ns(self.pending.header.stamp)
        # Nothing to hear before the first step of an episode, and nothing new when a state is repeated.
        begins = self.pending.step == 0 or stamp == self.done_ns
        heard = begins or all(ns >= self.done_ns for ns in self.commands_ns.values())
        if self.lockstep and not self.gate.passes(heard, time.monotonic()):
            return
        state, self.pending = self.pending, None
        if stamp != self.done_ns:  # a state seen again, while the simulation stands still, is answered as before
            self._look(state, stamp)
            self.sticks = self.operator.step(self.env, stamp, self.engaged)
            self.done_ns = stamp
        self._publish(stamp)

    def _look(self, state: TaskState, stamp_ns: int) -> None:
        """Makes `env` what the simulator is, and begins anew with each episode: at its first step, which comes when the simulation runs."""
        if self.env is None or self.env.task.name != state.task:
            self.env = SimEnv(state.task, cameras=())
            self.operator = SimulatedOperator(self.robot, state.task, self.config, *self.hands)
            self.episode_id = ""
        self.env.restore_state(np.array(state.sim_state))
        if state.episode_id != self.episode_id or self.done_ns < 0 or self.env.tick == 0:
            self.episode_id = state.episode_id
            self.operator.reset(self.env, stamp_ns)

    def _publish(self, stamp_ns: int) -> None:
        if self.operator.reason != self.reason:
            self.reason = self.operator.reason
            self.get_logger().info(f"takes over: {self.reason}" if self.reason else "gives back")
        for arm, stick in self.sticks.items():
            x, y, z, roll, pitch, yaw = (float(v) for v in stick.twist)
            self.twists[arm].publish(Twist(linear=Vector3(x=x, y=y, z=z), angular=Vector3(x=roll, y=pitch, z=yaw)))
            joy = Joy(
                header=header_msg(ros_make, stamp_ns), axes=[x, y, z, roll, pitch, yaw], buttons=list(stick.buttons)
            )
            self.joys[arm].publish(joy)


def main() -> None:
    """Runs the node until it is interrupted."""
    spin("operator_node", OperatorNode)


if __name__ == "__main__":
    main()
