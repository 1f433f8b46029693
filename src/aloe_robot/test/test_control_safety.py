"""The safety filter: every reason is reachable, moves its counter, and says what happened."""

import numpy as np
import pytest

from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.vocabulary import SafetyReason, SafetyState
from aloe_robot.control.safety import SafetyFilter

ROBOT = load_robot("aloha_sim")
DT = ROBOT.control_dt_ns
NONE = np.zeros(ROBOT.action_dim, bool)
JOINT = 0  # left_waist
UR5E = load_robot("bimanual_ur5e")
UR5E_ALL = np.ones(UR5E.action_dim, bool)


class Rig:
    """A filter at home on a robot that follows its commands at once."""

    def __init__(self) -> None:
        self.filter, self.now_ns = SafetyFilter(ROBOT), 0
        self.filter.reset(ROBOT.home)
        self.target, self.hold = ROBOT.home.copy(), NONE

    def step(self, measured=None, age_ns: int = 0, silent: str = "", driving: bool = True) -> np.ndarray:
        self.now_ns += DT
        measured = self.filter.command if measured is None else measured
        return self.filter.step(self.target, self.hold, measured, self.now_ns, age_ns, silent, driving)

    def count(self, reason: SafetyReason) -> int:
        return self.filter.report.counters[reason]


@pytest.fixture
def rig():
    rig = Rig()
    assert np.array_equal(rig.step(), ROBOT.home)
    assert rig.filter.report.state is SafetyState.OK
    assert not rig.filter.changed
    return rig


@pytest.mark.parametrize(
    ("reason", "offset"),
    [
        (SafetyReason.POSITION, 10.0),
        (SafetyReason.VELOCITY, 0.2),
        (SafetyReason.ACCELERATION, 0.1),
    ],
)
def test_kinematic_reasons(rig, reason, offset):
    rig.target[JOINT] += offset
    command = rig.step()
    assert command[JOINT] < rig.target[JOINT]
    assert np.array_equal(np.delete(command, JOINT), np.delete(ROBOT.home, JOINT)), "other joints are left alone"
    report = rig.filter.report
    assert (report.state, report.reason, report.joint) == (SafetyState.LIMITING, reason, "left_waist")
    assert report.message
    assert rig.count(reason) == 1
    assert rig.filter.changed
    rig.target[JOINT] = ROBOT.home[JOINT]
    for _ in range(50):
        rig.step()
    assert rig.filter.report.state is SafetyState.OK, "limiting does not latch"


def test_jerk():
    """On a robot whose jerk limit is below its acceleration limit per tick."""
    robot = load_robot("bimanual_ur5e")
    safety = SafetyFilter(robot)
    safety.reset(robot.home)
    target = robot.home.copy()
    target[0] += 1e-3  # above 60 rad/s^3 * (20 ms)^3 = 4.8e-4, below 4 rad/s^2 * (20 ms)^2 = 1.6e-3
    safety.step(target, NONE, robot.home, 0, 0)
    assert safety.report.reason is SafetyReason.JERK
    assert safety.report.counters[SafetyReason.JERK] == 1


def stopped(rig: Rig, reason: SafetyReason) -> None:
    report = rig.filter.report
    assert (report.state, report.reason) == (SafetyState.STOPPED, reason)
    assert report.message
    before = rig.count(reason)
    rig.target = ROBOT.home + 0.5
    for _ in range(60):
        command = rig.step()
    assert np.array_equal(command, rig.step()), "it stands still"
    assert rig.count(reason) == before + 61
    assert rig.filter.report.reason is reason, "and the first reason stays"
    rig.filter.reset(command)
    assert rig.filter.report.state is SafetyState.OK


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_targets_stop(rig, bad):
    rig.target[JOINT] = bad
    assert np.isfinite(rig.step()).all()
    assert rig.filter.report.joint == "left_waist"
    assert rig.count(SafetyReason.NON_FINITE) == 1
    stopped(rig, SafetyReason.NON_FINITE)


def test_a_non_finite_target_of_a_joint_that_holds_is_nobodys_business(rig):
    rig.target[JOINT], rig.hold = np.nan, ~NONE
    assert np.array_equal(rig.step(), ROBOT.home)
    assert rig.filter.report.state is SafetyState.OK


def test_non_finite_measurements_stop(rig):
    measured = ROBOT.home.copy()
    measured[JOINT] = np.nan
    rig.step(measured)
    assert rig.count(SafetyReason.NON_FINITE) == 1
    stopped(rig, SafetyReason.NON_FINITE)
    with pytest.raises(AloeError, match="'left_waist' is not a finite number"):
        rig.filter.reset(measured)


def test_stale_observations_hold_then_stop(rig):
    rig.target[JOINT] += 0.05
    rig.step()
    held = [rig.step(age_ns=int(0.3e9)) for _ in range(20)]
    assert np.array_equal(held[-1], held[-2])
    report = rig.filter.report
    assert (report.state, report.reason) == (SafetyState.LIMITING, SafetyReason.STALE_OBSERVATION)
    assert rig.count(SafetyReason.STALE_OBSERVATION) == 20
    rig.step()
    assert rig.filter.report.reason is not SafetyReason.STALE_OBSERVATION, "fresh again: it goes on"
    rig.step(age_ns=int(1.1e9))
    stopped(rig, SafetyReason.STALE_OBSERVATION)


def test_observations_from_the_future_hold_then_stop(rig):
    rig.step(age_ns=int(-0.1e9))
    assert rig.filter.report.state is SafetyState.OK, "clocks are never quite together"
    rig.step(age_ns=int(-0.3e9))
    report = rig.filter.report
    assert (report.state, report.reason) == (SafetyState.LIMITING, SafetyReason.STALE_OBSERVATION)
    rig.step(age_ns=int(-3600e9))
    assert rig.filter.report.message == "the joint states are stamped 3600.00 s in the future; set the clocks right"
    stopped(rig, SafetyReason.STALE_OBSERVATION)


def test_a_silent_driver_is_reported(rig):
    rig.step(silent="left: no teleoperation command for 0.20 s")
    report = rig.filter.report
    assert (report.state, report.reason) == (SafetyState.LIMITING, SafetyReason.COMMAND_WATCHDOG)
    assert "left" in report.message
    assert rig.count(SafetyReason.COMMAND_WATCHDOG) == 1


def test_a_sustained_tracking_error_stops(rig):
    away = ROBOT.home.copy()
    away[JOINT] += 1.1
    for _ in range(20):
        rig.step(away)
    rig.step()  # back for one tick: the time starts again
    for _ in range(25):
        rig.step(away)
    assert rig.filter.report.state is SafetyState.OK
    rig.step(away)
    assert "left_waist" in rig.filter.report.message
    stopped(rig, SafetyReason.TRACKING_ERROR)


def test_no_tracking_error_by_grippers(rig):
    away = ROBOT.home + np.where(ROBOT.gripper_mask, 5.0, 0.0)
    for driving in (True, False):
        for _ in range(50):
            assert np.array_equal(rig.step(away, driving=driving), ROBOT.home)
    assert rig.filter.report.state is SafetyState.OK


def ur5e_blocked(block: float) -> tuple[SafetyFilter, np.ndarray, list[np.ndarray]]:
    """A filter that was sent 2 rad away with the base joint while the arm stopped at `block` [rad], until it stops; the arm's pose; the commands."""
    safety, now_ns = SafetyFilter(UR5E), 0
    safety.reset(UR5E.home)
    target, commands = UR5E.home.copy(), [UR5E.home] * 3
    target[0] += 2.0
    measured = UR5E.home.copy()
    while safety.report.state is not SafetyState.STOPPED:
        now_ns += UR5E.control_dt_ns
        commands.append(safety.step(target, ~UR5E_ALL, measured, now_ns, 0))
        measured = commands[-1].copy()
        measured[0] = min(measured[0], UR5E.home[0] + block)
    return safety, measured, commands


def test_a_stop_at_an_obstacle_takes_the_command_back_to_the_arm_inside_the_limits():
    safety, measured, commands = ur5e_blocked(0.1)
    assert safety.report.reason is SafetyReason.TRACKING_ERROR
    assert commands[-1][0] - measured[0] > UR5E.safety.max_tracking_error
    assert safety.retreating
    for tick in range(150):
        commands.append(safety.step(UR5E.home, UR5E_ALL, measured, 10**12 + tick * UR5E.control_dt_ns, 0))
    assert np.array_equal(commands[-1], measured)
    assert not safety.retreating
    assert safety.stopped
    dt = UR5E.control_dt_ns / 1e9
    for order, limit in ((1, UR5E.max_velocity), (2, UR5E.max_acceleration), (3, UR5E.max_jerk)):
        assert np.all(np.abs(np.diff(commands, order, axis=0)) <= limit * dt**order * (1 + 1e-9))


def test_a_stopped_arm_that_sags_does_not_sink():
    safety, measured, _ = ur5e_blocked(0.1)
    for tick in range(500):
        command = safety.step(UR5E.home, UR5E_ALL, measured, 10**12 + tick * UR5E.control_dt_ns, 0)
        measured = command - 0.02 * (np.arange(UR5E.action_dim) == 1)
    assert np.allclose(command, safety.step(UR5E.home, UR5E_ALL, measured, 2 * 10**12, 0), atol=0)
    assert abs(command[1] - UR5E.home[1]) < 1e-9


def test_outside_episodes_the_command_follows_an_arm_that_is_moved_by_hand():
    safety, now_ns = SafetyFilter(UR5E), 0
    safety.reset(UR5E.home)
    measured = UR5E.home.copy()
    measured[6] = 0.4  # what the gripper holds keeps it open
    grip = UR5E.home[6]
    told = set()
    for tick in range(600):
        now_ns += UR5E.control_dt_ns
        measured[1] = UR5E.home[1] + min(1.2, 0.005 * tick)
        before, command = safety.command, safety.step(UR5E.home, UR5E_ALL, measured, now_ns, 0, driving=False)
        assert np.all(np.abs(command - before) <= UR5E.max_velocity * UR5E.control_dt_ns / 1e9 * (1 + 1e-9))
        assert command[6] == grip
        told.add((safety.report.state, safety.report.reason, safety.report.joint))
    assert abs(command[1] - measured[1]) <= UR5E.safety.max_tracking_error
    assert told == {
        (SafetyState.OK, SafetyReason.NONE, ""),
        (SafetyState.LIMITING, SafetyReason.TRACKING_ERROR, UR5E.action_names[1]),
    }
    assert safety.report.state is SafetyState.OK, "once it is there"
    safety.stop(SafetyReason.EMERGENCY_STOP, "stop")
    for tick in range(300):
        command = safety.step(UR5E.home, UR5E_ALL, UR5E.home, now_ns + tick * UR5E.control_dt_ns, 0, driving=False)
    assert np.allclose(command[:6], UR5E.home[:6], atol=1e-9), "also in a stop"


def test_a_single_wrong_measurement_moves_nothing(rig):
    rig.hold = ~NONE
    for tick in range(100):
        assert np.array_equal(rig.step(None if tick % 10 else ROBOT.home - 3.0, driving=False), ROBOT.home)


@pytest.mark.parametrize("side", [-1, 1])
def test_nothing_starts_outside_the_position_limits(side):
    limit = ROBOT.position_max if side > 0 else ROBOT.position_min
    measured = ROBOT.home.copy()
    measured[JOINT] = limit[JOINT] + side * 0.3
    safety = SafetyFilter(ROBOT)
    with pytest.raises(AloeError, match=rf"'left_waist' stands at {measured[JOINT]:.3f}, outside -3.* to 3"):
        safety.reset(measured)
    report = safety.report
    assert (report.state, report.reason, report.joint) == (SafetyState.STOPPED, SafetyReason.POSITION, "left_waist")
    measured[JOINT] = limit[JOINT] + side * 0.019
    grippers = ROBOT.gripper_mask
    measured[grippers] = (1.0 if side > 0 else 0.0) + side * 0.09  # a calibration that is a little off
    safety.reset(measured)
    assert np.array_equal(safety.command, np.clip(measured, ROBOT.position_min, ROBOT.position_max))
    measured[grippers] += side * 0.05
    with pytest.raises(AloeError, match="'left_gripper' stands at"):
        SafetyFilter(ROBOT).reset(measured)


def test_a_reset_keeps_what_needs_no_new_start(rig):
    grip = ROBOT.gripper_mask
    rig.target[grip] = 0.1
    for _ in range(20):
        rig.step()
    measured = rig.filter.command + np.where(grip, 0.4, 0.04)
    rig.filter.reset(measured)
    assert np.array_equal(rig.step(measured), rig.target), "near enough, and the grippers hold something"
    measured[JOINT] += 0.2
    rig.filter.reset(measured)
    assert np.array_equal(rig.filter.command, np.where(np.arange(len(grip)) == JOINT, measured, rig.target))
    rig.filter.reset(measured, afresh=True)
    assert np.array_equal(rig.filter.command, measured)


@pytest.mark.parametrize("reason", [SafetyReason.EMERGENCY_STOP, SafetyReason.COMMAND_CONFLICT])
def test_stops_from_outside(rig, reason):
    rig.filter.stop(reason, "somebody said so")
    rig.filter.stop(SafetyReason.TRACKING_ERROR, "later")
    rig.step()
    assert rig.filter.report.message == "somebody said so"
    stopped(rig, reason)


def test_a_stop_in_motion_brakes_within_the_limits():
    robot = load_robot("bimanual_ur5e")
    dt = robot.control_dt_ns / 1e9
    safety = SafetyFilter(robot)
    safety.reset(robot.home)
    target = robot.home + 1.0 * ~robot.gripper_mask
    commands = [robot.home] * 3 + [safety.step(target, NONE, safety.command, 0, 0) for _ in range(30)]
    safety.stop(SafetyReason.EMERGENCY_STOP, "now")
    commands += [safety.step(target, NONE, safety.command, 0, 0) for _ in range(60)]
    p = np.array(commands)
    assert np.all(np.abs(np.diff(p, 2, axis=0)) <= robot.max_acceleration * dt**2 * (1 + 1e-9))
    assert np.all(np.abs(np.diff(p, 3, axis=0)) <= robot.max_jerk * dt**3 * (1 + 1e-9))
    assert np.array_equal(p[-1], p[-2])
    assert np.all(p[-1] < target + robot.gripper_mask)
