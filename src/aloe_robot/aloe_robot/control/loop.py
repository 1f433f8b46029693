"""The control loop: everything that happens in one tick, as one pure object that the ROS node and the lockstep roll-out share."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

from aloe_core.chunk import NANOSECONDS, ActionChunk
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Mode, Outcome, SafetyReason, Source
from aloe_robot.control.arbiter import ArmState, Event
from aloe_robot.control.buffer import ChunkBuffer, Refusal, Row
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.hand import ArmHand
from aloe_robot.control.records import ChunkRequest, ControlSnapshot, SafetyReport, TeleopInput, TickResult, Transition
from aloe_robot.control.requests import ChunkRequester
from aloe_robot.control.safety import SafetyFilter
from aloe_robot.control.transitions import TransitionLog

NO_TELEOP: Mapping[str, TeleopInput] = MappingProxyType({})
SCRIPTED_VERSION = "scripted"  # chunks whose policy version starts so count as Source.SCRIPTED


class ControlLoop:
    """Chunks and teleoperation in, commands out. Per tick: `observe`, answer what is `due`, `act`.

        loop.start_episode("episode", "instruction")
        for request in loop.observe(now_ns, stamp_ns, measured, teleop):
            ...  # ask the policy
        while loop.due(now_ns):  # lockstep only: on hardware nothing waits
            loop.add_chunk(...)
        result = loop.act()

    `tick` is observe, add and act in one call, for callers that never wait. All times are integer nanoseconds, vectors are `[A]` in the robot
    description's action order, joints [rad], grippers 0..1. The first `observe` of the loop anchors the commands at the measured pose, those of the
    episodes as `SafetyFilter.reset` says.
    """

    def __init__(self, robot: RobotDescription, config: ControlConfig | None = None) -> None:
        self.robot, self.config = robot, config or ControlConfig()
        period_ns, self._size = robot.control_dt_ns, robot.action_dim
        self.buffer = ChunkBuffer(
            robot.action_dim,
            self.config.execution_mode,
            self.config.ensemble_decay,
            round(self.config.cross_fade_time * NANOSECONDS),
            tolerance_ns=period_ns,
        )
        self._safety = SafetyFilter(robot)
        self._requester = ChunkRequester(self.config, period_ns)
        self._log = TransitionLog()
        self._hands = [
            ArmHand(name, span, self.config.engage_ticks)
            for name, span in zip(robot.arm_names, robot.arm_slices, strict=True)
        ]
        self._engage_fade, self._release_fade = (
            round(t * robot.control_rate_hz) for t in (self.config.engage_blend_time, self.config.release_blend_time)
        )
        self._episode_id = self._instruction = ""
        self._resumed_from_ns: int | None = None
        self._anchored = self._afresh = False
        self._observed: tuple[int, int, np.ndarray] | None = None  # now, stamp, measured of the tick under way
        self._requests: tuple[ChunkRequest, ...] = ()
        self._teleop: Mapping[str, TeleopInput] = NO_TELEOP
        self._interventions = self._ticks = self._starved_ticks = self._supplied_ns = 0
        self._source = (Source.NONE,) * len(self._hands)
        self._row: Row | None = None
        self._now_ns = self._stamp_ns = self._acted_ns = 0
        self._measured = robot.home.copy()

    # Episodes

    @property
    def episode_id(self) -> str:
        """The running episode; empty: none."""
        return self._episode_id

    def start_episode(
        self, episode_id: str, instruction: str = "", resumed_from_ns: int | None = None, afresh: bool = False
    ) -> None:
        """Starts an episode with the next `observe`.

        Args:
            episode_id: not empty.
            instruction: goes into the requests to the policy.
            resumed_from_ns: when an earlier process began this episode; steps are counted from then, so that none is used twice.
            afresh: a simulator has put the robot somewhere: every joint and gripper starts at the pose measured there, whatever was commanded before.

        Raises:
            AloeError: the id is empty.
        """
        if not episode_id:
            raise AloeError("an episode needs an id")
        self._episode_id, self._instruction, self._resumed_from_ns = episode_id, instruction, resumed_from_ns
        self._anchored, self._afresh = False, afresh
        self._observed = None
        self.buffer.start(episode_id)
        self._requester.start()
        self._log.start(episode_id)
        self._interventions = self._starved_ticks = 0
        self._row, self._source = None, (Source.NONE,) * len(self._hands)
        for hand in self._hands:
            hand.fresh_ns, hand.followed = 0, False
            hand.arbiter.fire(Event.START)

    def stop_episode(self, outcome: Outcome) -> Transition | None:
        """Ends the episode; the arms brake and hold. Returns the last transition, None if there was no tick."""
        last = self._log.finish(outcome)
        self._episode_id, self._instruction, self._resumed_from_ns = "", "", None
        self._observed, self._row, self._source = None, None, (Source.NONE,) * len(self._hands)
        self.buffer.start(None)
        self._requester.start()
        for hand in self._hands:
            hand.arbiter.fire(Event.END)
        return last

    # One tick

    def observe(
        self, now_ns: int, stamp_ns: int, measured: np.ndarray, teleop: Mapping[str, TeleopInput] = NO_TELEOP
    ) -> tuple[ChunkRequest, ...]:
        """First half of a tick: who drives each arm, and which chunk the policy is asked for.

        Args:
            now_ns: time of the tick; rows of chunks are looked up for it.
            stamp_ns: time of the observation.
            measured: `[A]` positions of that observation.
            teleop: newest command of each arm that has any, by arm name.

        Raises:
            AloeError: the pose to start from is not finite, has the wrong size, or lies outside the position limits, which also is a safety stop.
        """
        measured = np.asarray(measured, dtype=np.float64)
        if measured.shape != (self._size,):
            raise AloeError(
                f"the measured positions have shape {measured.shape}, the robot '{self.robot.name}' has {self.robot.action_dim} entries"
            )
        self._now_ns, self._stamp_ns, self._measured = now_ns, stamp_ns, measured
        if not self._anchored:
            self._anchor(measured)
        if self._safety.stopped:
            self._fire(Event.STOP)
        self._teleop = teleop
        released, humans_before = False, any(h.arbiter.human for h in self._hands)
        engaged = False
        for hand in self._hands:
            before = hand.arbiter.state
            event = hand.arbiter.hear(*self._wish(hand, now_ns))
            engaged |= event is Event.ENGAGE
            if hand.arbiter.state is ArmState.HUMAN and before is not ArmState.HUMAN:
                hand.fade(self._safety.command[hand.span], self._engage_fade)
            elif event is Event.RELEASE:
                released = True
                hand.fresh_ns = stamp_ns
        self._interventions += engaged and not humans_before
        self._requests = self._plan(stamp_ns, released) if self._episode_id else ()
        self._observed = (now_ns, stamp_ns, measured)
        return self._requests

    def due(self, now_ns: int) -> tuple[int, ...]:
        """Ids of the requests whose answer this tick must have; in lockstep `act` waits for them."""
        return self._requester.due(now_ns)

    def give_up(self, request_id: int) -> None:
        """The answer will not come: the request counts as lost and the tick goes on without it."""
        self._requester.give_up(request_id, self._stamp_ns)

    def add_chunk(self, chunk: ActionChunk, now_ns: int) -> Refusal | None:
        """Takes a chunk, asked for or not; returns why it was refused."""
        return self._requester.answer(chunk, self.buffer, now_ns)

    def act(self) -> TickResult:
        """Second half of a tick: targets, safety, command."""
        if self._observed is None:
            raise RuntimeError("act needs an observation first")
        (now_ns, stamp_ns, measured), self._observed = self._observed, None
        adopted = self.buffer.advance(now_ns)
        if adopted is not None:
            self._requester.adopted(adopted, now_ns)
        target, hold, silent = self._targets(now_ns)
        driving, followed = bool(self._episode_id), self._safety.follows
        commanded = self._safety.step(target, hold, measured, now_ns, now_ns - stamp_ns, silent, driving)
        if self._safety.stopped:
            self._fire(Event.STOP)
        moved = followed and not self._safety.stale(now_ns - stamp_ns)
        self._source = tuple(self._driver(hand) if moved else Source.NONE for hand in self._hands)
        transition = None
        if driving:
            transition = self._log.add(
                stamp_ns, self._source, commanded, self._row, self._intervention_id, self._safety.changed
            )
        self._ticks, self._acted_ns = self._ticks + 1, stamp_ns
        state = self.state
        proposal = None if self._row is None else self._row.positions
        report = self._safety.report
        return TickResult(now_ns, commanded, self._source, proposal, self._requests, transition, state, report)

    def tick(
        self,
        now_ns: int,
        stamp_ns: int,
        measured: np.ndarray,
        teleop: Mapping[str, TeleopInput] = NO_TELEOP,
        chunks: Iterable[ActionChunk] = (),
    ) -> TickResult:
        """A whole tick without waiting: a chunk asked for in it is executed in a later one."""
        for chunk in chunks:
            self.add_chunk(chunk, now_ns)
        self.observe(now_ns, stamp_ns, measured, teleop)
        return self.act()

    # Safety

    def stop(self, reason: SafetyReason, message: str, joint: str = "") -> None:
        """Latches a safety stop: every arm brakes and holds from the next tick on, until `reset_safety`."""
        self._safety.stop(reason, message, joint)

    def reset_safety(self) -> None:
        """Takes a stop back; the next tick starts again from the measured pose as `SafetyFilter.reset` says, with a fresh chunk.

        Raises:
            AloeError: the pose measured last is not finite, a joint that must start there stands outside its limits, or an arm is still on its way.
        """
        if self._safety.retreating:
            raise AloeError("the commands are still on their way to where the arms stand; reset again in a second")
        self._safety.reset(self._measured)
        self._anchored = False
        for hand in self._hands:
            hand.fresh_ns = self._stamp_ns + 1
            hand.arbiter.fire(Event.RESET)
            if self._episode_id:
                hand.arbiter.fire(Event.START)

    def halt(self) -> None:
        """No commands are sent for a while: the robot stands at the last one, and the next tick starts from the pose measured then."""
        self._safety.halt()
        self._anchored = False

    @property
    def safety(self) -> SafetyReport:
        return self._safety.report

    @property
    def lost_requests(self) -> int:
        """Requests without an answer in time, since the loop was made."""
        return self._requester.lost

    @property
    def state(self) -> ControlSnapshot:
        """What the last tick did; between ticks it shows at once that an episode has started or ended."""
        row = self._row
        return ControlSnapshot(
            stamp_ns=self._acted_ns,
            episode_id=self._episode_id,
            tick=self._ticks,
            step=max(self._log.step - 1, 0),
            mode=tuple(
                Mode.HOLD
                if hand.arbiter.mode in (Mode.POLICY, Mode.HUMAN) and source == Source.NONE
                else hand.arbiter.mode
                for hand, source in zip(self._hands, self._source, strict=True)
            ),
            commanded=self._safety.command,
            measured=self._measured,
            chunk_id=0 if row is None else row.chunk_id,
            chunk_step=0 if row is None else row.chunk_step,
            remaining_steps=self.buffer.remaining(self._now_ns),
            pending_requests=self._requester.pending,
            starved_ticks=self._starved_ticks,
            discarded_chunks=self.buffer.refused.total(),
            discard_reason=self.buffer.last_refusal,
            intervention_id=self._intervention_id,
            policy_version="" if row is None else row.policy_version,
        )

    def forecast(self, ticks: int) -> np.ndarray:
        """The next commands `[n, A]`, n <= `ticks`, as they will be if no new chunk, human or stop comes.

        Ends with the running chunk, or when every joint stands still. For outputs that send a trajectory ahead instead of one command per tick.
        """
        limiter, hands = self._safety.limiter(), [copy.copy(hand) for hand in self._hands]
        commands = []
        for tick in range(1, ticks + 1):
            time_ns, driven = self._now_ns + tick * self.robot.control_dt_ns, False
            target, hold = self._safety.rest()
            for hand in hands:
                row = self.buffer.row(time_ns, hand.fresh_ns) if hand.arbiter.state is ArmState.POLICY else None
                if row is not None and self._safety.follows:
                    target[hand.span], hold[hand.span], driven = hand.blend(row.positions[hand.span]), False, True
            commands.append(limiter.step(target, hold).position)
            if not driven and limiter.at_rest:
                break
        return np.stack(commands)

    # Inside

    def _fire(self, event: Event) -> None:
        for hand in self._hands:
            hand.arbiter.fire(event)

    @property
    def _intervention_id(self) -> int:
        return self._interventions if any(h.arbiter.human for h in self._hands) else 0

    def _anchor(self, measured: np.ndarray) -> None:
        """Starts from the pose `measured [A]`, as the loop's or an episode's first tick does. A latched stop stays latched."""
        latched = self._safety.report if self._safety.stopped else None
        self._safety.reset(measured, self._afresh)
        if latched is not None:
            self._safety.stop(latched.reason, latched.message, latched.joint)
        self._anchored, self._afresh = True, False
        self._supplied_ns = self._now_ns
        if self._resumed_from_ns is not None:
            passed_ns, self._resumed_from_ns = max(0, self._stamp_ns - self._resumed_from_ns), None
            self._log.start(self._episode_id, passed_ns // self.robot.control_dt_ns)

    def _wish(self, hand: ArmHand, now_ns: int) -> tuple[bool, bool]:
        """Whether the human asks for this arm, and whether the targets can be followed."""
        teleop = self._teleop.get(hand.name)
        if teleop is None:
            return False, False
        return teleop.engaged, not self._excuse(hand, teleop, now_ns)

    def _excuse(self, hand: ArmHand, teleop: TeleopInput, now_ns: int) -> str:
        """Why the human's targets cannot be followed; empty: they can."""
        age_s = (now_ns - teleop.stamp_ns) / NANOSECONDS
        if age_s > self.robot.safety.teleop_timeout:
            return f"{hand.name}: no teleoperation command for {age_s:.2f} s"
        if -age_s > self.robot.safety.teleop_timeout:
            return f"{hand.name}: the teleoperation command is stamped {-age_s:.2f} s in the future"
        if not teleop.healthy:
            return f"{hand.name}: {teleop.message or 'teleoperation is not healthy'}"
        wanted = hand.span.stop - hand.span.start
        size = 0 if teleop.positions is None else len(teleop.positions)
        if teleop.engaged and size != wanted:
            return f"{hand.name}: a teleoperation command has {size} targets, the arm has {wanted}"
        return ""

    def _plan(self, stamp_ns: int, released: bool) -> tuple[ChunkRequest, ...]:
        hands = self._hands
        waiting = [h for h in hands if h.arbiter.state in (ArmState.HOLD, ArmState.POLICY)]
        humans = any(h.arbiter.human for h in hands)
        if not waiting and not humans:
            return ()
        fresh_ns = max((h.fresh_ns for h in waiting), default=0)
        request = self._requester.plan(
            stamp_ns, self.buffer, self._instruction, fresh_ns, released, shadow=humans and not waiting
        )
        return () if request is None else (request,)

    def _targets(self, now_ns: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Targets `[A]`, which joints nobody drives, and who went silent."""
        target, hold = self._safety.command.copy(), np.ones(self._size, bool)
        self._row = self.buffer.row(now_ns)
        rows = {0: self._row}
        silent, starved = "", False
        for hand in self._hands:
            arbiter, span = hand.arbiter, hand.span
            if hand.fresh_ns not in rows:
                rows[hand.fresh_ns] = self.buffer.row(now_ns, hand.fresh_ns)
            row, before = rows[hand.fresh_ns], arbiter.state
            arbiter.supply(row is not None)
            starved |= arbiter.state is ArmState.HOLD and arbiter.awaits_policy
            if arbiter.state is ArmState.POLICY and row is not None:
                if before is ArmState.HOLD and hand.followed:
                    hand.fade(target[span], self._release_fade)
                hand.followed = True
                target[span], hold[span] = hand.blend(row.positions[span]), False
            elif arbiter.state is ArmState.HUMAN:
                hand.followed = True
                target[span], hold[span] = hand.blend(np.asarray(self._teleop[hand.name].positions, np.float64)), False
            elif arbiter.state is ArmState.LOST:
                silent = self._excuse(hand, self._teleop[hand.name], now_ns)
        if starved:
            self._starved_ticks += 1
            quiet_ns = now_ns - self._supplied_ns
            if quiet_ns > self.robot.safety.policy_timeout * NANOSECONDS and not silent:
                silent = f"no usable chunk from the policy for {quiet_ns / NANOSECONDS:.2f} s"
        else:
            self._supplied_ns = now_ns
        return target, hold, silent

    def _driver(self, hand: ArmHand) -> Source:
        if hand.arbiter.state is ArmState.HUMAN:
            return Source.HUMAN
        if hand.arbiter.state is not ArmState.POLICY:
            return Source.NONE
        scripted = self._row is not None and self._row.policy_version.startswith(SCRIPTED_VERSION)
        return Source.SCRIPTED if scripted else Source.POLICY
