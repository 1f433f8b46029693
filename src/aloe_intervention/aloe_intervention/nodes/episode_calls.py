"""The episode and safety services as simple calls for an operator's buttons and keys; what was answered comes back as one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_srvs.srv import Trigger

from aloe_core import topics
from aloe_core.vocabulary import EventType, Outcome, Termination
from aloe_msgs.msg import EpisodeEvent
from aloe_msgs.srv import DiscardEpisode, LabelEpisode, StartEpisode, StopEpisode
from aloe_robot.nodes.qos import EVENTS


class EpisodeCalls:
    """Calls without waiting.

    Args:
        node: whose clients these are.
        tell: gets one sentence per answer, and whether it is good news.
    """

    def __init__(self, node: Node, tell: Callable[[str, bool], None]) -> None:
        self._tell = tell
        self.event: EpisodeEvent | None = None
        node.create_subscription(EpisodeEvent, topics.EPISODE_EVENT, self._on_event, EVENTS)
        self._clients = {
            name: node.create_client(kind, name)
            for kind, name in (
                (StartEpisode, topics.START_EPISODE),
                (StopEpisode, topics.STOP_EPISODE),
                (LabelEpisode, topics.LABEL_EPISODE),
                (DiscardEpisode, topics.DISCARD_EPISODE),
                (Trigger, topics.RESET_SAFETY),
                (Trigger, topics.EMERGENCY_STOP),
            )
        }

    @property
    def running(self) -> bool:
        """Whether an episode is under way."""
        return self.event is not None and self.event.event == EventType.STARTED

    def do(self, action: str, task: str = "", seed: int = -1) -> None:
        """Carries out an action: start, stop, success, failure, discard, reset_safety or emergency_stop.

        success and failure stop a running episode, or label the last one.
        """
        if action == "start":
            self._call(topics.START_EPISODE, StartEpisode.Request(task=task, seed=seed), "episode started")
        elif action == "discard":
            self._call(topics.DISCARD_EPISODE, DiscardEpisode.Request(reason="operator"), "episode discarded")
        elif action == "reset_safety":
            self._call(topics.RESET_SAFETY, Trigger.Request(), "safety stop taken back")
        elif action == "emergency_stop":
            self._call(topics.EMERGENCY_STOP, Trigger.Request(), "emergency stop")
        else:
            outcome = Outcome.UNLABELLED if action == "stop" else Outcome[action.upper()]
            if self.running or action == "stop":
                request = StopEpisode.Request(
                    outcome=outcome, termination_reason=Termination.OPERATOR, message="operator"
                )
                self._call(topics.STOP_EPISODE, request, f"episode stopped: {outcome.name.lower()}")
            else:
                self._call(
                    topics.LABEL_EPISODE, LabelEpisode.Request(outcome=outcome), f"labelled: {outcome.name.lower()}"
                )

    def _call(self, name: str, request: Any, done: str) -> None:
        client = self._clients[name]
        if not client.service_is_ready():
            self._tell(f"nobody answers on service '{name}'", False)
            return
        client.call_async(request).add_done_callback(lambda future: self._answer(future.result(), done))

    def _answer(self, response: Any, done: str) -> None:
        why = response.message if isinstance(response, Trigger.Response) else response.error_msg
        self._tell(done if response.success else why, response.success)

    def _on_event(self, message: EpisodeEvent) -> None:
        self.event = message
