"""The arms that are not there: how they move, what they refuse, and that they speak the real robot's topics."""

from __future__ import annotations

import time

import numpy as np
import pytest

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription, load_robot
from aloe_robot.mock_robot import MockRobot

DT = 0.02


@pytest.fixture
def robot() -> RobotDescription:
    return load_robot("bimanual_ur5e")


def test_it_starts_at_home_and_goes_where_it_is_told_at_the_speed_allowed(robot: RobotDescription) -> None:
    mock = MockRobot(robot)
    home = robot.to_device(robot.home)
    np.testing.assert_array_equal(mock.position, home)
    goal = home[:6] + 0.5
    mock.command("/left_controller/commands", goal)
    mock.step(DT, DT)
    np.testing.assert_allclose(mock.position[:6], home[:6] + 1.05 * DT)
    np.testing.assert_allclose(mock.velocity[:6], 1.05)
    np.testing.assert_array_equal(mock.position[6:], home[6:])
    for _ in range(50):
        mock.step(DT, DT)
    np.testing.assert_allclose(mock.position[:6], goal)
    np.testing.assert_array_equal(mock.velocity, 0.0)


def test_the_gripper_has_its_own_topic_and_device_units(robot: RobotDescription) -> None:
    mock = MockRobot(robot)
    mock.command("/right_gripper_controller/commands", [0.8])
    for _ in range(100):
        mock.step(DT, DT)
    assert mock.position[13] == pytest.approx(0.8)
    assert robot.from_device(mock.position)[13] == pytest.approx(0.0)  # closed


@pytest.mark.parametrize("values", [[0.0] * 5, [0.0] * 5 + [float("nan")], []])
def test_a_malformed_command_is_refused_and_changes_nothing(robot: RobotDescription, values: list[float]) -> None:
    mock = MockRobot(robot)
    with pytest.raises(AloeError, match="/left_controller/commands: expected 6 finite numbers"):
        mock.command("/left_controller/commands", values)
    before = mock.position
    mock.step(DT, DT)
    np.testing.assert_array_equal(mock.position, before)


def test_trajectories_are_followed_in_time_whatever_the_order_of_names(robot: RobotDescription) -> None:
    arm = robot.arms[0]
    output = arm.output.model_copy(update={"type": "joint_trajectory"})
    changed = robot.model_copy(update={"arms": (arm.model_copy(update={"output": output}), robot.arms[1])})
    mock = MockRobot(changed)
    names = [joint.name for joint in arm.joints]
    home = mock.position[:6]
    goal = home + np.linspace(0.1, 0.6, 6)
    times = np.array([10.0, 12.0])
    mock.follow(output.topic, names[::-1], times, np.stack([home, goal])[:, ::-1])
    for tick in range(51):
        mock.step(10.0 + tick * DT, DT)
    np.testing.assert_allclose(mock.position[:6], (home + goal) / 2)
    with pytest.raises(AloeError, match="the trajectory is for elbow, but this arm has left_shoulder_pan_joint"):
        mock.follow(output.topic, ["elbow"], times, np.zeros((2, 1)))
    with pytest.raises(AloeError, match="at increasing times"):
        mock.follow(output.topic, names, times[::-1], np.zeros((2, 6)))


def test_the_node_speaks_the_robots_topics(robot: RobotDescription, ros_domain: int, start_node) -> None:
    import rclpy
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray

    process = start_node("aloe_robot", "mock_robot_node", {"robot": "bimanual_ur5e"})
    process.wait_for("standing in for the arms of 'bimanual_ur5e'")
    goal = robot.to_device(robot.home)[:6] + 0.05
    rclpy.init()
    node = rclpy.create_node("watcher")
    try:
        states: list[JointState] = []
        node.create_subscription(JointState, "/joint_states", states.append, 10)
        command = node.create_publisher(Float64MultiArray, "/left_controller/commands", 1)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (states and np.allclose(states[-1].position[:6], goal)):
            command.publish(Float64MultiArray(data=goal.tolist()))
            rclpy.spin_once(node, timeout_sec=0.05)
        assert tuple(states[-1].name) == robot.action_names
        np.testing.assert_allclose(states[-1].position[:6], goal)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    assert process.stop() == 0
