"""The policy as a ROS node: answers chunk requests from the observation they name, and changes to a new policy between two chunks.

It never guesses: an observation is built when it can no longer change (`ObservationBuilder.ready`), or after `max_wait` from what is there.
A request that comes again is not computed again: the control loop asks again when the request or its answer may have been lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.publisher import Publisher

from aloe_core import topics
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import chunk_msg, ros_make, stamp_to_ns
from aloe_core.observation import ObservationBuilder
from aloe_core.policy import ChunkPolicy
from aloe_core.robot import load_robot
from aloe_msgs.msg import ActionChunk as ActionChunkMsg
from aloe_msgs.msg import ChunkRequest, PolicyStatus, PolicyVersion
from aloe_policy.inference import ChunkJob, InferenceWorker, PolicyOffer
from aloe_policy.nodes.sensors import subscribe_sensors
from aloe_robot.nodes.lifecycle import ManagedNode, RCLError, run
from aloe_robot.nodes.qos import LATCHED

ANSWERS_KEPT = 32  # requests; a replay asks several again when their answers, or the critic's to these, were lost
LOOK_PERIOD = 0.02  # [s] wall time between looks at requests that have waited too long
REPORT_PERIOD = 1.0  # [s]


@dataclass(slots=True)
class _Waiting:
    request: ChunkRequest
    since: float  # monotonic [s]


class PolicyNode(ManagedNode):
    """See the module. Parameters: `robot`, `policy`, `device`, `seed`, `threads`, `max_wait`."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        self.declare_parameter("robot", "aloha_sim")
        self.declare_parameter("policy", "")  # checkpoint folder or name; empty: wait for a PolicyVersion
        self.declare_parameter(
            "device", ""
        )  # for policies that run on one: cpu, cuda, cuda:1; empty: the policy's default
        self.declare_parameter("seed", 0)
        self.declare_parameter("threads", 1)  # of the numerical library
        self.declare_parameter("max_wait", 0.5)  # [s] wall time a request waits for late sensor messages
        self._lock = threading.Lock()
        self._builder: ObservationBuilder | None = None
        self._builder_of: ChunkPolicy | None = None
        self._waiting: list[_Waiting] = []
        self._worker: InferenceWorker | None = None
        self._outputs: list[Publisher] = []
        self._owned: list = []
        self._sensors: list = []
        self._forget()

    def _forget(self) -> None:
        """What is known of policies and requests goes with the worker that it is known of."""
        self._state, self._message, self._rejected = PolicyStatus.STATE_LOADING, "", ""
        self._policy: ChunkPolicy | None = None
        self._offered: tuple[str, str] | None = None  # version and hash that were announced last and not refused
        self._answers: dict[tuple, ActionChunkMsg | None] = {}  # requests that went to the worker -> their chunk
        self._staleness: dict[str, float] = {}  # of the newest chunk
        self._failures = 0

    def configure(self) -> None:
        value = lambda name: self.get_parameter(name).value  # noqa: E731
        self.robot = load_robot(value("robot"))
        options = {"device": value("device")} if value("device") else {}
        threads = value("threads")
        if threads < 1:
            raise AloeError(f"parameter 'threads': {threads} is not above 0")
        self._chunk_pub = self.create_publisher(ActionChunkMsg, topics.CHUNK, 10)
        self._status_pub = self.create_publisher(PolicyStatus, topics.POLICY_STATUS, LATCHED)
        self._outputs = [self._chunk_pub, self._status_pub]
        self._worker = InferenceWorker(self.robot, value("seed"), self, lambda: _limit_threads(threads), **options)
        self._max_wait = value("max_wait")
        if value("policy"):
            self._worker.submit(PolicyOffer(value("policy")))
        else:
            self._message = f"no policy yet; waiting for one on {topics.POLICY_VERSION}"

    def activate(self) -> None:
        self._owned = [
            self.create_subscription(ChunkRequest, topics.CHUNK_REQUEST, self._on_request, 10),
            self.create_subscription(PolicyVersion, topics.POLICY_VERSION, self._on_version, LATCHED),
            self.create_timer(LOOK_PERIOD, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME)),
            self.create_timer(REPORT_PERIOD, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)),
        ]
        self._report()

    def deactivate(self) -> None:
        for entity in [*self._owned, *self._sensors]:
            entity.destroy() if hasattr(entity, "cancel") else self.destroy_subscription(entity)
        self._owned, self._sensors, self._waiting = [], [], []
        self._builder = self._builder_of = None

    def cleanup(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        for publisher in self._outputs:
            self.destroy_publisher(publisher)
        self._outputs = []
        self._forget()

    # Called by the inference thread.

    def on_chunk(self, chunk: ActionChunk) -> None:
        message = chunk_msg(ros_make, chunk, self.robot)
        staleness = {"observation_age_s": (self.get_clock().now().nanoseconds - chunk.stamp_ns) / 1e9}
        if chunk.camera_stamps_ns:
            staleness["image_age_s"] = (chunk.stamp_ns - min(chunk.camera_stamps_ns.values())) / 1e9
        with self._lock:
            self._staleness = staleness
            key = (chunk.episode_id, chunk.request_id, chunk.stamp_ns)
            if key in self._answers:
                self._answers[key] = message
        self._tell(self._chunk_pub, message)
        self._diagnose()

    def on_loaded(self, policy: ChunkPolicy) -> None:
        with self._lock:
            self._policy, self._message = policy, ""
        self.get_logger().info(f"policy {policy.version} answers")
        self._publish_status()

    def on_refused(self, offer: PolicyOffer, reason: str) -> None:
        with self._lock:
            self._rejected, self._message = offer.version or offer.path, reason
            if self._offered == (offer.version, offer.sha256):
                self._offered = None  # it may be mended, and announced again
            if self._policy is None:
                self._state = PolicyStatus.STATE_ERROR
        self.get_logger().error(f"policy refused: {reason}")
        self._publish_status()

    def on_failed(self, job: ChunkJob, reason: str) -> None:
        with self._lock:
            self._failures += 1
            self._message = reason
            self._answers.pop((job.episode_id, job.request_id, job.observation.stamp_ns), None)  # may be asked again
        self.get_logger().error(f"request {job.request_id}: {reason}")

    # Called by the executor.

    def _on_version(self, message: PolicyVersion) -> None:
        assert self._worker is not None
        announced = (message.version, message.sha256)
        with self._lock:
            loaded = self._policy.version if self._policy else None
            known = message.version == loaded if self._offered is None else announced == self._offered
            self._offered = self._offered if known else announced
        if not known:
            self._worker.submit(PolicyOffer(message.path, message.version, message.sha256, message.robot_hash))

    def _on_request(self, message: ChunkRequest) -> None:
        if len(message.prefix) % self.robot.action_dim:
            self._failures += 1
            count, size = len(message.prefix), self.robot.action_dim
            self._message = f"request {message.request_id}: a prefix of {count} numbers is not rows of {size}"
            self.get_logger().error(self._message, throttle_duration_sec=1.0)
            return
        key = _key(message)
        if any(_key(w.request) == key for w in self._waiting):
            return
        with self._lock:
            again, answer = key in self._answers, self._answers.get(key)
        if again:
            if answer is not None:
                self._tell(self._chunk_pub, answer)
            return
        self._waiting = [w for w in self._waiting if w.request.episode_id == message.episode_id]
        self._waiting.append(_Waiting(message, time.monotonic()))
        self._serve()

    def _look(self) -> None:
        with self._lock:
            policy = self._policy
        if policy is not None and policy is not self._builder_of:
            self._watch(policy)
        if self._builder is not None and self._state != PolicyStatus.STATE_READY:
            self._look_for_sensors(self._builder)
        if self._waiting:
            self._serve()

    def _look_for_sensors(self, builder: ObservationBuilder) -> None:
        """A policy is ready when it hears everything it looks at: what was published before is lost to it."""
        unheard = builder.unheard()
        with self._lock:
            self._state = PolicyStatus.STATE_LOADING if unheard else PolicyStatus.STATE_READY
            self._message = f"waiting for {', '.join(unheard)}" if unheard else ""
        if not unheard:
            self._publish_status()

    def _watch(self, policy: ChunkPolicy) -> None:
        """Subscribes what this policy looks at; keeps what is there when the needs are the same."""
        before, self._builder_of = self._builder_of, policy
        for waiting in self._waiting:  # asked before there was a policy to look for it
            waiting.since = time.monotonic()
        if before is not None and _needs(before) == _needs(policy):
            return
        for subscription in self._sensors:
            self.destroy_subscription(subscription)
        with self._lock:
            self._state = PolicyStatus.STATE_LOADING
        self._builder = ObservationBuilder(
            self.robot, policy.cameras, policy.image_size, use_task_state=policy.uses_task_state
        )
        self._sensors = subscribe_sensors(self, self._builder, self._serve)

    def _serve(self) -> None:
        """Hands every request to the worker whose observation is complete, or has waited long enough."""
        if self._builder is None or self._worker is None:
            return
        for waiting in list(self._waiting):
            request = waiting.request
            stamp = stamp_to_ns(request.header.stamp)
            late = time.monotonic() - waiting.since > self._max_wait
            if not (late or self._builder.ready(stamp)):
                continue
            missing = self._builder.missing(stamp) if late else []
            try:
                observation = self._builder.build(stamp, request.instruction)
            except AloeError as error:
                if late:
                    self._failures += 1
                    self._message = str(error)
                    self.get_logger().error(f"request {request.request_id}: {error}", throttle_duration_sec=1.0)
                    self._waiting.remove(waiting)
                continue
            if missing:
                self.get_logger().warning(
                    f"request {request.request_id} did without {'; '.join(missing)}", throttle_duration_sec=1.0
                )
            self._waiting.remove(waiting)
            with self._lock:
                self._answers[_key(request)] = None
                if len(self._answers) > ANSWERS_KEPT:
                    del self._answers[next(iter(self._answers))]
            prefix = np.array(request.prefix, np.float32).reshape(-1, self.robot.action_dim)
            self._worker.submit(
                ChunkJob(observation, request.episode_id, request.request_id, prefix, request.prefix_steps)
            )

    def _report(self) -> None:
        self._publish_status()
        self._diagnose()

    def _diagnose(self) -> None:
        worker = self._worker
        assert worker is not None
        levels = {
            PolicyStatus.STATE_LOADING: DiagnosticStatus.WARN,
            PolicyStatus.STATE_READY: DiagnosticStatus.OK,
            PolicyStatus.STATE_ERROR: DiagnosticStatus.ERROR,
        }
        level = levels[self._state]
        with self._while_heard():
            self.diagnose(
                level[0] if isinstance(level, bytes) else level,
                self._message or "answering",
                version=self._policy.version if self._policy else "",
                chunks=worker.chunks,
                failures=self._failures,
                waiting=len(self._waiting),
                latency_p50_s=worker.latencies.quantile(0.5),
                latency_p99_s=worker.latencies.quantile(0.99),
                **self._staleness,
            )

    def _publish_status(self) -> None:
        worker = self._worker
        with self._lock:
            status = PolicyStatus(
                state=self._state,
                version=self._policy.version if self._policy else "",
                rejected_version=self._rejected,
                message=self._message,
            )
        status.header.stamp = self.get_clock().now().to_msg()
        if worker is not None:
            status.chunks = worker.chunks
            status.latency_p50, status.latency_p99 = worker.latencies.quantile(0.5), worker.latencies.quantile(0.99)
        self._tell(self._status_pub, status)

    def _tell(self, publisher: Publisher, message: ActionChunkMsg | PolicyStatus) -> None:
        with self._while_heard():
            publisher.publish(message)

    @contextmanager
    def _while_heard(self) -> Iterator[None]:
        """An interrupt may come between two lines of the inference thread, and then there is nobody left to tell."""
        try:
            yield
        except RCLError:
            if self.context.ok():
                raise


def _key(request: ChunkRequest) -> tuple:
    """What tells one request from another; a restarted control loop counts from 1 again, but at a later stamp."""
    return request.episode_id, request.request_id, stamp_to_ns(request.header.stamp)


def _needs(policy: ChunkPolicy) -> tuple:
    return policy.cameras, policy.image_size, policy.uses_task_state


def _limit_threads(threads: int) -> None:
    try:
        import torch
    except ModuleNotFoundError:  # a scripted or remote policy needs none
        return
    torch.set_num_threads(threads)


def main() -> None:
    """Runs the node until it is interrupted."""
    run(PolicyNode)


if __name__ == "__main__":
    main()
