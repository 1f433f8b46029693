"""A discrete-time limiter of position, velocity, acceleration and jerk, for any number of joints at once.

With commands p[k] at a fixed period, velocity, acceleration and jerk are the first three differences of the published sequence. The limiter keeps
all of them inside their limits for *any* sequence of targets, and passes a sequence that is inside them through unchanged.

Everything is in ticks: v = p[k] - p[k-1], a = v[k] - v[k-1], limits V, A, J scaled by the period. A tick chooses the next acceleration a'; then
v' = v + a', p' = p + v'. Braking as hard as possible towards below means a' falling by J a tick down to -A. A state is *safe above* when that
keeps v <= V and p <= max for ever, *safe below* in the mirror. Both conditions are linear in a' for every future tick, which gives closed-form bounds:

    velocity, n ticks of falling acceleration:        (n + 1) a' <= V - v + J n (n + 1) / 2
    position k ticks on, saturated after i0 of them:  (k + 1 + sum_{i<=i0} (k-i+1)) a' <= max - p - (k+1) v + J sum_{i<=i0} (k-i+1) i + A sum_{i0<i<=k} (k-i+1)

The smallest right-hand side is the largest a' after which the joint can still stop in time. Our choice, with this proof: if A <= sqrt(2 J V) and
A^3 <= 24/19 (max - min) J^2 the bounds from above and from below never contradict each other. Suppose the state is safe and some a' breaks both.
If it breaks both position bounds, then (up to a mirror) v' > 0 and a' < 0: the peak is at most A^3 / 8 J^2 above p' and the trough at most
2/3 A^3 / J^2 below, less than the range in sum. Breaking a velocity and the opposite position bound needs a velocity swing above A^2 / 2J <= V, and breaking
both velocity bounds means that the state was outside before. So a safe state always has a safe successor. `MotionLimits` lowers A where the
conditions do not hold: for joints with hardly any range, or whose jerk limit hardly lets them reach A before V. Ordinary robots keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

MAX_BRAKING_TICKS = 500  # 10 s at 50 Hz: a joint that needs more has limits that make no sense at this control rate


@dataclass(frozen=True)
class MotionLimits:
    """Limits per joint `[A]` as differences per tick: [rad], [rad/tick], [rad/tick^2], [rad/tick^3], grippers in openings."""

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    @classmethod
    def of(cls, robot: RobotDescription) -> MotionLimits:
        """The robot's limits at its control rate."""
        dt = robot.control_dt_ns / NANOSECONDS
        low, high = robot.position_min, robot.position_max
        return cls.consistent(
            low, high, robot.max_velocity * dt, robot.max_acceleration * dt**2, robot.max_jerk * dt**3
        )

    @classmethod
    def consistent(
        cls, low: np.ndarray, high: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, jerk: np.ndarray
    ) -> MotionLimits:
        """Limits `[A]` lowered to what can be reached at all and, in acceleration, to what the proof above asks for."""
        velocity = np.minimum(velocity, high - low)
        acceleration = np.minimum(acceleration, 2 * velocity)
        jerk = np.minimum(jerk, 2 * acceleration)
        acceleration = np.minimum(acceleration, np.sqrt(2 * jerk * velocity))
        acceleration = np.minimum(acceleration, np.cbrt(24 / 19 * (high - low) * jerk**2))
        return cls(low, high, velocity, acceleration, jerk)

    def braking_ticks(self) -> int:
        """Ticks after which the slowest joint stands still, braking from the highest velocity and the worst acceleration."""
        a, v = self.acceleration.copy(), self.velocity.copy()
        for tick in range(1, MAX_BRAKING_TICKS + 1):
            a = np.maximum(a - self.jerk, -self.acceleration)
            v = np.minimum(v + a, self.velocity)
            if np.all(v <= 0):
                return tick
        worst = int(np.argmax(v / self.velocity))
        raise AloeError(
            f"entry {worst} of the action cannot stop within {MAX_BRAKING_TICKS} control ticks; raise its max_acceleration or max_jerk, or lower "
            "its max_velocity"
        )


@dataclass(frozen=True)
class Limited:
    """Result of one tick.

    Attributes:
        position: `[A]` the next command.
        changed: bool `[A]`, the command differs from the target, or a joint that was told to hold still moves.
        above_position, above_velocity, above_acceleration, above_jerk: bool `[A]`, which limit the target itself would have broken.
    """

    position: np.ndarray
    changed: np.ndarray
    above_position: np.ndarray
    above_velocity: np.ndarray
    above_acceleration: np.ndarray
    above_jerk: np.ndarray


class MotionLimiter:
    """Follows targets inside `MotionLimits`. Call `reset` once before the first `step`."""

    def __init__(self, limits: MotionLimits) -> None:
        self.limits = limits
        low, high, speed, accel, jerk = limits.low, limits.high, limits.velocity, limits.acceleration, limits.jerk
        size = low.shape
        self.position, self.velocity, self.acceleration = np.zeros(size), np.zeros(size), np.zeros(size)
        self._target, self._locked = np.zeros(size), np.ones(size, bool)
        # Velocity bound: reach(dv) = min_n dv / (n + 1) + J n / 2 is the largest a' that lands on a velocity dv away without passing it.
        n = np.arange(int(np.ceil(np.max(accel / jerk))) + 2)[:, None]
        self._reach_slope, self._reach_offset = 1.0 / (n + 1), jerk * n / 2
        # Position bound: rows (k, i0) of the table in the module's docstring.
        ticks, saturation = limits.braking_ticks() + 1, int(np.ceil(np.max(2 * accel / jerk))) + 1
        k, cut = (m.reshape(-1) for m in np.meshgrid(np.arange(ticks), np.arange(saturation), indexing="ij"))
        k, cut = k[cut <= k], cut[cut <= k]
        ramp = (k + 1) * cut - cut * (cut + 1) / 2  # sum_{i<=i0} (k-i+1)
        weighted = (k + 1) * cut * (cut + 1) / 2 - cut * (cut + 1) * (2 * cut + 1) / 6  # sum_{i<=i0} (k-i+1) i
        slope = 1.0 / (k + 1 + ramp)
        self._slack_slope, self._velocity_slope = slope[:, None], ((k + 1) * slope)[:, None]
        self._offset = (weighted * slope)[:, None] * jerk + ((k * (k + 1) / 2 - ramp) * slope)[:, None] * accel
        # Farther than this from both position limits they need no look: no safe state needs more room to stop.
        self._clearance = (ticks + 1) * speed
        # Catching up with a target it cannot reach in one tick: approach velocity r / time near it, sqrt(2 A/2 r) farther off (our choice: half of the
        # acceleration leaves the rest to jerk-limited transients, so that it lands without overshoot).
        self._brake = accel / 2
        self._time = np.maximum(2.0, 2 * accel / jerk)
        self._linear = self._brake * self._time**2
        self._unbounded = np.full(size, np.inf)
        self._lock_error = np.minimum(accel, jerk)
        self._rounding = 4e-15 * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))

    def reset(self, position: np.ndarray) -> None:
        """Stands still at `position [A]`, moved inside the position limits."""
        self.position = np.clip(position, self.limits.low, self.limits.high)
        self.velocity = np.zeros_like(self.position)
        self.acceleration = np.zeros_like(self.position)
        self._target, self._locked = self.position, np.ones(self.position.shape, bool)

    @property
    def at_rest(self) -> bool:
        """Whether the last command repeated the one before."""
        return not self.velocity.any()

    def step(self, target: np.ndarray, hold: np.ndarray) -> Limited:
        """Next command.

        Args:
            target: `[A]`, finite; ignored where `hold`.
            hold: bool `[A]`, these joints brake to a standstill and stay there.
        """
        limits, p, v, a = self.limits, self.position, self.velocity, self.acceleration
        inside = np.where(hold, p, np.minimum(np.maximum(target, limits.low), limits.high))
        moved = inside - p
        wanted = moved - v  # acceleration that reaches the target in this tick
        lowest, highest, floor, ceiling = self._bounds(p, v, a)

        feasible = (wanted >= lowest - self._rounding) & (wanted <= highest + self._rounding)
        error = np.where(hold, 0.0, self._target - p)
        # Landing on the target must leave a velocity error that the next ticks can take away again: else it is passed, not reached.
        settles = (np.abs(error) <= self._lock_error) & (np.abs(error + wanted) <= limits.jerk)
        standstill = np.abs(wanted) <= self._lock_error
        exact = feasible & np.where(hold, standstill, self._locked | settles)
        outside = (inside != target) & ~hold

        if exact.all():
            position, changed = inside, outside
        else:
            gap = np.where(hold, 0.0, self._approach(inside, error)) - v
            chosen = np.copysign((np.abs(gap) * self._reach_slope + self._reach_offset).min(axis=0), gap)
            chosen = np.minimum(np.maximum(chosen, lowest), highest)
            position = np.where(exact, inside, np.minimum(np.maximum(p + v + chosen, limits.low), limits.high))
            changed = outside | (position != inside)
        self.velocity = position - p
        self.acceleration = self.velocity - v
        self.position = position
        self._target, self._locked = np.where(hold, position, inside), exact
        if not changed.any():
            return Limited(position, changed, changed, changed, changed, changed)
        driven = changed & ~hold
        return Limited(
            position=position,
            changed=changed,
            above_position=outside | (driven & ((wanted > ceiling) | (wanted < floor))),
            above_velocity=driven & (np.abs(moved) > limits.velocity + self._rounding),
            above_acceleration=driven & (np.abs(wanted) > limits.acceleration + self._rounding),
            above_jerk=driven & (np.abs(wanted - a) > limits.jerk + self._rounding),
        )

    def _bounds(
        self, p: np.ndarray, v: np.ndarray, a: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Smallest and largest next acceleration `[A]` from which the joint can still stay inside every limit, and inside the position limits alone."""
        limits = self.limits
        least, most = (
            np.maximum(a - limits.jerk, -limits.acceleration),
            np.minimum(a + limits.jerk, limits.acceleration),
        )
        above = ((limits.velocity - v) * self._reach_slope + self._reach_offset).min(axis=0)
        below = -((limits.velocity + v) * self._reach_slope + self._reach_offset).min(axis=0)
        floor, ceiling = -self._unbounded, self._unbounded
        room_below, room_above = p - limits.low, limits.high - p
        near = np.minimum(room_below, room_above) < self._clearance
        if near.any():
            at = near.nonzero()[0]
            floor, ceiling = floor.copy(), ceiling.copy()
            offset, moving = self._offset[:, at], self._velocity_slope * v[at]
            ceiling[at] = (offset + self._slack_slope * room_above[at] - moving).min(axis=0)
            floor[at] = -(offset + self._slack_slope * room_below[at] + moving).min(axis=0)
            above, below = np.minimum(above, ceiling), np.maximum(below, floor)
        # Jerk and acceleration last: of two bounds that differ by rounding the exact one counts.
        lowest = np.minimum(np.maximum(below, least), most)
        highest = np.minimum(np.maximum(above, least), most)
        return lowest, highest, floor, ceiling

    def _approach(self, target: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Velocity `[A]` at which to go for a target that moved to `target` and was `error` away before."""
        distance = np.abs(error)
        far = np.sqrt((self._brake * self._time) ** 2 + 2 * self._brake * np.maximum(distance - self._linear, 0.0))
        speed = np.where(distance <= self._linear, distance / self._time, far)
        limit = self.limits.velocity
        drift = np.minimum(np.maximum(target - self._target, -limit), limit)
        return np.minimum(np.maximum(np.copysign(speed, error) + drift, -limit), limit)
