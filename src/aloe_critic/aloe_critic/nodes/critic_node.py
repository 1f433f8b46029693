"""The critic as a ROS node: a `CriticValue` for every chunk that is proposed, live or replayed from a bag."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.publisher import Publisher

from aloe_core import topics
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import chunk_from_msg, time_msg
from aloe_core.messages import ros_make as make
from aloe_core.observation import ObservationBuilder
from aloe_core.robot import load_robot
from aloe_critic.critic_file import CRITIC_FILE
from aloe_critic.scoring import ChunkScorer
from aloe_msgs.msg import ActionChunk as ActionChunkMsg
from aloe_msgs.msg import ChunkRequest, CriticValue, EpisodeEvent, PolicyVersion
from aloe_policy.nodes.sensors import subscribe_sensors
from aloe_robot.nodes.lifecycle import ManagedNode, run
from aloe_robot.nodes.qos import LATCHED

REQUESTS_KEPT = 256  # whose instruction is remembered; a chunk follows its request after one inference
LOOK_PERIOD = 0.02  # [s] wall time between looks at chunks whose observation was not complete


class CriticNode(ManagedNode):
    """See the module. Parameters: `robot`, `critic`, `policy`, `samples`, `seed`, `threads`, `max_wait`."""

    def __init__(self) -> None:
        super().__init__("critic_node")
        self.declare_parameter("robot", "aloha_sim")
        self.declare_parameter(
            "critic", ""
        )  # file, or folder with critic.safetensors; empty: that beside the policy announced
        self.declare_parameter("policy", "")  # checkpoint that V(s) is of; empty: wait for a PolicyVersion
        self.declare_parameter("samples", 8)  # chunks of the policy per V(s)
        self.declare_parameter("seed", 0)
        self.declare_parameter("threads", 1)  # of the numerical library
        self.declare_parameter("max_wait", 0.5)  # [s] wall time a chunk waits for late sensor messages
        self._scorer: ChunkScorer | None = None
        self._builder: ObservationBuilder | None = None
        self._sensors: list = []
        self._waiting: list[tuple[ActionChunk, float]] = []
        self._instructions: dict[tuple[str, int], str] = {}  # (episode, number) of a request -> what it asks for
        self._instruction = ""  # the newest heard, for a chunk whose request was not
        self._values: Publisher | None = None
        self._scored, self._left_out = 0, 0

    def configure(self) -> None:
        import torch

        value = lambda name: self.get_parameter(name).value  # noqa: E731
        torch.set_num_threads(value("threads"))
        self.robot = load_robot(value("robot"))
        self._max_wait = value("max_wait")
        self._values = self.create_publisher(CriticValue, topics.CRITIC_VALUE, 10)
        if value("policy") and not value("policy").startswith(
            "remote:"
        ):  # of a policy elsewhere there is nothing to load
            self._load(Path(value("policy")))

    def activate(self) -> None:
        self._owned = [
            self.create_subscription(ChunkRequest, topics.CHUNK_REQUEST, self._on_request, 10),  # before the chunks
            self.create_subscription(ActionChunkMsg, topics.CHUNK, self._on_chunk, 10),
            self.create_subscription(EpisodeEvent, topics.EPISODE_EVENT, self._on_event, LATCHED),
            self.create_subscription(PolicyVersion, topics.POLICY_VERSION, self._on_version, LATCHED),
            self.create_timer(LOOK_PERIOD, self._judge, clock=Clock(clock_type=ClockType.STEADY_TIME)),
            self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)),
        ]
        self._watch()
        if self._scorer is None:
            self.get_logger().warning(
                f"no values yet: V(s) is that of a policy; give one (critic_policy:=CHECKPOINT on launch), or it comes on {topics.POLICY_VERSION}"
            )

    def deactivate(self) -> None:
        for entity in [*getattr(self, "_owned", []), *self._sensors]:
            entity.destroy() if hasattr(entity, "cancel") else self.destroy_subscription(entity)
        self._owned, self._sensors, self._waiting = [], [], []

    def cleanup(self) -> None:
        self._scorer = self._builder = None
        self._instructions, self._instruction = {}, ""
        if self._values is not None:
            self.destroy_publisher(self._values)
            self._values = None

    def _load(self, policy: Path) -> None:
        value = lambda name: self.get_parameter(name).value  # noqa: E731
        critic = Path(value("critic")) if value("critic") else policy.with_name(CRITIC_FILE)
        self._scorer = ChunkScorer(critic, policy, self.robot, value("samples"), value("seed"))
        self.get_logger().info(
            f"critic {self._scorer.critic_version} judges chunks against policy {self._scorer.policy_version}"
        )

    def _on_version(self, message: PolicyVersion) -> None:
        if self._scorer is not None and self._scorer.policy_version == message.version:
            return
        try:
            self._load(Path(message.path))
        except AloeError as error:
            self.get_logger().error(f"keeps the critic it has: {error}")
            return
        self._watch()

    def _watch(self) -> None:
        """Subscribes what the policy and the critic look at."""
        for subscription in self._sensors:
            self.destroy_subscription(subscription)
        self._sensors = []
        scorer = self._scorer
        if scorer is None:
            return
        self._builder = ObservationBuilder(
            self.robot, scorer.cameras, scorer.image_size, use_task_state=scorer.uses_task_state
        )
        self._sensors = subscribe_sensors(self, self._builder, self._judge)

    def _on_event(self, message: EpisodeEvent) -> None:
        self._instruction = message.instruction

    def _on_request(self, message: ChunkRequest) -> None:
        """A bag of ROS's own recorder has no events; and the policy heeds the request, not the event."""
        self._instruction = message.instruction
        self._instructions[message.episode_id, message.request_id] = message.instruction
        if len(self._instructions) > REQUESTS_KEPT:
            del self._instructions[next(iter(self._instructions))]

    def _on_chunk(self, message: ActionChunkMsg) -> None:
        try:
            self._waiting.append((chunk_from_msg(message, self.robot), time.monotonic()))
        except AloeError as error:
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
        self._judge()

    def _judge(self) -> None:
        """Scores every chunk whose observation is complete, or has waited long enough."""
        if self._scorer is None or self._builder is None:
            self._waiting.clear()
            return
        for waiting in list(self._waiting):
            chunk, since = waiting
            late = time.monotonic() - since > self._max_wait
            if not (late or self._builder.ready(chunk.stamp_ns)):
                continue
            self._waiting.remove(waiting)
            instruction = self._instructions.get((chunk.episode_id, chunk.request_id), self._instruction)
            try:
                seen = self._builder.build(chunk.stamp_ns, instruction)
                score = self._scorer.score(seen, chunk.positions, chunk.chunk_id)
            except AloeError as error:
                self._left_out += 1
                self.get_logger().warning(f"chunk {chunk.chunk_id} is not judged: {error}", throttle_duration_sec=1.0)
                continue
            message = CriticValue(
                episode_id=chunk.episode_id,
                chunk_id=chunk.chunk_id,
                q=score.q,
                q_heads=np.asarray(score.q_heads, np.float64).tolist(),
                v=score.v,
                advantage=score.advantage,
                head_std=score.head_std,
                critic_version=self._scorer.critic_version,
                policy_version=self._scorer.policy_version,
            )
            message.header.stamp = time_msg(make, chunk.stamp_ns)
            self._values.publish(message)
            self._scored += 1

    def _report(self) -> None:
        ready = self._scorer is not None
        level = DiagnosticStatus.OK if ready else DiagnosticStatus.WARN
        self.diagnose(
            level[0] if isinstance(level, bytes) else level,
            "judging" if ready else f"no critic yet; waiting for a policy with one on {topics.POLICY_VERSION}",
            scored=self._scored,
            left_out=self._left_out,
            waiting=len(self._waiting),
        )


def main() -> None:
    """Runs the node until it is interrupted."""
    run(CriticNode)
