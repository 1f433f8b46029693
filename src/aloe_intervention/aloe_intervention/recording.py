"""One episode on its way into a bag: a thread writes, a bounded queue lies between it and the graph, nothing is lost without being counted."""

from __future__ import annotations

import json
import shutil
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aloe_core.bag_format import EpisodeInfo, TopicQos, replace_file
from aloe_core.bag_writer import BagWriter
from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome, Termination
from aloe_intervention.recording_audit import AUDIT_FILE, EpisodeAudit, TopicReport, TopicTally, TransitionRow
from aloe_intervention.recording_topics import TopicSpec

GIGABYTE = 10**9
QUEUE_BYTES = 256 << 20  # three raw 640x480 cameras at 30 Hz for three seconds
IDLE_PERIOD = 0.1  # [s] at which the writer looks whether a chunk has become due while nothing comes
PREROLL = 300_000_000  # [ns] of observations from before the start
LINGER = 0.1  # [s] after the last expected message, for what other topics still have under way
CATCH_UP = 10.0  # [s] after STOPPED, at most, that a bag stays open while messages from before it still come in


@dataclass(frozen=True, slots=True)
class Message:
    """A serialized message: arrival and publication [ns]."""

    topic: str
    data: bytes
    log_ns: int
    publish_ns: int


class Recent:
    """What a bag must hold from before its start, by topic: the newest message of latched topics; of observations the newest and those of the last
    `PREROLL`, for the first tick may be for an instant before the newest image was taken. Of a message that is repeated (a simulator does while its time
    stands still) the newest copy.
    """

    def __init__(self) -> None:
        self._kept: dict[str, deque[Message]] = {}

    def add(self, spec: TopicSpec, message: Message) -> None:
        """One message; topics that are neither latched nor observations are not kept."""
        if spec.latched or spec.observation:
            kept = self._kept.setdefault(message.topic, deque())
            if kept and kept[-1].data == message.data:
                kept.pop()
            kept.append(message)
            while len(kept) > 1 and (spec.latched or message.log_ns - kept[0].log_ns > PREROLL):
                kept.popleft()

    def newest(self, topic: str) -> Message | None:
        """The newest message of a topic, if it is kept."""
        return self._kept[topic][-1] if topic in self._kept else None

    def at_start(self, now_ns: int) -> list[Message]:
        """What belongs into a bag that is opened now, in order of arrival."""
        chosen = [m for kept in self._kept.values() for m in kept if m is kept[-1] or now_ns - m.log_ns <= PREROLL]
        return sorted(chosen, key=lambda m: m.log_ns)


def check_space(folder: Path, min_free_bytes: int) -> int:
    """Free bytes of the disk that holds `folder`.

    Raises:
        AloeError: fewer than `min_free_bytes`; the sentence says what to do.
    """
    free = shutil.disk_usage(folder).free
    if free < min_free_bytes:
        raise AloeError(
            f"only {free / GIGABYTE:.2f} GB free in {folder}, {min_free_bytes / GIGABYTE:.2f} GB are wanted (parameter min_free_gb); "
            "make room or choose another bags folder"
        )
    return free


class EpisodeRecording:
    """Records one episode from its creation until `done`. Methods are called by one thread, the writer is another.

    Args:
        folder: `<bags>/<episode_id>`; must not exist.
        info: goes into the bag.
        topics: absolute name -> what is recorded under it and the quality of service it is offered with.
        joint_states: absolute name of the topic whose first message after the last transition is the observation it led to.
        queue_bytes: more than this waiting for the disk is dropped, and counted.
        settle_s: wall time without news of the episode, after STOPPED, after which the bag is closed even though its last transition has not come [s].
            News are its transitions and what was published before STOPPED: on a busy machine they may be far behind it.
        writer: an open bag to write into instead of a new one in `folder`.

    Raises:
        AloeError: the folder exists or cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        info: EpisodeInfo,
        topics: Mapping[str, tuple[TopicSpec, TopicQos]],
        joint_states: str,
        queue_bytes: int = QUEUE_BYTES,
        settle_s: float = 1.0,
        writer: BagWriter | None = None,
    ) -> None:
        self.folder = folder
        self.info = info
        self.outcome, self.termination = Outcome.UNLABELLED, Termination.NONE
        self.transitions = TransitionRow()
        self.audit: EpisodeAudit | None = None
        self._joint_states = joint_states
        self._writer = writer if writer is not None else BagWriter(folder, info)
        self._tallies: dict[str, TopicTally] = {}
        self._unsafe: deque[Message] = deque()  # taken by the bag's writer and not in the file yet
        self._queue: deque[Message] = deque()
        self._in_file = 0
        self._queued_bytes = 0
        self._queue_bytes = queue_bytes
        self._settle_s = settle_s
        self._stopped_s: float | None = None  # monotonic
        self._stopped_ns = 0  # publication of STOPPED
        self._late = 0  # messages that came after STOPPED and had been published before it
        self._news = 0  # late messages and transitions at the last look,
        self._news_s = 0.0  # and the monotonic time at which there were more than at the look before
        self._last_s: float | None = None  # monotonic time at which everything expected had come
        self._reasons: list[str] = []
        self._failure = ""
        self._finishing = False
        self._wake = threading.Condition()
        self._announced: deque[tuple[str, str, TopicQos]] = deque()
        for topic, (spec, qos) in topics.items():
            self.add_topic(topic, spec, qos)
        self._thread = threading.Thread(target=self._write, name="bag_writer", daemon=True)
        self._thread.start()

    # -- what comes in --

    def add_topic(self, topic: str, spec: TopicSpec, qos: TopicQos) -> None:
        """A topic that will be recorded from now on; one that is recorded already stays as it is."""
        if topic in self._tallies:
            return
        self._tallies[topic] = TopicTally(topic, spec)
        with self._wake:
            self._announced.append((topic, spec.type, qos))

    def put(self, message: Message, before_start: bool = False) -> None:
        """One message; never blocks. `before_start`: the newest of its topic when the episode started."""
        tally = self._tallies[message.topic]
        if not before_start:
            tally.add(message.data, message.log_ns)
        if self._stopped_s is not None and message.publish_ns < self._stopped_ns:
            self._late += 1
        with self._wake:
            if self._failure or self._queued_bytes + len(message.data) > self._queue_bytes:
                tally.dropped_by_queue += 1
                return
            self._queue.append(message)
            self._queued_bytes += len(message.data)
            self._wake.notify()

    def lost(self, topic: str, count: int) -> None:
        """DDS says that it lost messages before they came here."""
        self._tallies[topic].lost_by_dds += count

    @property
    def stopped(self) -> bool:
        """Whether `stop` has been called."""
        return self._stopped_s is not None

    def stop(self, outcome: Outcome, termination: Termination, wall_s: float, published_ns: int = 0) -> None:
        """The episode has stopped; what is under way is still recorded. `wall_s`: monotonic time [s]; `published_ns`: publication of STOPPED."""
        if self._stopped_s is None:
            self.outcome, self.termination, self._stopped_s = outcome, termination, wall_s
            self._stopped_ns, self._news, self._news_s = published_ns, self.transitions.count, wall_s

    def settled(self, wall_s: float) -> bool:
        """Whether the bag can be closed: the final transition and the observation after it have come, or nothing more is to be hoped for."""
        if self._stopped_s is None:
            return False
        if wall_s - self._stopped_s >= max(CATCH_UP, self._settle_s):
            return True  # as it would never end if the clock of a camera's machine were late
        if self.transitions.count + self._late != self._news:
            self._news, self._news_s = self.transitions.count + self._late, wall_s
        tally = self._tallies.get(self._joint_states)
        if (
            self._last_s is None
            and self.transitions.ended
            and (tally is None or tally.last_stamp_ns > self.transitions.last_ns)
        ):
            self._last_s = wall_s
        everything = self._last_s is not None and wall_s - max(self._last_s, self._news_s) >= LINGER
        return everything or wall_s - self._news_s >= self._settle_s

    def finish(self, reason: str = "") -> None:
        """Closes the bag in the writer's thread; `done` tells when. `reason`: why it is not complete, if so."""
        with self._wake:
            if reason:
                self._reasons.append(reason)
            self._finishing = True
            self._wake.notify()

    # -- what is known --

    @property
    def failure(self) -> str:
        """Why nothing is written any more; empty: all is well."""
        return self._failure

    @property
    def done(self) -> bool:
        """Whether the bag is closed and audited."""
        return not self._thread.is_alive()

    def join(self, timeout_s: float) -> bool:
        """Waits for `done`."""
        self._thread.join(timeout_s)
        return self.done

    def reports(self) -> tuple[TopicReport, ...]:
        """The audit so far, per topic."""
        return tuple(tally.report(self.transitions.window_ns) for tally in self._tallies.values())

    @property
    def messages(self) -> int:
        """Written so far; once a write has failed, those that are in the file."""
        return sum(t.count for t in self._tallies.values())

    @property
    def bytes(self) -> int:
        """Size of the file so far [byte]."""
        return self._writer.size_bytes

    @property
    def dropped(self) -> int:
        """Messages lost so far, wherever."""
        return sum(t.lost_by_dds + t.dropped_by_queue for t in self._tallies.values())

    @property
    def queued(self) -> tuple[int, int]:
        """Messages and bytes that wait for the disk."""
        with self._wake:
            return len(self._queue), self._queued_bytes

    # -- the writer's thread --

    def _write(self) -> None:
        while True:
            with self._wake:
                if not (self._queue or self._announced or self._finishing):
                    self._wake.wait(IDLE_PERIOD)
                announced, self._announced = self._announced, deque()
                batch, self._queue = self._queue, deque()
                last = self._finishing and not batch
            try:
                if not self._failure:
                    for topic, type, qos in announced:
                        self._writer.add_topic(topic, type, qos)
                    self._write_batch(batch)
                    self._writer.flush_if_due()
            except Exception as error:  # of whatever kind: a thread that dies tells nobody
                self._fail(error)
            if self._failure:
                self._drop(batch)
            if last:
                return self._close()

    def _write_batch(self, batch: deque[Message]) -> None:
        while batch:
            message = batch.popleft()
            tally = self._tallies[message.topic]
            tally.count += 1
            tally.bytes += len(message.data)
            self._unsafe.append(message)
            with self._wake:
                self._queued_bytes -= len(message.data)
            self._writer.write(message.topic, tally.spec.type, message.data, message.log_ns, message.publish_ns)
            self._settle()

    def _settle(self) -> None:
        """Forgets what is in the file."""
        while self._in_file < self._writer.in_file:
            self._unsafe.popleft()
            self._in_file += 1

    def _fail(self, error: Exception) -> None:
        """Nothing can be written any more: what the writer had taken and is not in the file is lost."""
        self._settle()
        for message in self._unsafe:
            tally = self._tallies[message.topic]
            tally.count -= 1
            tally.bytes -= len(message.data)
            tally.dropped_by_queue += 1
        self._unsafe.clear()
        with self._wake:
            self._failure = _sentence(error)

    def _drop(self, batch: deque[Message]) -> None:
        with self._wake:
            for message in batch:
                self._tallies[message.topic].dropped_by_queue += 1
                self._queued_bytes -= len(message.data)

    def _close(self) -> None:
        audit = self._verdict()
        try:
            if not self._failure:
                extra = {"complete": str(audit.complete).lower(), "audit": "; ".join(audit.reasons)}
                self._writer.close(self.outcome, self.termination, extra)
        except Exception as error:
            self._fail(error)
            audit = self._verdict()
        try:
            replace_file(self.folder / AUDIT_FILE, json.dumps(audit.to_json(), indent=1) + "\n")
        except OSError as error:
            self._failure = self._failure or f"cannot write {self.folder / AUDIT_FILE}: {error.strerror}"
        self.audit = audit

    def _verdict(self) -> EpisodeAudit:
        reports = self.reports()
        window = self.transitions.window_ns or (0, 0)
        reasons = [
            *([self._failure] if self._failure else []),
            *self._reasons,
            *self.transitions.problems,
            *(r.problem for r in reports if r.problem),
        ]
        return EpisodeAudit(
            episode_id=self.info.episode_id,
            reasons=tuple(reasons),
            outcome=self.outcome.name.lower(),
            termination=self.termination.name.lower(),
            transitions=self.transitions.count,
            duration=(window[1] - window[0]) / NANOSECONDS,
            messages=self.messages,
            bytes=self.bytes,
            topics=reports,
        )


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, AloeError) else f"cannot write the bag: {type(error).__name__}: {error}"
