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


def test_no_tracking_error_by_grippers_or_outside_episodes(rig):
    away = ROBOT.home + np.where(ROBOT.gripper_mask, 5.0, 0.0)
    for _ in range(50):
        rig.step(away)
    for _ in range(50):
        rig.step(ROBOT.home + 2.0, driving=False)
    assert rig.filter.report.state is SafetyState.OK


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
