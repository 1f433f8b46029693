"""Stands in for the arms and their ros2_control controllers: takes the robot's command topics, publishes its joint states."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.messages import joint_state_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot
from aloe_robot.mock_robot import MockRobot
from aloe_robot.nodes.lifecycle import ManagedNode, run


class MockRobotNode(ManagedNode):
    """See the module. Publishes at the robot's control rate while active."""

    def __init__(self) -> None:
        super().__init__("mock_robot_node")
        self.declare_parameter("robot", "bimanual_ur5e")  # name or YAML file of the robot description

    def configure(self) -> None:
        self.robot = load_robot(self.get_parameter("robot").value)
        self.arms = MockRobot(self.robot)
        self._publisher = self.create_publisher(JointState, self.robot.joint_states_topic, 10)
        self._subscriptions_of_arms = [
            self.create_subscription(Float64MultiArray, topic, lambda m, t=topic: self._on_command(t, m), 1)
            for topic in self.arms.command_slices
        ] + [
            self.create_subscription(JointTrajectory, topic, lambda m, t=topic: self._on_trajectory(t, m), 1)
            for topic in self.arms.trajectory_slices
        ]

    def activate(self) -> None:
        self._timer = self.create_timer(self.robot.control_dt_ns / NANOSECONDS, self._step)
        self.get_logger().info(f"standing in for the arms of '{self.robot.name}': nothing real moves")

    def deactivate(self) -> None:
        if getattr(self, "_timer", None) is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def cleanup(self) -> None:
        for subscription in getattr(self, "_subscriptions_of_arms", []):
            self.destroy_subscription(subscription)
        self._subscriptions_of_arms = []

    def _on_command(self, topic: str, message: Float64MultiArray) -> None:
        self._obey(lambda: self.arms.command(topic, message.data))

    def _on_trajectory(self, topic: str, message: JointTrajectory) -> None:
        start_ns = stamp_to_ns(message.header.stamp) or self.get_clock().now().nanoseconds
        times = np.array([start_ns + stamp_to_ns(p.time_from_start) for p in message.points]) / NANOSECONDS
        positions = np.array([p.positions for p in message.points])
        self._obey(lambda: self.arms.follow(topic, message.joint_names, times, positions))

    def _obey(self, act) -> None:
        try:
            act()
        except AloeError as error:
            self.get_logger().error(f"{error}; command ignored", throttle_duration_sec=1.0)

    def _step(self) -> None:
        now = self.get_clock().now().nanoseconds
        self.arms.step(now / NANOSECONDS, self.robot.control_dt_ns / NANOSECONDS)
        names, state = self.robot.action_names, self.arms
        self._publisher.publish(joint_state_msg(ros_make, now, names, state.position, state.velocity))


def main() -> None:
    """Runs the node until it is interrupted."""
    run(MockRobotNode)


if __name__ == "__main__":
    main()
