"""What the diagnostics of the control loop say."""

import pytest

from aloe_core.vocabulary import SafetyReason, SafetyState
from aloe_robot.control.health import ERROR, OK, WARN, TickTimes, verdict
from aloe_robot.control.records import SafetyReport

FINE = SafetyReport(SafetyState.OK, SafetyReason.NONE, "", "", ())
LIMITED = SafetyReport(SafetyState.LIMITING, SafetyReason.JERK, "waist", "limited", ())
STOPPED = SafetyReport(SafetyState.STOPPED, SafetyReason.NON_FINITE, "waist", "NaN", ())


def test_rate_and_jitter_of_ticks() -> None:
    ticks = TickTimes(20_000_000)
    assert ticks.rate_hz == ticks.jitter_p99_s == 0.0
    assert ticks.last == -float("inf")
    for k in range(2000):  # the first thousand have no say: more than ten seconds ago
        ticks.add(0.02 * k + (0.1 if k == 500 else 0.003 * (k % 2)))
    assert ticks.last == pytest.approx(0.02 * 1999 + 0.003)
    assert ticks.rate_hz == pytest.approx(50, rel=0.01)
    assert ticks.jitter_p99_s == pytest.approx(0.003)


def test_the_most_serious_thing_is_told() -> None:
    assert verdict(STOPPED, ["waist"], "/joint_states", "e") == (ERROR, "NaN")
    assert verdict(LIMITED, ["waist", "elbow"], "/joint_states", "e") == (
        WARN,
        "no joint state for waist, elbow on /joint_states",
    )
    assert verdict(LIMITED, [], "/joint_states", "e") == (WARN, "limited")
    assert verdict(FINE, [], "/joint_states", "e") == (OK, "episode 'e'")
    assert verdict(FINE, [], "/joint_states", "") == (OK, "no episode")
