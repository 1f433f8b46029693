"""The life of an episode as a state machine without ROS: it is told what happens and answers with what is to be done.

    IDLE -> WAITING -> RESETTING -> STARTING -> RELEASING -> RUNNING -> IDLE        simulator: reset, announce, release
    IDLE -> WAITING -> STARTING -> RUNNING -> IDLE                                  hardware
    RECOVERING -> RUNNING | IDLE                                                    after a restart in the middle of an episode

Every way out of RUNNING (button, service, task, time limit, safety stop, lost node) goes through `_end`, so that all end in the same state.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from aloe_core.bag_labels import Label
from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.vocabulary import EventType, Outcome, SafetyState, Termination
from aloe_intervention.episode_discards import Discards, RecorderView
from aloe_intervention.episode_store import Episode, EpisodeStore
from aloe_intervention.episode_types import (
    Announce,
    AnswerDiscard,
    AnswerStart,
    AskReset,
    AskRun,
    Effects,
    EpisodeConfig,
    Now,
    Save,
    StartError,
    StartRequest,
)


class Phase(Enum):
    """Where an episode stands."""

    IDLE = "idle"
    WAITING = "waiting"  # for the recorder to close the bag of the episode before
    RESETTING = "resetting"  # the simulator has been asked to reset
    STARTING = "starting"  # STARTED is out, control and recorder have yet to name the episode
    RELEASING = "releasing"  # the simulator has been asked to run
    RUNNING = "running"
    RECOVERING = "recovering"  # restarted: who still takes part in the episode?


ALLOWED: dict[Phase, frozenset[Phase]] = {
    Phase.IDLE: frozenset({Phase.WAITING, Phase.RECOVERING}),
    Phase.WAITING: frozenset({Phase.RESETTING, Phase.STARTING, Phase.IDLE}),
    Phase.RESETTING: frozenset({Phase.STARTING, Phase.IDLE}),
    Phase.STARTING: frozenset({Phase.RELEASING, Phase.RUNNING, Phase.IDLE}),
    Phase.RELEASING: frozenset({Phase.RUNNING, Phase.IDLE}),
    Phase.RUNNING: frozenset({Phase.IDLE}),
    Phase.RECOVERING: frozenset({Phase.RUNNING, Phase.IDLE}),
}


class EpisodeManager:
    """See the module. Every method returns what is to be done, in order."""

    def __init__(self, config: EpisodeConfig, store: EpisodeStore, now: Now) -> None:
        self.config = config
        self.store = store
        self.phase = Phase.IDLE
        self.policy_version = ""
        self._policy_fault = "it has not been heard of"
        self.task = ""  # what the simulator says it runs
        self._task_s = now.wall_s
        self._task_episode = ""
        self._call = 0  # of `episode/start`, to be answered
        self._since_s = now.wall_s  # entry into the phase
        self._control_s = now.wall_s
        self._control_step = 0
        self._control_ready = False
        self._safety_stop = ""
        self._recorder = RecorderView()
        self._recorder_hears = False  # else the first steps of an episode would be missing from its bag
        self._discards = Discards(store, config)
        self.episode = store.load()  # under way, or the last one
        self._previous = self.episode
        self._unheard: set[str] = set()  # RECOVERING: who has not been heard of since the restart
        if self.episode is not None and self.episode.running:
            self._unheard = {"control_node"}
            self._unheard |= {"sim_node"} if config.simulator else set()
            self._unheard |= {"recorder_node"} if config.require_recorder else set()
            self._go(Phase.RECOVERING, now)

    def _go(self, phase: Phase, now: Now) -> None:
        assert phase in ALLOWED[self.phase], f"{self.phase} -> {phase}"
        self.phase, self._since_s = phase, now.wall_s

    @property
    def running_id(self) -> str:
        """Episode under way (also while it starts); empty: none."""
        return self.episode.episode_id if self.episode is not None and self.phase is not Phase.IDLE else ""

    # -- start --

    def start(self, call: int, request: StartRequest, now: Now) -> Effects:
        """`episode/start`; exactly one `AnswerStart` with this `call` follows, now or later."""
        if self.phase is not Phase.IDLE:
            message = f"episode '{self.running_id}' is {self.phase.value}"
            return [AnswerStart(call, StartError.ALREADY_RUNNING, message, self.running_id)]
        if self._safety_stop:
            message = (
                f"the safety filter has stopped the robot ({self._safety_stop}); reset it with control/reset_safety"
            )
            return [AnswerStart(call, StartError.SAFETY_STOPPED, message, "")]
        try:
            episode = request.episode(self.config, self.store, self.episode, self.policy_version)
        except AloeError as error:
            return [AnswerStart(call, StartError.BAD_REQUEST, str(error), "")]
        self._previous, self.episode, self._call = self.episode, episode, call
        self._control_ready = False
        self._go(Phase.WAITING, now)
        return self._prepare(now)

    def _held(self, now: Now) -> str:
        """Another episode whose bag the recorder still writes; a start would cut it short."""
        written = self._recorder.writes(now.wall_s, self.config.fault_timeout_s) if self.config.require_recorder else ""
        return "" if written == self.running_id else written

    def _prepare(self, now: Now) -> Effects:
        """WAITING goes on as soon as the bag before is closed."""
        if self.phase is not Phase.WAITING or self.episode is None or self._held(now):
            return []
        if self.config.simulator:
            self._go(Phase.RESETTING, now)
            return [AskReset(self.episode)]
        return self._announce(self.episode, now)

    def on_reset(
        self,
        episode_id: str,
        error: str,
        bad_request: bool,
        instruction: str,
        time_limit_s: float,
        now: Now,
    ) -> Effects:
        """The simulator's answer; `error` empty: done. `instruction` and `time_limit_s` are the task's."""
        if self.phase is not Phase.RESETTING or self.episode is None or self.episode.episode_id != episode_id:
            return []  # an answer that came too late
        if error:
            return self._refuse(
                StartError.BAD_REQUEST if bad_request else StartError.NOT_READY, f"sim_node: {error}", now
            )
        task = self.episode.task or self.task
        instruction = self.episode.instruction or instruction
        episode = replace(self.episode, task=task, instruction=instruction, time_limit_s=time_limit_s)
        return self._announce(episode, now)

    def _announce(self, episode: Episode, now: Now) -> Effects:
        instruction = episode.instruction or episode.task.replace("_", " ")
        self.episode = replace(episode, instruction=instruction, started_ns=now.ros_ns)
        self._go(Phase.STARTING, now)
        message = f"episode '{episode.episode_id}' of task '{episode.task}' starts"
        return [Announce(EventType.STARTED, self.episode, now.ros_ns, message), Save(self.episode)]

    def _missing(self) -> list[str]:
        """Which nodes have not taken up the episode that is starting."""
        missing = []
        if not self._control_ready:
            missing.append("control_node has not taken up the episode (no control/state names it)")
        if self.config.require_recorder and not self._recording():
            message = f": {self._recorder.message}" if self._recorder.message else ""
            missing.append(f"recorder_node does not record it (recorder/status){message}")
        elif self.config.require_recorder and not self._recorder_hears:
            missing.append("recorder_node does not hear control_node and the robot yet (control/safety, joint states)")
        if self.config.require_policy and self._policy_fault:
            missing.append(f"policy_node is not ready (policy/status): {self._policy_fault}")
        return missing

    def _recording(self) -> bool:
        return self._recorder.recording and self._recorder.episode_id == self.running_id

    def _proceed(self, now: Now) -> Effects:
        """STARTING goes on as soon as nobody is missing; fails at once when the recorder says that it cannot."""
        if self.phase is not Phase.STARTING or self.episode is None:
            return []
        recorder = self._recorder
        if self.config.require_recorder and recorder.failed and recorder.episode_id == self.episode.episode_id:
            return self._refuse(StartError.NOT_READY, f"recorder_node: {recorder.message}", now)
        if self._missing():
            return []
        if self.config.simulator:
            self._go(Phase.RELEASING, now)
            return [AskRun(self.episode.episode_id)]
        return self._run(now)

    def on_run(self, episode_id: str, error: str, now: Now) -> Effects:
        """The simulator's answer to `AskRun`; `error` empty: it runs."""
        if self.phase is not Phase.RELEASING or episode_id != self.running_id:
            return []
        return self._refuse(StartError.NOT_READY, f"sim_node: {error}", now) if error else self._run(now)

    def _run(self, now: Now) -> Effects:
        self._go(Phase.RUNNING, now)
        self._control_s = self._task_s = self._recorder.seen_s = now.wall_s
        return [AnswerStart(self._call, StartError.OK, "", self.running_id)]

    def _refuse(self, error: StartError, message: str, now: Now) -> Effects:
        """Gives a start up; what has been announced is announced as stopped."""
        assert self.episode is not None
        episode_id = self.episode.episode_id
        if self.phase in (Phase.WAITING, Phase.RESETTING):
            self._go(Phase.IDLE, now)
            self.episode = self._previous
            return [AnswerStart(self._call, error, message, episode_id)]
        termination = Termination.SAFETY if error is StartError.SAFETY_STOPPED else Termination.FAULT
        return [
            *self._end(Outcome.UNLABELLED, termination, message, now),
            AnswerStart(self._call, error, message, episode_id),
        ]

    # -- what the other nodes say --

    def on_control_state(self, episode_id: str, step: int, now: Now) -> Effects:
        """`control/state`; `step` counts from the start of the episode."""
        ours = bool(episode_id) and episode_id == self.running_id
        previous, self._control_step = self._control_step, step if ours else 0
        if self.phase is Phase.RUNNING and ours and step < previous:
            return self._fault(f"control_node has restarted (step {step} after {previous})", now)
        if not ours:
            return []
        self._control_s = now.wall_s
        if self.phase is Phase.STARTING:
            self._control_ready = True
            return self._proceed(now)
        return self._recover("control_node", now)

    def _recover(self, node: str, now: Now) -> Effects:
        """RECOVERING goes on once all nodes of the episode have been heard: one that has not been discovered yet is not silent."""
        self._unheard.discard(node)
        if self.phase is not Phase.RECOVERING or self._unheard:
            return []
        assert self.episode is not None
        self._go(Phase.RUNNING, now)
        self._control_s = self._task_s = self._recorder.seen_s = now.wall_s
        message = "episode_node has restarted and goes on"
        return [Announce(EventType.STARTED, self.episode, self.episode.started_ns, message)]

    def on_recorder(
        self, episode_id: str, recording: bool, busy: bool, failed: bool, message: str, hears: bool, now: Now
    ) -> Effects:
        """`recorder/status`: `busy` while it records or finalises, `failed` when it cannot record, `hears` once control and robot are in the bag."""
        self._recorder_hears = hears
        self._recorder = RecorderView(episode_id, recording, busy, failed, message, now.wall_s)
        running = self.phase in (Phase.RUNNING, Phase.RECOVERING)
        if running and self.config.require_recorder and not self._recording():
            return self._fault(f"recorder_node does not record: {message or 'it has restarted'}", now)
        return [*self._recover("recorder_node", now), *self._prepare(now), *self._proceed(now), *self._move(now)]

    def on_policy(self, version: str, fault: str, now: Now) -> Effects:
        """`policy/status`: the version that answers, and why none does (empty: it is ready)."""
        self.policy_version, self._policy_fault = version, fault
        return self._proceed(now)

    def on_safety(self, state: SafetyState, message: str, now: Now) -> Effects:
        """`control/safety`; a latched stop ends the episode."""
        self._safety_stop = message or "no reason given" if state is SafetyState.STOPPED else ""
        if not self._safety_stop or self.phase in (Phase.IDLE, Phase.RESETTING):
            return []
        if self.phase in (Phase.WAITING, Phase.STARTING, Phase.RELEASING):
            return self._refuse(StartError.SAFETY_STOPPED, f"safety stop: {self._safety_stop}", now)
        return self._end(Outcome.UNLABELLED, Termination.SAFETY, f"safety stop: {self._safety_stop}", now)

    def on_task_state(self, episode_id: str, task: str, outcome: Outcome, message: str, now: Now) -> Effects:
        """`sim/task_state`; outcome UNLABELLED: the task is not over."""
        self.task, self._task_s = task, now.wall_s
        before, self._task_episode = self._task_episode, episode_id
        recovering = self.phase is Phase.RECOVERING  # its episode was announced after a reset for it
        if (
            recovering or (self.phase is Phase.RUNNING and before == self.running_id)
        ) and episode_id != self.running_id:
            return self._fault("sim_node has restarted", now)
        running = self.phase in (Phase.RUNNING, Phase.RECOVERING)
        if not running or episode_id != self.running_id:
            return []
        if outcome is Outcome.UNLABELLED:
            return self._recover("sim_node", now)
        termination = Termination.TIME_LIMIT if outcome is Outcome.TIMEOUT else Termination.TASK
        return self._end(outcome, termination, message or f"the task ended in {outcome.name.lower()}", now)

    def tick(self, now: Now) -> Effects:
        """Time passes; call it about 20 times a second of wall time."""
        effects = [*self._prepare(now), *self._move(now)]
        waited, config = now.wall_s - self._since_s, self.config
        if self.phase is Phase.WAITING and waited > config.ready_timeout_s:
            message = f"recorder_node is still writing the bag '{self._held(now)}', after {config.ready_timeout_s:g} s"
            effects += self._refuse(StartError.NOT_READY, message, now)
        elif self.phase in (Phase.RESETTING, Phase.RELEASING) and waited > config.ready_timeout_s:
            call = "sim/reset" if self.phase is Phase.RESETTING else "sim/run"
            effects += self._refuse(
                StartError.NOT_READY, f"sim_node did not answer {call} in {config.ready_timeout_s:g} s", now
            )
        elif self.phase is Phase.STARTING and waited > config.ready_timeout_s:
            message = f"{'; '.join(self._missing())}, after {config.ready_timeout_s:g} s"
            effects += self._refuse(StartError.NOT_READY, message, now)
        elif self.phase is Phase.RECOVERING and waited > config.ready_timeout_s:
            silent = ", ".join(sorted(self._unheard))
            message = f"episode_node has restarted and heard nothing of the episode from {silent}"
            effects += self._fault(f"{message} in {config.ready_timeout_s:g} s", now)
        elif self.phase is Phase.RUNNING:
            effects += self._watch(now)
        return effects

    def _watch(self, now: Now) -> Effects:
        assert self.episode is not None
        episode, limit = self.episode, self.config.fault_timeout_s
        if self.config.simulator and now.wall_s - self._task_s > limit:
            return self._fault(f"sim_node has been silent for {limit:g} s", now)
        if now.wall_s - self._control_s > limit:
            return self._fault(f"control_node has not been in the episode for {limit:g} s", now)
        if self.config.require_recorder and now.wall_s - self._recorder.seen_s > limit:
            return self._fault(f"recorder_node has been silent for {limit:g} s", now)
        if not self.config.simulator and 0 < episode.time_limit_s * NANOSECONDS <= now.ros_ns - episode.started_ns:
            message = f"time limit of {episode.time_limit_s:g} s"
            return self._end(Outcome.TIMEOUT, Termination.TIME_LIMIT, message, now)
        return []

    # -- stop, label, discard --

    def stop(self, outcome: Outcome, termination: Termination, message: str, now: Now) -> Effects:
        """`episode/stop`; nothing to do when no episode is under way (see `running_id`). Stopping what is still starting refuses the start."""
        if self.phase is Phase.IDLE:
            return []
        if termination is Termination.NONE:
            termination = Termination.OPERATOR
        message = message or f"stopped: {termination.name.lower()}"
        episode_id = self.running_id
        if self.phase in (Phase.WAITING, Phase.RESETTING):
            return self._refuse(StartError.NOT_READY, message, now)
        starting = self.phase in (Phase.STARTING, Phase.RELEASING)
        answer: Effects = [AnswerStart(self._call, StartError.NOT_READY, message, episode_id)] if starting else []
        return [*self._end(outcome, termination, message, now), *answer]

    def label(self, episode_id: str, outcome: Outcome, unix_ns: int, now: Now) -> tuple[str, Effects]:
        """`episode/label`: writes it beside the bag; returns the episode labelled. `unix_ns`: wall time for the label.

        LABELLED is published only while no episode is under way: the latched event then still names the running one.

        Raises:
            AloeError: no such bag; the message names it.
        """
        episode_id = episode_id or self._last_id()
        message = f"labelled {outcome.name.lower()} by {self.config.operator}"
        self.store.label(episode_id, Label(outcome, unix_ns, self.config.operator, message))
        if self.episode is None or self.episode.episode_id != episode_id:
            effects: Effects = [
                Announce(EventType.LABELLED, Episode(episode_id, running=False, outcome=outcome), now.ros_ns, message)
            ]
        else:
            self.episode = replace(self.episode, outcome=outcome)
            effects = [Announce(EventType.LABELLED, self.episode, now.ros_ns, message), Save(self.episode)]
        return episode_id, effects if self.phase is Phase.IDLE else []

    def discard(self, call: int, episode_id: str, reason: str, now: Now) -> Effects:
        """`episode/discard`; exactly one `AnswerDiscard` with this `call` follows once the recorder has let go of the bag.

        An episode under way is stopped first.
        """
        effects: Effects = []
        try:
            episode_id = episode_id or self._last_id()
            if episode_id == self.running_id:
                effects = self.stop(Outcome.UNLABELLED, Termination.OPERATOR, f"discarded: {reason}", now)
            self._discards.add(call, episode_id, reason, now.wall_s)
        except AloeError as error:
            return [*effects, AnswerDiscard(call, episode_id, "", str(error))]
        return [*effects, *self._move(now)]

    def _last_id(self) -> str:
        if self.episode is None:
            raise AloeError("there has been no episode yet; name one")
        return self.episode.episode_id

    def _move(self, now: Now) -> Effects:
        """Discards whose bag the recorder has let go of."""
        effects: Effects = []
        for done in self._discards.due(self._recorder, now.wall_s):
            if done.moved_to and self.phase is Phase.IDLE:
                ours = self.episode is not None and self.episode.episode_id == done.episode_id
                episode = self.episode if ours and self.episode else Episode(done.episode_id, running=False)
                effects.append(Announce(EventType.DISCARDED, episode, now.ros_ns, done.message))
            effects.append(done)
        return effects

    def _fault(self, message: str, now: Now) -> Effects:
        return self._end(Outcome.UNLABELLED, Termination.FAULT, message, now)

    def _end(self, outcome: Outcome, termination: Termination, message: str, now: Now) -> Effects:
        """The one way an announced episode ends."""
        assert self.episode is not None
        self.episode = replace(self.episode, running=False, outcome=outcome, termination=termination, message=message)
        self._go(Phase.IDLE, now)
        return [Announce(EventType.STOPPED, self.episode, now.ros_ns, message), Save(self.episode)]
