"""Owns the episode: services to start, stop, label and discard it, the latched `episode/event`, and its end when something goes wrong.

The life of an episode is `aloe_intervention.episodes.EpisodeManager`; this node carries messages to it and carries out what it asks for. Service
calls that take time are coroutines, so that nothing ever waits in the executor.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_srvs.srv import SetBool

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_core.messages import header_msg, ros_make
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Outcome, SafetyState, Termination
from aloe_intervention.episode_store import EpisodeStore
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
from aloe_intervention.episodes import EpisodeManager
from aloe_msgs.msg import ControlState, EpisodeEvent, PolicyStatus, RecorderStatus, SafetyStatus, TaskState
from aloe_msgs.srv import DiscardEpisode, LabelEpisode, ResetSim, StartEpisode, StopEpisode
from aloe_robot.nodes.lifecycle import spin
from aloe_robot.nodes.parameters import declare
from aloe_robot.nodes.qos import LATCHED

TICK_PERIOD = 0.05  # [s] wall time


class EpisodeNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("episode_node")
        robot = load_robot(declare(self, "robot", "aloha_sim"))
        config = EpisodeConfig(
            simulator=declare(self, "simulator", robot.simulator is not None),
            require_recorder=declare(self, "require_recorder", True),
            require_policy=declare(self, "require_policy", False),
            time_limit_s=declare(self, "time_limit", 0.0),
            ready_timeout_s=declare(self, "ready_timeout", 10.0),
            fault_timeout_s=declare(self, "fault_timeout", 5.0),
            operator=declare(self, "operator", "operator"),
        )
        store = EpisodeStore(declare(self, "bags", "bags"))
        self.manager = EpisodeManager(config, store, self._now())
        if self.manager.running_id:
            self.get_logger().warning(
                f"episode '{self.manager.running_id}' was running when this node ended; looking for it"
            )

        # Re-entrant: a service call that waits for the simulator or the recorder must not hold up anything else. Callbacks still
        # run one after the other, in one thread.
        self.group = ReentrantCallbackGroup()
        self.calls = itertools.count(1)
        self.answers: dict[int, Future] = {}  # number of a service call -> its answer to come
        self.reset: AskReset | None = None  # waits for sim_node: a call before it is discovered would be lost
        self.to_hear = {self.resolve_topic_name(t) for t in (topics.SAFETY_STATUS, robot.joint_states_topic)}
        self.events = self.create_publisher(EpisodeEvent, topics.EPISODE_EVENT, LATCHED)
        self.reset_client = self.create_client(ResetSim, topics.RESET_SIM, callback_group=self.group)
        self.run_client = self.create_client(SetBool, topics.RUN_SIM, callback_group=self.group)
        for kind, name, handler in (
            (StartEpisode, topics.START_EPISODE, self._start),
            (StopEpisode, topics.STOP_EPISODE, self._stop),
            (LabelEpisode, topics.LABEL_EPISODE, self._label),
            (DiscardEpisode, topics.DISCARD_EPISODE, self._discard),
        ):
            self.create_service(kind, name, handler, callback_group=self.group)
        self._listen(
            ControlState,
            topics.CONTROL_STATE,
            10,
            lambda m, now: self.manager.on_control_state(m.episode_id, m.step, now),
        )
        self._listen(RecorderStatus, topics.RECORDER_STATUS, LATCHED, self._on_recorder)
        self._listen(
            SafetyStatus,
            topics.SAFETY_STATUS,
            LATCHED,
            lambda m, now: self.manager.on_safety(SafetyState(m.state), m.message, now),
        )
        self._listen(PolicyStatus, topics.POLICY_STATUS, LATCHED, self._on_policy)
        if config.simulator:
            self._listen(TaskState, topics.TASK_STATE, 10, self._on_task_state)
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TICK_PERIOD, self._tick, callback_group=self.group, clock=wall)
        self.get_logger().info(f"episodes of robot '{robot.name}', bags in {store.bags.resolve()}")

    def _now(self) -> Now:
        return Now(self.get_clock().now().nanoseconds, time.monotonic())

    def _tick(self) -> None:
        self._ask_reset()
        self._do(self.manager.tick(self._now()))

    def _listen(self, kind: type, topic: str, qos: QoSProfile | int, handler: Callable[[Any, Now], Effects]) -> None:
        self.create_subscription(
            kind, topic, lambda m: self._do(handler(m, self._now())), qos, callback_group=self.group
        )

    # -- what the other nodes say --

    def _on_recorder(self, message: RecorderStatus, now: Now) -> Effects:
        return self.manager.on_recorder(
            message.episode_id,
            recording=message.state == RecorderStatus.STATE_RECORDING,
            busy=message.state in (RecorderStatus.STATE_RECORDING, RecorderStatus.STATE_FINALIZING),
            failed=message.state == RecorderStatus.STATE_ERROR,
            hears=self.to_hear <= {t.topic for t in message.topics if t.count},
            message=message.message,
            now=now,
        )

    def _on_policy(self, message: PolicyStatus, now: Now) -> Effects:
        names = {PolicyStatus.STATE_READY: "", PolicyStatus.STATE_LOADING: "it is loading"}
        fault = names.get(message.state, "it has no usable policy")
        return self.manager.on_policy(message.version, fault and (message.message or fault), now)

    def _on_task_state(self, message: TaskState, now: Now) -> Effects:
        outcome = Outcome(message.outcome)
        return self.manager.on_task_state(message.episode_id, message.task, outcome, message.outcome_message, now)

    # -- what the manager asks for --

    def _do(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Announce():
                    self._announce(effect)
                case Save():
                    self._save(effect)
                case AskReset():
                    self.reset = effect
                    self._ask_reset()
                case AskRun():
                    self._ask_run(effect)
                case AnswerStart() | AnswerDiscard():
                    self.answers.pop(effect.call).set_result(effect)

    def _announce(self, effect: Announce) -> None:
        episode = effect.episode
        self.get_logger().info(f"{effect.event.name} {episode.episode_id}: {effect.message}")
        self.events.publish(
            EpisodeEvent(
                header=header_msg(ros_make, effect.stamp_ns),
                event=int(effect.event),
                episode_id=episode.episode_id,
                task=episode.task,
                instruction=episode.instruction,
                seed=episode.seed,
                time_limit=episode.time_limit_s,
                outcome=int(episode.outcome),
                termination_reason=int(episode.termination),
                policy_version=episode.policy_version,
                message=effect.message,
            )
        )

    def _save(self, effect: Save) -> None:
        try:
            self.manager.store.save(effect.episode)
        except AloeError as error:
            self.get_logger().error(str(error))

    def _ask_reset(self) -> None:
        if self.reset is None or not self.reset_client.service_is_ready():
            return
        episode, self.reset = self.reset.episode, None
        if episode.episode_id != self.manager.running_id:
            return  # given up meanwhile
        request = ResetSim.Request(
            task=episode.task, seed=episode.seed, time_limit=episode.time_limit_s, episode_id=episode.episode_id
        )

        def answered(future: Future) -> None:
            answer: ResetSim.Response = future.result()
            self._do(
                self.manager.on_reset(
                    episode.episode_id,
                    error="" if answer.success else answer.error_msg or "sim/reset failed",
                    bad_request=answer.error_code in (ResetSim.Request.UNKNOWN_TASK, ResetSim.Request.BAD_REQUEST),
                    instruction=answer.instruction,
                    time_limit_s=answer.time_limit,
                    now=self._now(),
                )
            )

        self.reset_client.call_async(request).add_done_callback(answered)

    def _ask_run(self, effect: AskRun) -> None:
        def answered(future: Future) -> None:
            answer: SetBool.Response = future.result()
            error = "" if answer.success else answer.message or "sim/run failed"
            self._do(self.manager.on_run(effect.episode_id, error, self._now()))

        self.run_client.call_async(SetBool.Request(data=True)).add_done_callback(answered)

    # -- services --

    async def _start(self, request: StartEpisode.Request, response: StartEpisode.Response) -> StartEpisode.Response:
        wanted = StartRequest(request.task, request.instruction, request.seed, request.time_limit, request.episode_id)
        answer: AnswerStart = await self._call(lambda call: self.manager.start(call, wanted, self._now()))
        response.success = answer.error is StartError.OK
        response.error_code = answer.error.value
        response.error_msg = answer.message
        response.episode_id = answer.episode_id
        if not response.success:
            self.get_logger().error(f"episode/start refused: {answer.message}")
        return response

    def _stop(self, request: StopEpisode.Request, response: StopEpisode.Response) -> StopEpisode.Response:
        try:
            outcome, termination = Outcome(request.outcome), Termination(request.termination_reason)
        except ValueError as error:
            response.error_code, response.error_msg = StopEpisode.Request.BAD_OUTCOME, str(error)
            return response
        response.episode_id = self.manager.running_id
        response.success = bool(response.episode_id)
        if not response.success:
            response.error_code, response.error_msg = StopEpisode.Request.NOT_RUNNING, "no episode is running"
        self._do(self.manager.stop(outcome, termination, request.message, self._now()))
        return response

    def _label(self, request: LabelEpisode.Request, response: LabelEpisode.Response) -> LabelEpisode.Response:
        running = self.manager.running_id
        response.episode_id = request.episode_id or running
        if running and response.episode_id == running:
            response.error_code, response.error_msg = (
                LabelEpisode.Request.STILL_RUNNING,
                f"episode '{running}' is still running",
            )
            return response
        try:
            outcome = Outcome(request.outcome)
        except ValueError as error:
            response.error_code, response.error_msg = LabelEpisode.Request.BAD_OUTCOME, str(error)
            return response
        try:
            response.episode_id, effects = self.manager.label(request.episode_id, outcome, time.time_ns(), self._now())
        except AloeError as error:
            response.error_code, response.error_msg = LabelEpisode.Request.UNKNOWN_EPISODE, str(error)
            return response
        self._do(effects)
        response.success = True
        return response

    async def _discard(
        self, request: DiscardEpisode.Request, response: DiscardEpisode.Response
    ) -> DiscardEpisode.Response:
        answer: AnswerDiscard = await self._call(
            lambda call: self.manager.discard(call, request.episode_id, request.reason, self._now())
        )
        response.moved_to = answer.moved_to
        response.success = bool(answer.moved_to)
        if not response.success:
            response.error_code, response.error_msg = DiscardEpisode.Request.UNKNOWN_EPISODE, answer.message
        return response

    def _call(self, ask: Callable[[int], Effects]) -> Future:
        """The manager's answer to come to what `ask` asks of it."""
        call, future = next(self.calls), Future()
        self.answers[call] = future
        self._do(ask(call))
        return future


def main() -> None:
    """Runs the node until it is interrupted."""
    spin("episode_node", EpisodeNode)


if __name__ == "__main__":
    main()
