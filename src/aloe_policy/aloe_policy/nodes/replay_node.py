"""Plays a bag into a live graph in shadow mode: the policy proposes and the critic judges as they did, or would have done, on the robot; nothing moves.

Sensor messages go out byte by byte as recorded, offered as they were, as far as `TopicQos` tells, their time as `/clock`, and the recorded chunk requests
between them. What the policy and the critic answer is written, with all that was recorded, to a new bag. The node ends when that is done.
As fast as they answer (rate 0), a question without an answer is asked again: what is said before two nodes have discovered each other is lost.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock as ClockMsg

from aloe_core import topics
from aloe_core.bag_format import RawMessage, TopicQos
from aloe_core.bag_storage import open_storage
from aloe_core.errors import AloeError
from aloe_core.messages import header_stamp_ns, ros_class, ros_make, stamp_to_ns, time_msg
from aloe_core.robot import load_robot
from aloe_msgs.msg import ActionChunk, ChunkRequest, CriticValue, PolicyStatus
from aloe_policy.playback import Pace, Playback, Questions
from aloe_policy.replayed_bag import CHUNK, RECORDED_CHUNK, VALUE, Addition, episode_info, write_replayed
from aloe_robot.control.config import ControlConfig
from aloe_robot.nodes.lifecycle import ManagedNode, run
from aloe_robot.nodes.qos import LATCHED

ASK_AGAIN_PERIOD = 2.0  # [s] wall time
SETTLE = 0.5  # [s] wall time for which the number of listeners must not change before the bag begins
TYPES = {
    CHUNK: "aloe_msgs/msg/ActionChunk",
    VALUE: "aloe_msgs/msg/CriticValue",
    topics.CRITIC_VALUE: "aloe_msgs/msg/CriticValue",
}


class ReplayNode(ManagedNode):
    """See the module. Parameters: `robot`, `bag`, `output`, `rate`, `listeners`, `reliable`, `max_wait`, `every`, `instruction`."""

    def __init__(self) -> None:
        super().__init__("replay_node")
        self.declare_parameter("robot", "aloha_sim")
        self.declare_parameter("bag", "")  # folder
        self.declare_parameter("output", "")  # folder for the new bag, <output>/<name of the bag>; empty: not recorded
        self.declare_parameter("rate", 0.0)  # recorded seconds per second; 0: as fast as policy and critic answer
        self.declare_parameter(
            "listeners", 1
        )  # nodes that must look at the joint states before the bag begins: policy, critics
        self.declare_parameter("reliable", False)  # offer every topic reliably instead of as recorded
        self.declare_parameter("max_wait", 60.0)  # [s] wall time for nodes to get ready, and for one answer
        self.declare_parameter("every", ControlConfig.execute_steps)  # ticks between requests in a bag that has none
        self.declare_parameter("instruction", "")  # in those requests, where the bag has none
        self._playback: Playback | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._begin()

    def _begin(self) -> None:
        """Forgets what an earlier play of the bag has asked and heard."""
        self._stopping = False
        self._result: int | None = None
        self._policy_ready = False
        self._additions: list[Addition] = []
        self._asked: dict[int, int] = {}  # request id -> its time in the bag [ns]
        # (topic of the value, chunk id) -> time of the chunk in the bag [ns]
        self._judged: dict[tuple[str, int], int] = {}
        self._questions_of: dict[tuple[str, int], tuple[Publisher, Any]] = {}  # what asks for an answer, by that answer
        self._answered: set[tuple[str, int, int]] = set()  # (topic, number, stamp) of every answer
        self._said_at = 0.0  # wall time at which the bag or a question was last played
        self._lost = 0

    def configure(self) -> None:
        value = lambda name: self.get_parameter(name).value  # noqa: E731
        if not value("bag"):
            raise AloeError("parameter 'bag': name the folder of the bag to replay")
        self.robot = load_robot(value("robot"))
        self._bag, self._max_wait = Path(value("bag")), value("max_wait")
        self._target = Path(value("output")) / self._bag.resolve().name if value("output") else None
        if self._target is not None and self._target.exists():
            raise AloeError(f"{self._target} exists already; bags are never overwritten, choose another output folder")
        storage = open_storage(self._bag)
        self._info = episode_info(self._bag, storage.custom_data, self.robot.name, self.robot.hash)
        storage.close()
        self._playback = Playback(self._bag, self.robot)
        self._clock_pub = self.create_publisher(ClockMsg, "/clock", 10)
        self._publishers_of = {
            t.recorded: self.create_publisher(ros_class(t.type), t.played, _profile(t.qos, value("reliable")))
            for t in self._playback.topics.values()
        }
        requests = self._playback.requests
        self._request_pub = (
            self._publishers_of[requests] if requests else self.create_publisher(ChunkRequest, topics.CHUNK_REQUEST, 10)
        )

    def activate(self) -> None:
        assert self._playback is not None
        self._begin()
        self._pace = Pace(self.get_parameter("rate").value)
        every = self.get_parameter("every").value
        self._questions = Questions(every, self.robot.control_dt_ns, set(self._playback.images))
        self._owned = [
            self.create_subscription(PolicyStatus, topics.POLICY_STATUS, self._on_status, LATCHED),
            self.create_subscription(ActionChunk, CHUNK, self._on_chunk, 100),
            self.create_subscription(CriticValue, VALUE, lambda m: self._on_value(VALUE, m), 100),
            self.create_subscription(
                CriticValue, topics.CRITIC_VALUE, lambda m: self._on_value(topics.CRITIC_VALUE, m), 100
            ),
            self.create_timer(0.1, self._end, clock=Clock(clock_type=ClockType.STEADY_TIME)),
        ]
        self._thread = threading.Thread(target=self._run, name="playback", daemon=True)
        self._thread.start()

    def deactivate(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for entity in getattr(self, "_owned", []):
            entity.destroy() if hasattr(entity, "cancel") else self.destroy_subscription(entity)
        self._owned = []

    def cleanup(self) -> None:
        if self._playback is not None:
            self._playback.close()
            self._playback = None
            for publisher in {self._clock_pub, self._request_pub, *self._publishers_of.values()}:
                self.destroy_publisher(publisher)

    # Called by the executor.

    def _on_status(self, message: PolicyStatus) -> None:
        with self._changed:
            self._policy_ready = bool(message.version)  # loaded; it is ready only once it hears what is played here

    def _on_chunk(self, message: ActionChunk) -> None:
        with self._changed:
            self._pace.pending.pop((CHUNK, message.request_id), None)
            if self._is_repeated(CHUNK, message.request_id, message):
                return
            asked = self._asked.get(message.request_id, stamp_to_ns(message.header.stamp))
            self._additions.append(Addition(CHUNK, TYPES[CHUNK], serialize_message(message), asked))
            self._expect_value(VALUE, message, asked, self._questions_of.get((CHUNK, message.request_id)))
            self._changed.notify_all()

    def _on_value(self, topic: str, message: CriticValue) -> None:
        with self._changed:
            self._pace.pending.pop((topic, message.chunk_id), None)
            if self._is_repeated(topic, message.chunk_id, message):
                return
            at = self._judged.get((topic, message.chunk_id), stamp_to_ns(message.header.stamp))
            self._additions.append(Addition(topic, TYPES[topic], serialize_message(message), at))
            self._changed.notify_all()

    def _is_repeated(self, topic: str, number: int, answer: ActionChunk | CriticValue) -> bool:
        """Whether this has been answered before, by somebody who was asked again."""
        key = (topic, number, stamp_to_ns(answer.header.stamp))
        known = key in self._answered
        self._answered.add(key)
        return known

    def _end(self) -> None:
        if self._result is not None:
            raise SystemExit(self._result)

    # Called by the playing thread.

    def _run(self) -> None:
        result = 1
        try:
            result = self._play()
        except AloeError as error:
            self.get_logger().fatal(str(error))
        finally:  # whatever happened, the node must not stay
            self._result = result

    def _play(self) -> int:
        assert self._playback is not None
        missing = self._wait_until_ready()
        if missing:
            raise AloeError(f"not played: after {self._max_wait:g} s there is still no {missing}")
        self.get_logger().info(f"plays {self._bag}")
        began, now_ns, played = time.monotonic(), 0, 0
        for raw in self._playback.messages():
            if raw.log_time_ns > now_ns:  # never backwards, whatever the order in the file
                if not self._wait_for(raw.log_time_ns):
                    return 1
                now_ns = raw.log_time_ns
                self._clock_pub.publish(ClockMsg(clock=time_msg(ros_make, now_ns)))
            self._ask_if_due(raw, now_ns)
            data = bytes(raw.data)
            with self._changed:
                self._note(raw.topic, data, now_ns)
                self._said_at = time.monotonic()
            self._publishers_of[raw.topic].publish(data)
            played += 1
        if not self._wait_for_answers():
            return 1
        wall = time.monotonic() - began
        answered = sum(a.topic == CHUNK for a in self._additions)
        values = len(self._additions) - answered
        self.get_logger().info(
            f"played {played} messages in {wall:.1f} s: {len(self._asked)} requests, {answered} proposals, {values} values"
        )
        if self._lost:
            self.get_logger().warning(f"{self._lost} answers did not come within {self._max_wait:g} s")
        if self._target is not None:
            for problem in write_replayed(self._bag, self._target, self._info, self._additions, {}):
                self.get_logger().warning(problem)
            self.get_logger().info(f"wrote {self._target}")
        return 0

    def _ask_if_due(self, raw: RawMessage, now_ns: int) -> None:
        """In a bag without requests: asks before `raw` is played if everything of a tick has been."""
        assert self._playback is not None
        if self._playback.requests is not None:
            return
        self._questions.unseen.discard(raw.topic)
        if raw.topic != self._playback.joint_states:
            return
        stamp = self._questions.joint_state(header_stamp_ns(raw.data, f"bag {self._bag}: {raw.topic}"))
        if stamp is None:
            return
        request = ChunkRequest(
            episode_id=self._info.episode_id,
            request_id=len(self._asked) + 1,
            reason=ChunkRequest.REASON_SHADOW,
            instruction=self._info.instruction or self.get_parameter("instruction").value,
        )
        request.header.stamp = time_msg(ros_make, stamp)
        with self._changed:
            self._asked[request.request_id] = self._pace.pending[CHUNK, request.request_id] = now_ns
            self._questions_of[CHUNK, request.request_id] = self._request_pub, request
        self._request_pub.publish(request)

    def _note(self, topic: str, data: bytes, now_ns: int) -> None:
        """Remembers the question that a message about to be played asks."""
        assert self._playback is not None
        if topic == self._playback.requests:
            request_id = deserialize_message(data, ChunkRequest).request_id
            if (CHUNK, request_id) in self._questions_of and self._questions_of[CHUNK, request_id][1] == data:
                return  # it was published again
            self._asked[request_id] = self._pace.pending[CHUNK, request_id] = now_ns
            self._questions_of[CHUNK, request_id] = self._publishers_of[topic], data
        elif self._playback.topics[topic].played == RECORDED_CHUNK:
            question = self._publishers_of[topic], data
            self._expect_value(topics.CRITIC_VALUE, deserialize_message(data, ActionChunk), now_ns, question)

    def _expect_value(self, topic: str, chunk: ActionChunk, at_ns: int, question: tuple[Publisher, Any] | None) -> None:
        if not self.count_publishers(topic):
            return
        self._judged[topic, chunk.chunk_id] = self._pace.pending[topic, chunk.chunk_id] = at_ns
        if question is not None:
            self._questions_of[topic, chunk.chunk_id] = question

    def _ask_again(self, now: float) -> None:
        """Repeats the questions that still wait for an answer, each once: two answers may be to one."""
        if self._pace.rate or now - self._said_at < ASK_AGAIN_PERIOD:
            return
        self._said_at = now
        waiting = [self._questions_of[key] for key in self._pace.pending if key in self._questions_of]
        for publisher, question in {id(question): (publisher, question) for publisher, question in waiting}.values():
            publisher.publish(question)

    def _wait_for(self, time_ns: int) -> bool:
        """Waits until a message of that time is due; answers that are too late count as lost. False: the node is to stop."""
        since = time.monotonic()
        with self._changed:
            while not self._stopping and (due := self._pace.due(time_ns, since)) > (now := time.monotonic()):
                if not self._pace.rate and now - since > self._max_wait:
                    self._give_up()
                self._ask_again(now)
                self._changed.wait(min(due - now, 0.5))
            return not self._stopping

    def _wait_for_answers(self) -> bool:
        """Waits, after the last message, for the answers still under way. False: the node is to stop."""
        since = time.monotonic()
        with self._changed:
            while not self._stopping and self._pace.pending:
                if time.monotonic() - since > self._max_wait:
                    self._give_up()
                self._ask_again(time.monotonic())
                self._changed.wait(0.1)
            return not self._stopping

    def _give_up(self) -> None:
        self._lost += len(self._pace.pending)
        self._pace.pending.clear()

    def _wait_until_ready(self) -> str:
        """Waits for the policy and the listeners; what is missing after `max_wait`, or nothing."""
        assert self._playback is not None
        listeners = self.get_parameter("listeners").value
        joints = self._playback.topics[self._playback.joint_states]
        deadline, counts, since = time.monotonic() + self._max_wait, [], time.monotonic()
        while True:
            now = time.monotonic()
            found = [p.get_subscription_count() for p in self._publishers_of.values()]
            found += [self.count_publishers(topic) for topic in (CHUNK, VALUE, topics.CRITIC_VALUE)]
            if found != counts:
                counts, since = found, now
            looking = self._publishers_of[joints.recorded].get_subscription_count()
            asked = self._request_pub.get_subscription_count()
            missing = ""
            if not (asked and self._policy_ready and self.count_publishers(CHUNK)):
                missing = f"policy that is ready (on {topics.POLICY_STATUS}, {topics.CHUNK_REQUEST})"
            elif looking < listeners:
                missing = f"{listeners} nodes that look at {joints.played}, only {looking} (offered {joints.qos.reliability}, as recorded)"
            with self._changed:
                if self._stopping or (not missing and now - since >= SETTLE):
                    return ""
                if now > deadline:
                    return missing or "rest: nodes come and go"
                self._changed.wait(0.05)


def _profile(qos: TopicQos, reliable: bool) -> QoSProfile:
    firm = reliable or qos.reliability == "reliable"
    kept = qos.durability == "transient_local"
    return QoSProfile(
        depth=qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if firm else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if kept else DurabilityPolicy.VOLATILE,
    )


def main() -> None:
    """Runs the node until the bag is played, or it is interrupted."""
    run(ReplayNode)


if __name__ == "__main__":
    main()
