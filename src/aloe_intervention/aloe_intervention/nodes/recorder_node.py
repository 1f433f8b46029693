"""Records every episode as one bag: always subscribed, serialized bytes only, written by a thread (`aloe_intervention.recording`).

Messages are recorded as they came over the wire. Only events and transitions are also deserialized, to know when an episode begins and has ended.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TypeVar

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.serialization import deserialize_message

from aloe_core import topics
from aloe_core.bag_format import EpisodeInfo
from aloe_core.bag_labels import Label, append_label
from aloe_core.errors import AloeError
from aloe_core.messages import header_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Outcome, Termination
from aloe_intervention.episode_store import check_name
from aloe_intervention.nodes.raw_subscriptions import RawSubscriptions
from aloe_intervention.recording import GIGABYTE, EpisodeRecording, Message, Recent, check_space
from aloe_intervention.recording_audit import TopicReport
from aloe_intervention.recording_recovery import recover_unfinished
from aloe_intervention.recording_topics import IMAGE_CHOICES, TopicSpec, recorded_topics
from aloe_msgs.msg import EpisodeEvent, PolicyVersion, RecorderStatus, TopicAudit, Transition
from aloe_robot.nodes.lifecycle import ManagedNode, give_back, run
from aloe_robot.nodes.parameters import declare
from aloe_robot.nodes.qos import LATCHED

Kind = TypeVar("Kind", Outcome, Termination)
STATUS_PERIOD = 1.0  # [s] wall time
POLL_PERIOD = 0.05  # [s] wall time
CLOSE_TIMEOUT = 20.0  # [s] that a bag gets to close when the node ends


class RecorderNode(ManagedNode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("recorder_node")
        self.robot = load_robot(declare(self, "robot", "aloha_sim"))  # name or YAML file
        self.bags = Path(declare(self, "bags", "bags")).expanduser()  # folder of the bags
        self.simulator = declare(self, "simulator", self.robot.simulator is not None)  # record its task state
        self.images = declare(self, "images", "compressed")  # compressed | raw | both | none
        self.extra_topics = declare(self, "extra_topics", ("",))  # further topics, of any known type
        # An episode under way is closed at half of it.
        self.min_free = round(self._positive("min_free_gb", 2.0) * GIGABYTE)  # [GB] no episode starts with less
        self.queue_bytes = round(self._positive("queue_mb", 256.0) * 1e6)  # that may wait for the disk
        self.settle_timeout = self._positive("settle_timeout", 1.0)  # [s] of silence until a stopped bag is closed
        if self.images not in IMAGE_CHOICES:
            raise AloeError(f"parameter 'images' is '{self.images}', not one of {', '.join(IMAGE_CHOICES)}")
        self.inlets = RawSubscriptions(self, self._on_message, self._on_lost)
        self.recording: EpisodeRecording | None = None
        self.closing: list[EpisodeRecording] = []

    def _positive(self, name: str, default: float) -> float:
        value = declare(self, name, default)
        if not 0 < value < math.inf:
            raise AloeError(f"parameter '{name}' is {value}; it must be positive")
        return value

    # -- life cycle --

    def configure(self) -> None:
        try:
            self.bags.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AloeError(f"cannot make the bags folder {self.bags}: {error.strerror}") from None
        for recovered, sentence in recover_unfinished(self.bags, self.min_free):
            (self.get_logger().info if recovered else self.get_logger().warning)(sentence)
        self.specs = {
            self.resolve_topic_name(s.name): s for s in recorded_topics(self.robot, self.simulator, self.images)
        }
        self.undiscovered = {self.resolve_topic_name(t) for t in self.extra_topics if t} - set(self.specs)
        self.joint_states = self.resolve_topic_name(self.robot.joint_states_topic)
        self.events = self.resolve_topic_name(topics.EPISODE_EVENT)
        self.safety = self.resolve_topic_name(topics.SAFETY_STATUS)
        self.transitions = self.resolve_topic_name(topics.TRANSITION)
        self.recent = Recent()
        self.state, self.message, self.low_space = RecorderStatus.STATE_IDLE, "", ""
        self.last: EpisodeRecording | None = None
        self.episode_id, self.told = "", set()
        self.hears = False  # control loop and robot, and has said so: an episode does not begin before
        self.status = self.create_publisher(RecorderStatus, topics.RECORDER_STATUS, LATCHED)

    def activate(self) -> None:
        for topic, spec in self.specs.items():
            self.inlets.add(topic, spec)
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self.timers_ = [
            self.create_timer(STATUS_PERIOD, self._every_second, clock=wall),
            self.create_timer(POLL_PERIOD, self._poll, clock=wall),
        ]
        self._publish_status()
        self.get_logger().info(
            f"recording {len(self.specs)} topics of robot '{self.robot.name}' into {self.bags.resolve()}"
        )

    def deactivate(self) -> None:
        for timer in getattr(self, "timers_", []):
            self.destroy_timer(timer)
        self.timers_ = []
        self.inlets.close()
        if self.recording is not None:
            self._close("recorder_node ended during the episode")
        for recording in self.closing:
            if not recording.join(CLOSE_TIMEOUT):
                self.get_logger().error(
                    f"bag {recording.folder} could not be closed in {CLOSE_TIMEOUT:g} s; recover it"
                )
        self._collect()

    def cleanup(self) -> None:
        if hasattr(self, "status"):
            self.destroy_publisher(self.status)
            del self.status

    # -- messages --

    def _on_message(self, topic: str, spec: TopicSpec, data: bytes, info: dict) -> None:
        message = Message(topic, data, self.get_clock().now().nanoseconds, info["source_timestamp"])
        self.recent.add(spec, message)
        if self.recording is not None:
            self.recording.put(message)
        if topic == self.transitions:
            self._on_transition(deserialize_message(data, Transition))
        elif topic == self.events:
            self._on_event(deserialize_message(data, EpisodeEvent), message.publish_ns)

    def _on_transition(self, transition: Transition) -> None:
        if self.recording is not None and transition.episode_id == self.episode_id:
            final = transition.terminated or transition.truncated
            self.recording.transitions.add(transition.step, stamp_to_ns(transition.header.stamp), final)

    def _on_event(self, event: EpisodeEvent, published_ns: int) -> None:
        if event.event == EpisodeEvent.STARTED:
            self._start(event)
        elif event.episode_id == self.episode_id and (
            event.event == EpisodeEvent.STOPPED or self.recording is not None
        ):
            self._stop(event, published_ns)  # labelled and discarded is only what is over

    def _on_lost(self, topic: str, count: int) -> None:
        if self.recording is not None:
            self.recording.lost(topic, count)

    # -- episodes --

    def _start(self, event: EpisodeEvent) -> None:
        if self.recording is not None:
            if event.episode_id == self.episode_id:
                return  # announced again after a restart of episode_node
            stopped = self.recording.stopped
            self._close("" if stopped else f"episode '{event.episode_id}' started before this one was stopped")
        self.episode_id, self.last, self.low_space = event.episode_id, None, ""
        self.told.clear()
        self.hears = False
        try:
            folder = self.bags / check_name(event.episode_id, "episode id")
            if folder.exists():
                raise AloeError(
                    f"bag {folder} exists already; bags are never overwritten and a recording that broke off is not continued"
                )
            check_space(self.bags, self.min_free)
            self.recording = EpisodeRecording(
                folder,
                self._info(event),
                self.inlets.topics,
                self.joint_states,
                queue_bytes=self.queue_bytes,
                settle_s=self.settle_timeout,
            )
        except AloeError as error:
            self.get_logger().error(f"episode '{event.episode_id}' is not recorded: {error}")
            self._set(RecorderStatus.STATE_ERROR, str(error))
            return
        for message in self.recent.at_start(self.get_clock().now().nanoseconds):
            self.recording.put(message, before_start=True)
        self._set(RecorderStatus.STATE_RECORDING, "")

    def _info(self, event: EpisodeEvent) -> EpisodeInfo:
        iteration = 0
        newest = self.recent.newest(self.resolve_topic_name(topics.POLICY_VERSION))
        if newest is not None:
            version: PolicyVersion = deserialize_message(newest.data, PolicyVersion)
            iteration = version.iteration if version.version == event.policy_version else 0
        return EpisodeInfo(
            episode_id=event.episode_id,
            task=event.task,
            instruction=event.instruction,
            robot=self.robot.name,
            robot_hash=self.robot.hash,
            policy_version=event.policy_version,
            seed=event.seed,
            iteration=iteration,
        )

    def _stop(self, event: EpisodeEvent, published_ns: int) -> None:
        outcome = self._known(Outcome, event.outcome, Outcome.UNLABELLED)
        termination = self._known(Termination, event.termination_reason, Termination.NONE)
        if self.recording is not None:
            self.recording.stop(outcome, termination, time.monotonic(), published_ns)
        elif self.low_space and outcome is not Outcome.UNLABELLED:
            # The bag had to be closed before the episode ended: its outcome goes beside it.
            try:
                append_label(
                    self.bags / self.episode_id, Label(outcome, time.time_ns(), "recorder_node", self.low_space)
                )
            except AloeError as error:
                self.get_logger().error(str(error))

    def _known(self, kind: type[Kind], value: int, otherwise: Kind) -> Kind:
        """`value` as a member of `kind`: an event of somebody else's version must not end the recording."""
        try:
            return kind(value)
        except ValueError:
            self.get_logger().warning(
                f"{self.events}: {kind.__name__.lower()} {value} of episode '{self.episode_id}' is unknown; "
                f"recorded as {otherwise.name.lower()}"
            )
            return otherwise

    def _close(self, reason: str = "") -> None:
        assert self.recording is not None
        self.recording.finish(reason)
        self.closing.append(self.recording)
        self.last, self.recording = self.recording, None

    def _poll(self) -> None:
        if self.recording is not None:
            if not self.hears and {self.safety, self.joint_states} <= {
                r.topic for r in self.recording.reports() if r.count
            }:
                self.hears = True
                self._publish_status()
            if self.recording.failure and self.state != RecorderStatus.STATE_ERROR:
                self.get_logger().error(self.recording.failure)
                self._set(RecorderStatus.STATE_ERROR, self.recording.failure)
            if self.recording.settled(time.monotonic()):
                self._close()
                if self.state != RecorderStatus.STATE_ERROR:
                    self._set(RecorderStatus.STATE_FINALIZING, "")
        self._collect()

    def _collect(self) -> None:
        """Bags that have been closed since the last look."""
        for recording in [r for r in self.closing if r.done]:
            self.closing.remove(recording)
            give_back()
            audit = recording.audit
            if audit is not None and audit.complete:
                message = (
                    f"bag {recording.folder} is complete: {audit.transitions} transitions, {audit.messages} messages"
                )
                self.get_logger().info(message)
            else:
                message = "; ".join(audit.reasons) if audit is not None else "the writer died"
                self.get_logger().warning(f"bag {recording.folder} is not complete: {message}")
            if recording is self.last and hasattr(self, "status"):
                failed = bool(recording.failure or self.low_space)
                self._set(RecorderStatus.STATE_ERROR if failed else RecorderStatus.STATE_IDLE, message)

    # -- status --

    def _every_second(self) -> None:
        self._look_around()
        self._watch_space()
        for report in self.recording.reports() if self.recording is not None else ():
            if report.problem and report.topic not in self.told:
                self.told.add(report.topic)
                self.get_logger().warning(f"episode '{self.episode_id}': {report.problem}")
        self._publish_status()
        self._publish_diagnostics()

    def _look_around(self) -> None:
        """Extra topics may appear, and publishers offer something else than was assumed."""
        if self.undiscovered:
            self.undiscovered.difference_update(self.inlets.discover(self.undiscovered))
        self.inlets.follow()
        if self.recording is not None:
            for topic, (spec, qos) in self.inlets.topics.items():
                self.recording.add_topic(topic, spec, qos)

    def _watch_space(self) -> None:
        if self.recording is None:
            return
        try:
            check_space(self.bags, self.min_free)
        except AloeError as error:
            if not self.low_space:
                self.get_logger().error(str(error))
                self.low_space = str(error)
                self._set(RecorderStatus.STATE_ERROR, self.low_space)
            try:
                check_space(self.bags, self.min_free // 2)
            except AloeError:
                self._close(f"the bag was closed before the episode ended: {self.low_space}")

    def _set(self, state: int, message: str) -> None:
        self.state, self.message = state, message
        self._publish_status()

    def _shown(self) -> EpisodeRecording | None:
        return self.recording or self.last

    def _publish_status(self) -> None:
        if not self.context.ok():
            return  # interrupted: nobody can be told any more
        shown = self._shown()
        audit = shown.audit if shown is not None else None
        self.status.publish(
            RecorderStatus(
                header=header_msg(ros_make, self.get_clock().now().nanoseconds),
                state=self.state,
                episode_id=self.episode_id,
                bag_path=str(shown.folder) if shown is not None else "",
                messages=shown.messages if shown is not None else 0,
                bytes=shown.bytes if shown is not None else 0,
                dropped=shown.dropped if shown is not None else 0,
                free_bytes=check_space(self.bags, 0),
                complete=audit is not None and audit.complete,
                message=self.message,
                topics=[_audit(r) for r in (shown.reports() if shown is not None else ())],
            )
        )

    def _publish_diagnostics(self) -> None:
        levels = {
            RecorderStatus.STATE_ERROR: DiagnosticStatus.ERROR[0],
            RecorderStatus.STATE_RECORDING: DiagnosticStatus.WARN[0] if self.told else DiagnosticStatus.OK[0],
        }
        names = {0: "idle", 1: "recording", 2: "finalizing", 3: "error"}
        shown = self._shown()
        queued, queued_bytes = shown.queued if shown is not None else (0, 0)
        self.diagnose(
            levels.get(self.state, DiagnosticStatus.OK[0]),
            self.message or names[self.state],
            hardware_id=str(self.bags),
            state=names[self.state],
            episode_id=self.episode_id,
            messages=shown.messages if shown is not None else 0,
            dropped=shown.dropped if shown is not None else 0,
            queued_messages=queued,
            queued_bytes=queued_bytes,
            free_gb=check_space(self.bags, 0) / GIGABYTE,
        )


def _audit(report: TopicReport) -> TopicAudit:
    return TopicAudit(
        topic=report.topic,
        count=report.count,
        dropped=report.dropped,
        rate=report.rate,
        expected_rate=report.expected_rate,
        max_gap=report.max_gap,
        ok=not report.problem,
    )


def main() -> None:
    """Runs the node until it is interrupted."""
    run(RecorderNode)


if __name__ == "__main__":
    main()
