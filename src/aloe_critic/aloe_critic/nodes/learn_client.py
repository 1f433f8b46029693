"""Asks the learner of a launched robot for an improvement, and waits until the robot runs the new policy.

It is an action client of its own, for rclpy's cannot go on with a goal from another participant. That is needed where nothing is sent to a participant
any more, which it is not told; of the one cause that we know see `aloe_robot.nodes.transport`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from action_msgs.msg import GoalInfo, GoalStatus, GoalStatusArray
from action_msgs.srv import CancelGoal
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from unique_identifier_msgs.msg import UUID

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_core.interrupt import Interrupt
from aloe_msgs.action import ImprovePolicy
from aloe_msgs.msg import PolicyStatus
from aloe_robot.nodes.qos import LATCHED
from aloe_robot.nodes.transport import without_shared_memory

SILENCE = 10.0  # [s] without any message, when several nodes publish diagnostics every second: nobody sends to this participant any more
ANSWER_TIMEOUT = 5.0  # [s] for what a learner says at once: that it takes a goal, and which goals it has
ENDS = (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED, GoalStatus.STATUS_CANCELED)
ENDED = "the learner ended in the middle of it (see its log); ask again: it goes on where it was"


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of it."""

    version: str
    checkpoint: str
    episodes: int
    transitions: int
    learn_s: float  # wall time of the improvement [s]
    reload_s: float  # until the policy node answered with the new version [s]


def learn(
    method: str,
    critic_steps: int,
    actor_steps: int,
    on_feedback: Callable[[ImprovePolicy.Feedback], None],
    ready_timeout_s: float = 30.0,
    reload_timeout_s: float = 30.0,
    namespace: str = "/",
) -> Learned:
    """One improvement in ROS contexts of its own; zeros and an empty method leave the choice to the learner's configuration.

    SIGINT and SIGTERM cancel it.

    Raises:
        AloeError: there is no learner, it failed (with its reason) or ended, or the robot did not take the new policy.
    """
    goal = ImprovePolicy.Goal(method=method, critic_steps=critic_steps, actor_steps=actor_steps)
    goal_id = UUID(uuid=np.frombuffer(uuid.uuid4().bytes, np.uint8))
    began, asked, taken = time.monotonic(), False, False
    with Interrupt() as interrupt:
        while True:
            participant = _Participant(namespace, goal_id, on_feedback, interrupt)
            try:
                if not (asked and participant.knows_goal()):
                    if taken:
                        raise AloeError(ENDED)
                    asked = True
                    participant.send(goal, ready_timeout_s)
                result = participant.result()
                learned = time.monotonic()
                participant.wait_for_reload(result.policy_version, reload_timeout_s)
            except _Deaf:
                taken = taken or participant.taken
                continue
            except KeyboardInterrupt:
                if asked and (said := participant.cancel()):
                    print(said, flush=True)
                raise
            finally:
                participant.close()
            return Learned(
                version=result.policy_version,
                checkpoint=result.checkpoint_path,
                episodes=result.episodes,
                transitions=result.transitions,
                learn_s=learned - began,
                reload_s=time.monotonic() - learned,
            )


class _Deaf(Exception):
    """Nothing comes to this participant any more."""


class _Participant:
    """One participant of the graph that follows one goal."""

    def __init__(
        self,
        namespace: str,
        goal_id: UUID,
        on_feedback: Callable[[ImprovePolicy.Feedback], None],
        interrupt: Interrupt,
    ) -> None:
        self._goal_id, self._on_feedback, self._interrupt = goal_id, on_feedback, interrupt
        self.taken = False  # whether the learner is known to have had the goal
        self._goals: dict[bytes, int] | None = None  # those that the learner knows, and their status
        self._policy = PolicyStatus()
        self._heard_s = time.monotonic()
        self._context = Context()
        with without_shared_memory():
            self._context.init()
            self._node = node = Node("learn_client", namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(node)
        action, interface = f"{topics.IMPROVE}/_action", ImprovePolicy.Impl
        self._status = node.resolve_topic_name(f"{action}/status")
        self._send = node.create_client(interface.SendGoalService, f"{action}/send_goal")
        self._result = node.create_client(interface.GetResultService, f"{action}/get_result")
        self._cancel = node.create_client(interface.CancelGoalService, f"{action}/cancel_goal")
        node.create_subscription(GoalStatusArray, self._status, self._on_goals, LATCHED)
        node.create_subscription(interface.FeedbackMessage, f"{action}/feedback", self._on_progress, 10)
        node.create_subscription(PolicyStatus, topics.POLICY_STATUS, self._on_policy, LATCHED)
        node.create_subscription(DiagnosticArray, topics.DIAGNOSTICS, lambda m: self._hear(), 10)

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def knows_goal(self) -> bool:
        """Whether the learner has the goal already, as it has if only its answer was lost."""
        self._spin(lambda: self._goals is not None, ANSWER_TIMEOUT)
        return self._is_known()

    def send(self, goal: ImprovePolicy.Goal, ready_timeout_s: float) -> None:
        """Gives the goal to the learner."""
        if not self._spin(lambda: self._send.service_is_ready() and self._result.service_is_ready(), ready_timeout_s):
            raise AloeError(
                f"no learner_node answers on action '{topics.IMPROVE}'; launch the robot with learner:=true"
            )
        request = ImprovePolicy.Impl.SendGoalService.Request(goal_id=self._goal_id, goal=goal)
        sent = [self._send.call_async(request)]
        # What is sent before both have discovered each other is lost. A goal that comes twice is refused the second time.
        while not self._spin(lambda: self._is_known() or any(s.done() for s in sent), ANSWER_TIMEOUT):
            sent.append(self._send.call_async(request))
        accepted = self._is_known() or any(s.result().accepted for s in sent if s.done())
        if not accepted and not self._spin(self._is_known, ANSWER_TIMEOUT):
            raise AloeError("the learner refused: an improvement is under way")
        self.taken = True

    def result(self) -> ImprovePolicy.Result:
        """Waits for what comes of the goal."""
        request = ImprovePolicy.Impl.GetResultService.Request(goal_id=self._goal_id)
        asked, asked_s = [self._result.call_async(request)], time.monotonic()

        def answered() -> bool:
            """Asks again for the result of a goal that has ended: as above, the answer to the first request may be lost."""
            nonlocal asked_s
            if self._has_ended() and time.monotonic() - asked_s > ANSWER_TIMEOUT:
                asked.append(self._result.call_async(request))
                asked_s = time.monotonic()
            return any(answer.done() for answer in asked)

        self._follow(answered)
        response = next(answer.result() for answer in asked if answer.done())
        if response.status != GoalStatus.STATUS_SUCCEEDED:
            raise AloeError(f"the learner failed: {response.result.error_msg}")
        return response.result

    def cancel(self) -> str:
        """Has the learner give the goal up; what it says to that as one sentence, empty if there is no learner, or it does not have the goal (any more)."""
        if not self._cancel.service_is_ready():
            return ""
        request = ImprovePolicy.Impl.CancelGoalService.Request(goal_info=GoalInfo(goal_id=self._goal_id))
        answer = self._cancel.call_async(request)
        self._executor.spin_until_future_complete(answer, ANSWER_TIMEOUT)
        if not answer.done():
            return f"the learner may go on with it: it has not answered within {ANSWER_TIMEOUT:.0f} s"
        stops = answer.result().return_code == CancelGoal.Response.ERROR_NONE
        return "the learner stops; the next improvement goes on where this one was" if stops else ""

    def wait_for_reload(self, version: str, timeout_s: float) -> None:
        """Waits for the robot to run a version."""
        ended = self._spin(lambda: version in (self._policy.version, self._policy.rejected_version), timeout_s)
        if self._policy.version == version:
            return
        if ended:
            raise AloeError(f"policy_node refused {version}: {self._policy.message}")
        raise AloeError(f"policy_node did not take {version} within {timeout_s:.0f} s")

    def _follow(self, done: Callable[[], bool]) -> None:
        """Spins until `done`.

        Raises:
            AloeError: the learner that was there is not any more; of one that was killed DDS notices that in half a minute.
        """
        learners = self._learners()
        while not done():
            self._spin(done, 0.5)
            if not done() and learners and not learners & self._learners():
                raise AloeError(ENDED)

    def _learners(self) -> set[bytes]:
        """What DDS knows them by: one that was started again is another one."""
        return {bytes(p.endpoint_gid) for p in self._node.get_publishers_info_by_topic(self._status)}

    def _spin(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Spins until `done` or the time is over; whether it is done."""
        end = time.monotonic() + timeout_s
        while not done():
            now = time.monotonic()
            if now > end:
                return False
            if now - self._heard_s > SILENCE and self._learners():
                raise _Deaf
            self._executor.spin_once(timeout_sec=min(0.1, end - now))
            self._interrupt.heed()
        return True

    def _is_known(self) -> bool:
        return bytes(self._goal_id.uuid) in (self._goals or ())

    def _has_ended(self) -> bool:
        return (self._goals or {}).get(bytes(self._goal_id.uuid)) in ENDS

    def _hear(self) -> None:
        self._heard_s = time.monotonic()

    def _on_goals(self, message: GoalStatusArray) -> None:
        self._hear()
        self._goals = {bytes(status.goal_info.goal_id.uuid): status.status for status in message.status_list}
        self.taken = self.taken or self._is_known()

    def _on_progress(self, message: ImprovePolicy.Impl.FeedbackMessage) -> None:
        self._hear()
        if bytes(message.goal_id.uuid) == bytes(self._goal_id.uuid):
            self.taken = True
            self._on_feedback(message.feedback)

    def _on_policy(self, message: PolicyStatus) -> None:
        self._hear()
        self._policy = message
