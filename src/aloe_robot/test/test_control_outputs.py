"""Commands and records as messages: device values, trajectories, and the same messages for ROS and for bags."""

import numpy as np
import pytest
from control_rig import Rig

from aloe_core.errors import AloeError
from aloe_core.messages import bag_make, typestore
from aloe_core.robot import RobotDescription, load_robot
from aloe_core.vocabulary import Mode, Outcome, SafetyReason
from aloe_robot.control.joints import JointMerger
from aloe_robot.control.messages import (
    chunk_request_msg,
    control_state_msg,
    safety_status_msg,
    teleop_from_msg,
    transition_msg,
)
from aloe_robot.control.outputs import FORWARD, TRAJECTORY, command_outputs

UR5E = load_robot("bimanual_ur5e")
LEFT = UR5E.arm_slices[0]


def with_output(robot: RobotDescription, **output) -> RobotDescription:
    """The robot with another output on its first arm."""
    arm = robot.arms[0].model_copy(update={"output": robot.arms[0].output.model_copy(update=output)})
    return robot.model_copy(update={"arms": (arm, *robot.arms[1:])})


def seconds(duration) -> float:
    return duration.sec + duration.nanosec / 1e9


def test_forward_position_sends_device_values_every_tick():
    output = command_outputs(UR5E)[0]
    assert output.topics == [("/left_controller/commands", FORWARD), ("/left_gripper_controller/commands", FORWARD)]
    command = UR5E.home + 0.01
    command[6] = 0.25
    (arm_topic, arm), (gripper_topic, gripper) = output.send(bag_make, 0, command, False, lambda n: np.zeros((0, 14)))
    assert [arm_topic, gripper_topic] == [t for t, _ in output.topics]
    assert list(arm.data) == list(command[:6])
    assert list(gripper.data) == pytest.approx([0.6])  # closed 0.8, open 0: a quarter open


def test_a_gripper_without_its_own_topic_comes_last():
    robot = with_output(UR5E, gripper_topic=None)
    output = command_outputs(robot)[0]
    assert len(output.topics) == 1
    ((_, message),) = output.send(bag_make, 0, robot.home, False, lambda n: np.zeros((0, 14)))
    assert list(message.data) == pytest.approx([*robot.home[:6], 0.0])  # home is open: 0


class TrajectoryRig(Rig):
    """Runs the loop and the first arm's trajectory output; follows its trajectories as the controller would."""

    def __init__(self, rows, **config) -> None:
        robot = with_output(UR5E, type="joint_trajectory", topic="/left_arm/joint_trajectory")
        super().__init__(robot, rows, **config)
        self.output = command_outputs(robot)[0]
        self.sent = []  # (tick, message)
        self.loop.start_episode("e")

    def tick(self, teleop=None):
        result = super().tick(teleop)
        human = result.state.mode[0] == Mode.HUMAN
        for topic, message in self.output.send(bag_make, result.now_ns, result.commanded, human, self.loop.forecast):
            if topic == "/left_arm/joint_trajectory":
                self.sent.append((self.now_tick - 1, message))
        return result

    def followed(self, tick: int) -> np.ndarray:
        """Where the controller is sent for a tick: the point of the trajectory in force."""
        start, message = next((t, m) for t, m in reversed(self.sent) if t <= tick)
        return np.array(message.points[min(tick - start, len(message.points) - 1)].positions)


def test_one_trajectory_per_chunk_carries_every_command():
    def rows(request):
        ticks = request.stamp_ns // UR5E.control_dt_ns + np.arange(50)[:, None]
        return UR5E.home + 0.1 * np.sin(ticks / (20 + request.request_id)) * ~UR5E.gripper_mask

    rig = TrajectoryRig(rows)
    results = rig.ticks(100)
    assert [tick for tick, _ in rig.sent] == [0, 25, 50, 75], "one per chunk, not one per tick"
    for tick, result in enumerate(results):
        assert np.allclose(rig.followed(tick), result.commanded[:6], atol=1e-9)
    message = rig.sent[1][1]
    assert message.joint_names == list(UR5E.action_names[:6])
    assert message.header.stamp.nanosec == 25 * UR5E.control_dt_ns
    assert [seconds(p.time_from_start) for p in message.points[:3]] == pytest.approx([0.02, 0.04, 0.06])
    # After the last row the trajectory goes on until the arm stands still: starving needs no other message.
    last = np.array([p.positions for p in message.points])
    assert len(last) > 50
    assert np.array_equal(last[-1], last[-2])


def test_a_stop_is_sent_at_once_and_standing_still_not_again():
    rig = TrajectoryRig(lambda r: UR5E.home + np.linspace(0, 0.3, 50)[:, None] * ~UR5E.gripper_mask)
    rig.ticks(15)
    rig.loop.stop(SafetyReason.EMERGENCY_STOP, "stop")
    results = rig.ticks(60)
    assert [tick for tick, _ in rig.sent] == [0, 15]
    for tick, result in enumerate(results, start=15):
        assert np.allclose(rig.followed(tick), result.commanded[:6], atol=1e-9)


def test_a_humans_arm_gets_ten_trajectories_a_second():
    rig = TrajectoryRig(lambda r: np.tile(UR5E.home, (50, 1)))
    rig.ticks(5)
    for _ in range(50):
        rig.tick(rig.human("left", rig.measured[LEFT] + 0.01))
    assert len(rig.sent) <= 12


def roundtrip(message) -> None:
    """A message whose types are right can be serialized."""
    typestore().serialize_cdr(message, message.__msgtype__)


def test_records_are_messages_for_bags():
    rig = Rig(UR5E, execution_mode="rtc")
    rig.loop.start_episode("e", "do it")
    results = rig.ticks(30)
    transition = rig.loop.stop_episode(Outcome.SUCCESS)
    state = control_state_msg(bag_make, results[-1].state, UR5E)
    assert (list(state.mode), state.tick, state.step) == ([Mode.POLICY] * 2, 30, 29)
    assert list(state.commanded) == list(results[-1].commanded)
    last = transition_msg(bag_make, transition, UR5E)
    assert (last.step, last.terminated, list(last.source)) == (29, True, [2, 2])
    request = chunk_request_msg(bag_make, rig.requests[1])
    assert len(request.prefix) == 25 * 14
    safety = safety_status_msg(bag_make, results[-1].safety, 5)
    assert list(safety.counters) == [0] * len(SafetyReason)
    for message in (state, last, request, safety, transition_msg(bag_make, rig.transitions[0], UR5E)):
        roundtrip(message)


def test_records_are_messages_for_ros():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from aloe_core.messages import ros_make

    rig = Rig(UR5E)
    rig.loop.start_episode("e", "do it")
    result = rig.ticks(2)[-1]
    for convert, record in ((control_state_msg, result.state), (transition_msg, result.transition)):
        ros, bag = convert(ros_make, record, UR5E), convert(bag_make, record, UR5E)
        for field in ros.get_fields_and_field_types():
            if field != "header":
                assert np.array_equal(getattr(ros, field), getattr(bag, field)), field
    trajectory = TrajectoryRig(lambda r: np.tile(UR5E.home, (50, 1)))
    state = trajectory.tick()
    output = command_outputs(trajectory.robot)[0]
    (topic, message), _ = output.send(ros_make, 0, state.commanded + 0.1, False, lambda n: np.zeros((3, 14)))
    assert (topic, len(message.points), dict(output.topics)[topic]) == ("/left_arm/joint_trajectory", 4, TRAJECTORY)


def test_teleoperation_commands_come_in():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from aloe_msgs.msg import TeleopCommand

    message = TeleopCommand(arm_name="left", engaged=True, positions=[0.5] * 7, healthy=False, message="lost")
    message.header.stamp.sec = 2
    teleop = teleop_from_msg(message)
    assert (teleop.stamp_ns, teleop.engaged, teleop.healthy, teleop.message) == (2_000_000_000, True, False, "lost")
    assert list(teleop.positions) == [0.5] * 7


def test_joint_states_in_parts():
    merger = JointMerger(UR5E)
    assert merger.stamp_ns == -1
    assert len(merger.missing) == 14
    merger.add(5, [*UR5E.action_names[:7], "someone_elses_joint"], [0.1] * 6 + [0.8] + [9.0])
    assert len(merger.missing) == 7
    merger.add(7, UR5E.action_names[7:], [0.2] * 7)
    assert merger.stamp_ns == 5
    assert not merger.missing
    assert merger.positions[:7] == pytest.approx([0.1] * 6 + [0.0])  # device value 0.8 is closed
    merger.add(4, UR5E.action_names[:1], [3.0])
    assert merger.positions[0] == 0.1, "an older measurement changes nothing"
    merger.add(5 + 3600 * 10**9, UR5E.action_names, [0.5] * 14)
    merger.add(5 + 3599 * 10**9, UR5E.action_names, [0.1] * 14)
    assert (merger.positions[0], merger.stamp_ns) == (0.5, 5 + 3600 * 10**9)
    merger.add(8, UR5E.action_names, [0.2] * 14)
    assert (merger.positions[0], merger.stamp_ns) == (0.2, 8), "the driver's clock was set back"
    with pytest.raises(AloeError, match="2 names but 1 positions"):
        merger.add(8, UR5E.action_names[:2], [1.0])
