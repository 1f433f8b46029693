"""The limiter: inside every limit for any input, and no change where there is nothing to limit."""

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_robot.control.limiter import MotionLimiter, MotionLimits

ROBOTS = {name: load_robot(name) for name in ("aloha_sim", "bimanual_ur5e")}


def limits_of(low, high, velocity, acceleration, jerk) -> MotionLimits:
    return MotionLimits.consistent(
        *(np.atleast_1d(np.asarray(x, float)) for x in (low, high, velocity, acceleration, jerk))
    )


def assert_inside(positions: np.ndarray, limits: MotionLimits) -> None:
    """Positions `[n, A]` that begin at rest.

    Rounding: a third difference of numbers of size s is exact to 8 s epsilon; the errors of the ticks of one braking add up.
    """
    rest = np.concatenate((positions[:1], positions[:1], positions[:1], positions))
    rounding = 8 * np.finfo(float).eps * max(1.0, np.abs(positions).max()) * limits.braking_ticks()
    assert np.all(positions >= limits.low)
    assert np.all(positions <= limits.high)
    for order, limit in ((1, limits.velocity), (2, limits.acceleration), (3, limits.jerk)):
        assert np.all(np.abs(np.diff(rest, order, axis=0)) <= limit * (1 + 1e-9) + rounding), (
            f"difference of order {order}"
        )


def run(limiter: MotionLimiter, targets: np.ndarray, hold: np.ndarray | None = None) -> np.ndarray:
    hold = np.zeros(targets.shape, bool) if hold is None else hold
    start = limiter.position
    return np.array([start, *(limiter.step(x, h).position for x, h in zip(targets, hold, strict=True))])


magnitude = st.floats(-4, 1).map(lambda x: 10.0**x)


@st.composite
def hostile_targets(draw, low: float, high: float, ticks: int = 60) -> np.ndarray:
    """A target sequence `[ticks]` made of steps, ramps, noise, spikes and targets right at the limits."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["anywhere", "steps", "walk", "ends", "spikes", "sine"]))
    span = high - low
    match kind:
        case "anywhere":
            return rng.uniform(low - span, high + span, ticks)
        case "steps":
            return np.repeat(rng.uniform(low - 0.1 * span, high + 0.1 * span, ticks // 10 + 1), 10)[:ticks]
        case "walk":
            return low + span * rng.random() + np.cumsum(rng.normal(size=ticks)) * span * 10.0 ** rng.uniform(-4, 0)
        case "ends":
            return np.where(rng.random(ticks).cumsum() % 7 < 3.5, low, high)
        case "spikes":
            return np.where(rng.random(ticks) < 0.1, rng.choice([-1e9, 1e9], ticks), low + 0.5 * span)
        case _:
            return low + span * (0.5 + 0.6 * np.sin(np.arange(ticks) * rng.uniform(0.01, 1.5)))


@given(data=st.data(), span=magnitude, velocity=magnitude, acceleration=magnitude, jerk=magnitude)
def test_any_limits_and_any_targets(data, span, velocity, acceleration, jerk):
    """Limits of any proportion, also such that one of them never matters or that the range is hardly wide enough to move in."""
    limits = limits_of(-span / 2, span / 2, velocity, acceleration, jerk)
    try:
        limiter = MotionLimiter(limits)
    except AloeError:  # too slow to brake; see the last test
        reject()
    limiter.reset(np.array([data.draw(st.floats(-0.5, 0.5)) * span]))
    targets = data.draw(hostile_targets(-span / 2, span / 2))[:, None]
    hold = np.random.default_rng(0).random(targets.shape) < data.draw(st.sampled_from([0.0, 0.2]))
    assert_inside(run(limiter, targets, hold), limits)


@pytest.mark.parametrize("name", ROBOTS)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_whole_robots(name, seed, data):
    robot = ROBOTS[name]
    limits = MotionLimits.of(robot)
    assert np.array_equal(limits.acceleration, robot.max_acceleration * 0.02**2), "these limits need no lowering"
    limiter = MotionLimiter(limits)
    limiter.reset(np.random.default_rng(seed).uniform(limits.low, limits.high))
    targets = np.stack([data.draw(hostile_targets(a, b)) for a, b in zip(limits.low, limits.high, strict=True)], axis=1)
    assert_inside(run(limiter, targets), limits)


def inner_stream(limits: MotionLimits, rng: np.random.Generator, ticks: int) -> np.ndarray:
    """A random sequence `[ticks, A]` that keeps every limit: what a greedy random driver does through another limiter."""
    limiter = MotionLimiter(limits)
    limiter.reset(rng.uniform(limits.low, limits.high))
    positions, target = [limiter.position] * 3, limiter.position
    for tick in range(ticks):
        if tick % 20 == 0:
            target = rng.uniform(limits.low - 0.2, limits.high + 0.2)
        positions.append(
            limiter.step(target + rng.normal(size=target.shape) * limits.jerk, np.zeros(target.shape, bool)).position
        )
    return np.array(positions)


@pytest.mark.parametrize("name", ROBOTS)
def test_a_stream_inside_the_limits_passes_exactly(name):
    limits = MotionLimits.of(ROBOTS[name])
    for seed in range(20):
        stream = inner_stream(limits, np.random.default_rng(seed), 300)
        limiter = MotionLimiter(limits)
        limiter.reset(stream[0])
        none = np.zeros(stream.shape[1], bool)
        for target in stream:
            result = limiter.step(target, none)
            assert np.array_equal(result.position, target)
            assert not result.changed.any()


def test_a_parabola_that_touches_the_limit_passes_exactly():
    """Full deceleration up to the position limit and back down is allowed: the limiter must not demand to stand still there."""
    limits = limits_of(-10, 10, 1.0, 0.1, 0.05)
    a = np.concatenate(
        (
            np.zeros(1),
            [0.05],
            np.full(7, 0.1),
            [0.05, 0.0, -0.05],
            np.full(17, -0.1),
            [-0.05, 0.0, 0.05],
            np.full(7, 0.1),
            [0.05, 0, 0],
        )
    )
    p = np.cumsum(np.cumsum(a))
    p += 10 - p.max()
    limiter = MotionLimiter(limits)
    limiter.reset(p[:1])
    out = run(limiter, p[:, None])[1:, 0]
    assert np.allclose(out, p, atol=1e-12)


@pytest.mark.parametrize("name", ROBOTS)
def test_a_step_is_reached_without_overshoot_and_held(name):
    robot = ROBOTS[name]
    limits = MotionLimits.of(robot)
    limiter = MotionLimiter(limits)
    limiter.reset(robot.home)
    target = np.clip(robot.home + 0.4, limits.low, limits.high)
    out = run(limiter, np.tile(target, (150, 1)))
    assert np.all(out <= target + 1e-12)
    assert np.array_equal(out[-1], target)
    assert limiter.at_rest


@pytest.mark.parametrize("name", ROBOTS)
def test_a_moving_target_is_caught_up_with(name):
    """After a jump of the target the lag goes back to zero while the target keeps moving."""
    limits = MotionLimits.of(ROBOTS[name])
    middle = (limits.low + limits.high) / 2
    limiter = MotionLimiter(limits)
    limiter.reset(middle)
    targets = middle + 0.05 + 0.3 * limits.velocity * np.arange(100)[:, None]
    targets = np.minimum(targets, limits.high)
    out = run(limiter, targets)[1:]
    moving = targets[60] < limits.high
    assert np.allclose(out[60][moving], targets[60][moving], atol=1e-12)


@given(seed=st.integers(0, 2**32 - 1))
def test_hold_brakes_to_a_standstill(seed):
    limits = MotionLimits.of(ROBOTS["bimanual_ur5e"])
    rng = np.random.default_rng(seed)
    limiter = MotionLimiter(limits)
    limiter.reset(rng.uniform(limits.low, limits.high))
    target = rng.uniform(limits.low, limits.high)
    moving = run(limiter, np.tile(target, (int(rng.integers(1, 60)), 1)))
    ticks = 2 * limits.braking_ticks()
    braking = run(limiter, np.full((ticks, 14), np.nan_to_num(target)), np.ones((ticks, 14), bool))
    assert_inside(np.concatenate((moving, braking[1:])), limits)
    assert limiter.at_rest
    assert np.array_equal(braking[-1], braking[-2])


def test_each_limit_is_named():
    limits = limits_of(-10, 10, 0.5, 0.25, 0.125)
    none = np.zeros(1, bool)

    def first(target: float):
        limiter = MotionLimiter(limits)
        limiter.reset(np.zeros(1))
        return limiter.step(np.array([target]), none)

    fine = first(0.1)
    assert not fine.changed[0]
    assert first(0.2).above_jerk[0]
    assert not first(0.2).above_acceleration[0]
    assert first(0.3).above_acceleration[0]
    assert not first(0.3).above_velocity[0]
    assert first(0.6).above_velocity[0]
    assert not first(0.6).above_position[0]
    assert first(10.1).above_position[0]


def test_a_fast_approach_of_the_limit_counts_as_position():
    limits = limits_of(-1, 1, 0.2, 0.02, 0.01)
    limiter = MotionLimiter(limits)
    limiter.reset(np.zeros(1))
    results = [limiter.step(np.array([min(1.0, 0.1 * t)]), np.zeros(1, bool)) for t in range(30)]
    assert any(r.above_position[0] for r in results)
    assert max(r.position[0] for r in results) <= 1


def test_limits_that_cannot_brake_are_refused():
    with pytest.raises(AloeError, match="cannot stop within 500 control ticks; raise its max_acceleration"):
        MotionLimiter(limits_of(-1e6, 1e6, 100.0, 1e-3, 1e-3))
