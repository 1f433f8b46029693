"""The safety filter: the last word on every command.

Kinematic limits change a command and are counted; a joint goes on following its target as closely as they allow. Everything that means "do not trust
this any more" latches: the joints brake inside their limits to a standstill and stay there until `reset`. The first reason to latch stays.

Where nobody drives, in a stop or outside an episode, an arm that is farther than `max_tracking_error` from its command gets its way: the command
goes to where the arm is, inside every limit, and stays there. A collision is then not pushed on, and a hand that moves the arm meets no resistance.
An episode that starts meanwhile waits until the command has arrived.
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

# Our choices. A pose farther outside the position limits than this [rad], [openings] is no noise, and nothing starts from it.
OUTSIDE_TOLERANCE, GRIPPER_OUTSIDE_TOLERANCE = 0.02, 0.1
ANCHOR_TOLERANCE = 0.05  # [rad] gravity and friction leave less between a command and an arm at rest: no reason to start elsewhere than at the command

LIMIT_MESSAGES = {
    SafetyReason.STALE_OBSERVATION: "the joint states are too old, or stamped in the future; holding",
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
        margin = np.where(robot.gripper_mask, GRIPPER_OUTSIDE_TOLERANCE, OUTSIDE_TOLERANCE)
        self._lowest, self._highest = robot.position_min - margin, robot.position_max + margin
        self._limiter = MotionLimiter(MotionLimits.of(robot))
        self._joints = ~robot.gripper_mask  # a gripper that holds something never gets where it is sent
        self._counters = [0] * len(SafetyReason)
        self._latched: tuple[SafetyReason, str, str] | None = None  # reason, joint, message
        self._now: tuple[SafetyReason, str, str] = (SafetyReason.NONE, "", "")
        self._tracking_lost_ns: int | None = None
        self._started = False  # something was commanded
        self._refuge: np.ndarray | None = None  # [A] where the joints go while nobody drives; None: they stay
        self._pushed: tuple[str, str] = ("", "")  # joint and sentence of the one that was moved there
        self._all, self._none = np.ones(robot.action_dim, bool), np.zeros(robot.action_dim, bool)
        self.changed = False  # the last command is not what was asked for

    def reset(self, measured: np.ndarray, afresh: bool = False) -> None:
        """Takes a stop back and starts again at the measured pose `[A]`, for the first time or `afresh` with every joint.

        Else only joints that stand still farther than ANCHOR_TOLERANCE from their commands start there: motion goes on inside the limits, and a
        gripper keeps its command, for it may hold something. Commands on their way to an arm that was moved arrive there first.

        Raises:
            AloeError: the pose is not finite, or a joint would start outside its position limits; the latter is also a latched stop.
        """
        if not np.isfinite(measured).all():
            joint = self._names[int(np.argmin(np.isfinite(measured)))]
            raise AloeError(f"cannot start from the measured pose: the position of '{joint}' is not a finite number")
        if afresh or not self._started:
            moved = self._all
        else:
            tolerance = min(ANCHOR_TOLERANCE, self._settings.max_tracking_error)
            away = self._joints & (np.abs(measured - self._limiter.position) > tolerance)
            moved = away if self._limiter.at_rest else self._none
        self._refuse_outside(measured, moved)
        if moved.any():
            self._limiter.reset(np.where(moved, measured, self._limiter.position))
        self._latched, self._now, self._tracking_lost_ns = None, (SafetyReason.NONE, "", ""), None
        if self._limiter.at_rest:
            self._refuge = None

    def _refuse_outside(self, measured: np.ndarray, moved: np.ndarray) -> None:
        """Stops and raises `AloeError` if a joint that starts at its measured position (bool `[A]`) stands outside its limits."""
        outside = moved & ((measured < self._lowest) | (measured > self._highest))
        if outside.any():
            index, limits = int(outside.argmax()), self._limiter.limits
            joint, allowed = self._names[index], f"{limits.low[index]:.3f} to {limits.high[index]:.3f}"
            message = (
                f"cannot start from the measured pose: '{joint}' stands at {measured[index]:.3f}, outside {allowed}"
            )
            self.stop(SafetyReason.POSITION, message, joint)
            raise AloeError(message)

    def halt(self) -> None:
        """No commands were sent for a while: the joints stand at the last one."""
        if self._started:
            self._limiter.reset(self._limiter.position)

    def stop(self, reason: SafetyReason, message: str, joint: str = "") -> None:
        """Latches a stop; a stop that is latched already keeps its reason."""
        if self._latched is None:
            self._latched = (reason, joint, message)

    @property
    def stopped(self) -> bool:
        return self._latched is not None

    @property
    def retreating(self) -> bool:
        """The commands are on their way to where the arms are."""
        return self._refuge is not None and not self._limiter.at_rest

    @property
    def follows(self) -> bool:
        """Whether targets are followed: no stop is latched and the commands are not to go to where the arms are."""
        return self._latched is None and self._refuge is None

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
        """Whether joint states of this age are too old to act on, or come from so far in the future that their age is unknown."""
        return abs(age_ns) > self._settings.observation_timeout * NANOSECONDS

    def rest(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets `[A]` of a tick in which nobody drives, and which joints hold instead (bool `[A]`)."""
        if self._refuge is None:
            return self._limiter.position.copy(), self._all.copy()
        return self._refuge.copy(), ~self._joints

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
        self._started = True
        self._watch(target, hold, measured, now_ns, age_ns, driving)
        stale = self.stale(age_ns)
        if self._latched is not None or (self._refuge is not None and not stale):
            self._now = (SafetyReason.TRACKING_ERROR, *self._pushed)
            self._counters[self._now[0] if self._latched is None else self._latched[0]] += 1
            self.changed = True
            limited = self._limiter.step(*self.rest())
            if self._limiter.at_rest:
                self._refuge = None
            return limited.position
        limited = self._limiter.step(target if not stale else self._limiter.position, self._all if stale else hold)
        self._judge(limited, self._all if stale else hold, stale, silent)
        return limited.position

    def _watch(
        self, target: np.ndarray, hold: np.ndarray, measured: np.ndarray, now_ns: int, age_ns: int, driving: bool
    ) -> None:
        """Latches what must not go on, and says where joints that are not where they should be go while nobody drives."""
        bad = ~np.isfinite(measured)
        if bad.any():
            joint = self._names[int(np.argmax(bad))]
            self.stop(SafetyReason.NON_FINITE, f"the measured position of '{joint}' is not a finite number", joint)
            return
        bad = ~np.isfinite(target) & ~hold
        if bad.any():
            joint = self._names[int(np.argmax(bad))]
            self.stop(SafetyReason.NON_FINITE, f"the target of '{joint}' is not a finite number", joint)
        if abs(age_ns) > self._settings.observation_stop_timeout * NANOSECONDS:
            age = f"{abs(age_ns) / NANOSECONDS:.2f} s"
            late = f"no joint states for {age}"
            message = late if age_ns > 0 else f"the joint states are stamped {age} in the future; set the clocks right"
            self.stop(SafetyReason.STALE_OBSERVATION, message)
        error = np.abs(measured - self._limiter.position) * self._joints
        worst = int(error.argmax())
        if error[worst] <= self._settings.max_tracking_error:
            self._tracking_lost_ns = None
            return
        if self._tracking_lost_ns is None:
            self._tracking_lost_ns = now_ns
        if now_ns - self._tracking_lost_ns < self._settings.tracking_error_time * NANOSECONDS:
            return
        joint = self._names[worst]
        sentence = f"'{joint}' is {error[worst]:.3f} rad from its command"
        if driving and self._refuge is None:
            self.stop(SafetyReason.TRACKING_ERROR, sentence, joint)
        if not self.stale(age_ns):
            self._pushed = (joint, f"{sentence}; the command goes to where it is")
            # Not followed all the time: an arm that sags under its load would draw its command down with it.
            if self._refuge is None or np.max(np.abs(measured - self._refuge) * self._joints) > ANCHOR_TOLERANCE:
                self._refuge = measured.copy()

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
