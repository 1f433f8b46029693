"""Runs episodes one after the other through `episode_node`, as a person at the terminal would, and tells how each one ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_core.interrupt import Interrupt
from aloe_core.messages import stamp_to_ns
from aloe_core.vocabulary import Outcome, Termination
from aloe_msgs.msg import ControlState, EpisodeEvent, RecorderStatus
from aloe_msgs.srv import StartEpisode, StopEpisode
from aloe_robot.nodes.qos import EVENTS, LATCHED
from aloe_robot.nodes.transport import without_shared_memory

ANSWER_TIMEOUT = 5.0  # [s] wall time after an episode was announced: the answer to its start is lost
STOP_TIMEOUT = 5.0  # [s] wall time that an interrupted run waits for the answer to episode/stop
BY_HAND = "stop it with `aloe operate` (key x) or the service episode/stop"


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How one episode ended."""

    episode_id: str
    seed: int
    outcome: Outcome
    termination: Termination
    steps: int  # control ticks
    duration_s: float  # [s] robot time
    wall_s: float  # [s]
    interventions: int
    human_ticks: int
    bag: str  # folder; empty when nothing records
    complete: bool  # the recorder's audit passed; false when nothing records


class EpisodeClient(Node):
    """Starts episodes and waits for their end. Give it a node of its own; it spins itself."""

    def __init__(self, namespace: str = "/") -> None:
        super().__init__("episode_client", namespace=namespace)
        self._ended: dict[str, EpisodeEvent] = {}  # episode -> the first event that says it is over
        self._announced: EpisodeEvent | None = None  # the last STARTED since a start was asked for ..
        self._announced_s = 0.0  # .. and when it came, wall time [s]
        self._recorder: RecorderStatus | None = None
        self._steps = self._interventions = self._human_ticks = 0
        self._first_ns = self._last_ns = 0
        self._running = ""
        self.interrupt = Interrupt()
        self._starting: Future | None = None  # answer to the latest start that was asked for
        self.create_subscription(EpisodeEvent, topics.EPISODE_EVENT, self._on_event, EVENTS)
        self.create_subscription(RecorderStatus, topics.RECORDER_STATUS, self._on_recorder, LATCHED)
        self.create_subscription(ControlState, topics.CONTROL_STATE, self._on_control, 50)
        self._start = self.create_client(StartEpisode, topics.START_EPISODE)
        self._stop = self.create_client(StopEpisode, topics.STOP_EPISODE)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Waits for `episode_node`; raises `AloeError` after `timeout_s` [s] of wall time."""
        began = time.monotonic()
        while not self._start.wait_for_service(0.25):
            self.interrupt.heed()
            if time.monotonic() - began > timeout_s:
                raise AloeError(
                    f"no episode_node answers on service '{topics.START_EPISODE}' after {timeout_s:.0f} s; is the robot launched?"
                )

    def run(
        self,
        task: str,
        seed: int,
        time_limit: float,
        timeout_s: float,
        recorded: bool,
        episode_id: str = "",
        retry_s: float = 60.0,
    ) -> EpisodeResult:
        """Runs one episode to its end.

        Args:
            task: name of the task.
            seed: seed of the simulator's reset; -1 on a real robot.
            time_limit: robot time [s]; 0: the task's own.
            timeout_s: wall time without any progress of the control loop after which the wait is given up [s].
            recorded: wait until the recorder has closed the bag.
            episode_id: its name; empty: made from date and task.
            retry_s: wall time during which NOT_READY answers are asked again, for nodes that are still starting [s].

        Raises:
            AloeError: the episode could not be started, or the graph went silent.
        """
        began = time.monotonic()
        self._running, self._starting = "", None
        self._ended.clear()
        self._steps = self._interventions = self._human_ticks = self._first_ns = self._last_ns = 0
        request = StartEpisode.Request(task=task, seed=seed, time_limit=time_limit, episode_id=episode_id)
        attempt = 1
        while True:
            future = self._ask_start(request)
            lost = partial(self._answer_is_lost, request)
            self._spin(lambda f=future, lost=lost: f.done() or lost(), timeout_s, "episode_node to start the episode")
            if not future.done():
                assert self._announced is not None
                episode = self._announced.episode_id
                break
            response = future.result()
            episode = response.episode_id
            if response.success:
                break
            if response.error_code != StartEpisode.Request.NOT_READY or time.monotonic() - began > retry_s:
                running = response.error_code == StartEpisode.Request.ALREADY_RUNNING
                raise AloeError(f"the episode was not started: {response.error_msg}{f'; {BY_HAND}' if running else ''}")
            attempt += 1  # a name that was announced is used up
            request.episode_id = f"{episode_id}-try{attempt}" if episode_id else ""
        self._running = episode

        def closed() -> bool:
            status = self._recorder
            idle = (RecorderStatus.STATE_IDLE, RecorderStatus.STATE_ERROR)
            return status is not None and status.episode_id == episode and status.state in idle

        self._spin(lambda: episode in self._ended, timeout_s, f"the end of episode {episode}")
        if recorded:
            self._spin(closed, timeout_s, f"the recorder to close the bag of episode {episode}")
        event, status = self._ended[episode], self._recorder
        return EpisodeResult(
            episode_id=episode,
            seed=seed,
            outcome=Outcome(event.outcome),
            termination=Termination(event.termination_reason),
            steps=self._steps,
            duration_s=(self._last_ns - self._first_ns) / 1e9,
            wall_s=time.monotonic() - began,
            interventions=self._interventions,
            human_ticks=self._human_ticks,
            bag=status.bag_path if recorded and status is not None else "",
            complete=bool(recorded and status is not None and status.complete),
        )

    def _ask_start(self, request: StartEpisode.Request) -> Future:
        self.interrupt.heed()
        self._announced = None
        self._starting = self._start.call_async(request)
        return self._starting

    def _answer_is_lost(self, request: StartEpisode.Request) -> bool:
        """Whether the episode was announced some time ago; DDS loses an answer that is sent before both nodes have discovered each other."""
        event = self._announced
        if event is None or event.seed != request.seed:
            return False
        ours = request.episode_id in ("", event.episode_id) and request.task in ("", event.task)
        return ours and time.monotonic() - self._announced_s > ANSWER_TIMEOUT

    def stop(self) -> str:
        """Stops the episode that `run` was interrupted in, unlabelled; what became of it as one sentence, empty if there was none."""
        if self._starting is None or self._running in self._ended:
            return ""
        if not self._running:  # a start that is refused, perhaps because of somebody else's episode, is refused at once
            rclpy.spin_until_future_complete(self, self._starting, timeout_sec=0.5)
            if self._starting.done() and not self._starting.result().success:
                return ""
        request = StopEpisode.Request(
            outcome=Outcome.UNLABELLED, termination_reason=Termination.OPERATOR, message="interrupted"
        )
        future = self._stop.call_async(request)
        rclpy.spin_until_future_complete(self, future, timeout_sec=STOP_TIMEOUT)
        if not future.done():
            return f"episode {self._running} may still run: episode/stop was not answered within {STOP_TIMEOUT:.0f} s; {BY_HAND}"
        response = future.result()
        return f"stopped episode {response.episode_id}" if response.success else response.error_msg

    def _spin(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Spins until `done`; the limit counts from the last tick of the control loop."""
        seen, since = -1, time.monotonic()
        while not done():
            rclpy.spin_once(self, timeout_sec=0.1)
            self.interrupt.heed()
            if self._steps != seen:
                seen, since = self._steps, time.monotonic()
            if time.monotonic() - since > timeout_s:
                raise AloeError(
                    f"waited {timeout_s:.0f} s for {what} and saw no control tick meanwhile; look at the nodes' output"
                )

    def _on_event(self, message: EpisodeEvent) -> None:
        if message.event == EpisodeEvent.STARTED:
            self._announced, self._announced_s = message, time.monotonic()
            self._ended.pop(message.episode_id, None)  # a start that was refused is tried again under the same name
        else:
            self._ended.setdefault(message.episode_id, message)  # a label or a discard comes after the end

    def _on_recorder(self, message: RecorderStatus) -> None:
        self._recorder = message

    def _on_control(self, message: ControlState) -> None:
        announced = "" if self._announced is None else self._announced.episode_id
        if message.episode_id and message.episode_id in (self._running, announced):
            stamp = stamp_to_ns(message.header.stamp)
            self._first_ns = self._first_ns or stamp
            self._last_ns = stamp
            self._steps = message.step + 1
            self._interventions = max(self._interventions, message.intervention_id)
            self._human_ticks += any(mode == ControlState.MODE_HUMAN for mode in message.mode)


def run_episodes(
    wanted: Sequence[tuple[int, str]],
    task: str,
    time_limit: float,
    timeout_s: float,
    recorded: bool,
    on_result: Callable[[EpisodeResult], None],
    namespace: str = "/",
) -> None:
    """Runs an episode per (seed, episode id) in a ROS context of its own; arguments as in `EpisodeClient.run`.

    SIGINT and SIGTERM stop the episode under way: a robot does not go on when the one who started it is gone.
    """
    with without_shared_memory():
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # rclpy's own would leave no graph to call in
        client = EpisodeClient(namespace)
    with client.interrupt:
        try:
            client.wait_until_ready(timeout_s)
            for seed, episode_id in wanted:
                on_result(client.run(task, seed, time_limit, timeout_s, recorded, episode_id))
        except KeyboardInterrupt:
            if said := client.stop():
                print(said, flush=True)
            raise
        finally:
            client.destroy_node()
            rclpy.try_shutdown()
