"""The safety filter: the last word on every command.

Kinematic limits change a command and are counted; a joint goes on following its target as closely as they allow. Everything that means "do not trust
this any more" latches: the joints brake inside their limits to a standstill and stay there until `reset`. The first reason to latch stays.
"""

from __future__ import annotations

import copy

import numpy as np

from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import SafetyReason, SafetyState
from aloe_robot.control.limiter import Limited, MotionLimiter, MotionLimits
from aloe_robot.control.records import SafetyReport

LIMIT_MESSAGES = {
    SafetyReason.STALE_OBSERVATION: "the joint states are too old; holding",
    SafetyReason.POSITION: "the target lies outside the position limits or is approached too fast",
    SafetyReason.VELOCITY: "the target moves faster than the velocity limit",
    SafetyReason.ACCELERATION: "the target accelerates more than the acceleration limit",
    SafetyReason.JERK: "the target jerks more than the jerk limit",
}


class SafetyFilter:
    """Turns targets into commands that are safe to send. `reset` anchors it at a measured pose before the first `step`."""

    def __init__(self, robot: RobotDescription) -> None:
        self._names = robot.action_names
        self._settings = robot.safety
        self._limiter = MotionLimiter(MotionLimits.of(robot))
        self._joints = ~robot.gripper_mask  # a gripper that holds something never gets where it is sent
        self._counters = [0] * len(SafetyReason)
        self._latched: tuple[SafetyReason, str, str] | None = None  # reason, joint, message
        self._now: tuple[SafetyReason, str, str] = (SafetyReason.NONE, "", "")
        self._tracking_lost_ns: int | None = None
        self._all, self._none = np.ones(robot.action_dim, bool), np.zeros(robot.action_dim, bool)
        self.changed = False  # the last command is not what was asked for

    def reset(self, measured: np.ndarray) -> None:
        """Takes a stop back and starts again from the measured pose `[A]`.

        Raises:
            AloeError: the pose is not finite.
        """
        if not np.isfinite(measured).all():
            joint = self._names[int(np.argmin(np.isfinite(measured)))]
            raise AloeError(f"cannot start from the measured pose: the position of '{joint}' is not a finite number")
        self._limiter.reset(measured)
        self._latched, self._now, self._tracking_lost_ns = None, (SafetyReason.NONE, "", ""), None

    def stop(self, reason: SafetyReason, message: str, joint: str = "") -> None:
        """Latches a stop; a stop that is latched already keeps its reason."""
        if self._latched is None:
            self._latched = (reason, joint, message)

    @property
    def stopped(self) -> bool:
        return self._latched is not None

    @property
    def command(self) -> np.ndarray:
        """`[A]` the last command."""
        return self._limiter.position

    def limiter(self) -> MotionLimiter:
        """A copy of the limiter in its present state, to look ahead with."""
        return copy.copy(self._limiter)

    @property
    def report(self) -> SafetyReport:
        """State as of the last step; a stop shows at once."""
        if self._latched is not None:
            return SafetyReport(SafetyState.STOPPED, *self._latched, tuple(self._counters))
        state = SafetyState.OK if self._now[0] == SafetyReason.NONE else SafetyState.LIMITING
        return SafetyReport(state, *self._now, tuple(self._counters))

    def stale(self, age_ns: int) -> bool:
        """Whether joint states of this age are too old to act on."""
        return age_ns > self._settings.observation_timeout * NANOSECONDS

    def step(
        self,
        target: np.ndarray,
        hold: np.ndarray,
        measured: np.ndarray,
        now_ns: int,
        age_ns: int,
        silent: str = "",
        driving: bool = True,
    ) -> np.ndarray:
        """One tick.

        Args:
            target: `[A]` where the joints should be; ignored where `hold`.
            hold: bool `[A]`, joints that nobody drives: they brake and stay.
            measured: `[A]` measured positions.
            now_ns: time of the tick.
            age_ns: age of the measurement.
            silent: who went silent while driving an arm, in one sentence; empty: nobody.
            driving: an episode runs; outside of one the tracking error is nobody's fault.

        Returns:
            `[A]` the command: finite, inside every limit.
        """
        self._watch(target, hold, measured, now_ns, age_ns, driving)
        stale = self.stale(age_ns)
        if self._latched is not None:
            limited = self._limiter.step(self._limiter.position, self._all)
            self._counters[self._latched[0]] += 1
            self.changed = True
            return limited.position
        limited = self._limiter.step(target if not stale else self._limiter.position, self._all if stale else hold)
        self._judge(limited, self._all if stale else hold, stale, silent)
        return limited.position

    def _watch(
        self, target: np.ndarray, hold: np.ndarray, measured: np.ndarray, now_ns: int, age_ns: int, driving: bool
    ) -> None:
        """Latches what must not go on."""
        bad = ~np.isfinite(measured)
        if bad.any():
            joint = self._names[int(np.argmax(bad))]
            self.stop(SafetyReason.NON_FINITE, f"the measured position of '{joint}' is not a finite number", joint)
            return
        bad = ~np.isfinite(target) & ~hold
        if bad.any():
            joint = self._names[int(np.argmax(bad))]
            self.stop(SafetyReason.NON_FINITE, f"the target of '{joint}' is not a finite number", joint)
        if age_ns > self._settings.observation_stop_timeout * NANOSECONDS:
            self.stop(SafetyReason.STALE_OBSERVATION, f"no joint states for {age_ns / NANOSECONDS:.2f} s")
        error = np.abs(measured - self._limiter.position) * self._joints
        worst = int(error.argmax())
        if not driving or error[worst] <= self._settings.max_tracking_error:
            self._tracking_lost_ns = None
            return
        if self._tracking_lost_ns is None:
            self._tracking_lost_ns = now_ns
        if now_ns - self._tracking_lost_ns >= self._settings.tracking_error_time * NANOSECONDS:
            joint = self._names[worst]
            self.stop(SafetyReason.TRACKING_ERROR, f"'{joint}' is {error[worst]:.3f} rad from its command", joint)

    def _judge(self, limited: Limited, hold: np.ndarray, stale: bool, silent: str) -> None:
        """Counts what the limits did in this tick and names the most serious reason."""
        changed = limited.changed & ~hold
        self.changed = stale or bool(changed.any())
        reason, joint, message = SafetyReason.NONE, "", ""
        if changed.any():
            above = {
                SafetyReason.POSITION: limited.above_position,
                SafetyReason.VELOCITY: limited.above_velocity,
                SafetyReason.JERK: limited.above_jerk,
                SafetyReason.ACCELERATION: limited.above_acceleration,
            }
            broken = [r for r, mask in above.items() if mask.any()]
            # A joint that is still catching up with its target is bound by its acceleration.
            for reason in broken or [SafetyReason.ACCELERATION]:
                self._counters[reason] += 1
            reason = min(broken, default=SafetyReason.ACCELERATION)
            joint = self._names[int(changed.argmax())] if changed.sum() == 1 else ""
            message = LIMIT_MESSAGES[reason]
        if silent:
            self._counters[SafetyReason.COMMAND_WATCHDOG] += 1
            reason, joint, message = SafetyReason.COMMAND_WATCHDOG, "", silent
        if stale:
            self._counters[SafetyReason.STALE_OBSERVATION] += 1
            reason, joint, message = SafetyReason.STALE_OBSERVATION, "", LIMIT_MESSAGES[SafetyReason.STALE_OBSERVATION]
        self._now = (reason, joint, message)
