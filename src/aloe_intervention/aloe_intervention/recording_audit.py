"""Whether a recording is whole: counts, rates and gaps per topic, and an unbroken row of transitions. A bag is complete or says why not."""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aloe_core.chunk import NANOSECONDS
from aloe_core.messages import has_header, header_stamp_ns
from aloe_intervention.recording_topics import TopicSpec

AUDIT_FILE = "audit.json"
RATE_FRACTION = 0.9  # our choice: a topic that misses one message in ten is not what a policy can be trained on
GAP_PERIODS = 5  # our choice: a longer pause than five periods is a gap, not jitter
SHORTEST_GAP = 0.1  # [s] of scheduling jitter that no rate turns into a gap


@dataclass(frozen=True, slots=True)
class TopicReport:
    """One topic of a recording; rates [Hz] and gaps [s] by header stamps, or by time of arrival for types without one."""

    topic: str
    type: str
    count: int
    bytes: int
    lost_by_dds: int
    dropped_by_queue: int
    rate: float
    expected_rate: float
    max_gap: float
    problem: str  # empty: none

    @property
    def dropped(self) -> int:
        """Messages lost before the bag, wherever."""
        return self.lost_by_dds + self.dropped_by_queue


class TopicTally:
    """Counts one topic while it is recorded. Messages from before the start are counted, but are no part of rates and gaps."""

    def __init__(self, topic: str, spec: TopicSpec) -> None:
        self.topic = topic
        self.spec = spec
        self.count = self.bytes = self.lost_by_dds = self.dropped_by_queue = 0
        self._header = has_header(spec.type)
        self._stamps = array("q")  # [ns]

    @property
    def last_stamp_ns(self) -> int:
        """Newest stamp; -1: none."""
        return self._stamps[-1] if self._stamps else -1

    def add(self, data: bytes, arrival_ns: int) -> None:
        """One message received during the episode."""
        self._stamps.append(header_stamp_ns(data) if self._header else arrival_ns)

    def report(self, window_ns: tuple[int, int] | None) -> TopicReport:
        """What is known so far; `window_ns`: first and last tick of the episode, None before the first."""
        expected = self.spec.expected_rate
        stamps = np.sort(np.frombuffer(self._stamps, np.int64)) if self._stamps else np.empty(0, np.int64)
        first, last = window_ns or ((int(stamps[0]), int(stamps[-1])) if len(stamps) else (0, 0))
        period = NANOSECONDS / expected if expected else 0.0
        # A topic may tick at other instants than the control loop: one period before the first tick still belongs to it.
        inside = stamps[(stamps > first - max(period, 1)) & (stamps <= last)]
        rate = len(inside) * NANOSECONDS / (last - first + period) if last - first + period > 0 else 0.0
        edges = [first, last] if expected and window_ns else []  # silence at either end is a gap as well
        gaps = np.diff(np.unique(np.concatenate([inside, np.array(edges, np.int64)])))
        max_gap = float(gaps.max()) / NANOSECONDS if len(gaps) else 0.0
        return TopicReport(
            self.topic,
            self.spec.type,
            self.count,
            self.bytes,
            self.lost_by_dds,
            self.dropped_by_queue,
            rate,
            expected,
            max_gap,
            self._problem(rate, max_gap, (last - first) / NANOSECONDS),
        )

    def _problem(self, rate: float, max_gap: float, duration: float) -> str:
        expected = self.spec.expected_rate
        if self.lost_by_dds or self.dropped_by_queue:
            return f"{self.topic}: {self.lost_by_dds} messages lost by DDS, {self.dropped_by_queue} that could not be written"
        if expected and duration * expected >= 2:
            if rate < RATE_FRACTION * expected:
                return f"{self.topic}: {rate:.1f} Hz instead of {expected:g} Hz"
            if self._header and max_gap > max(GAP_PERIODS / expected, SHORTEST_GAP):
                return f"{self.topic}: nothing for {max_gap:.3f} s at {expected:g} Hz"
        return ""


class TransitionRow:
    """Follows the transitions of one episode: steps must be 0, 1, 2, ... and the last one must end it."""

    def __init__(self) -> None:
        self.first_ns = self.last_ns = -1
        self.count = 0
        self.ended = False
        self._next = 0
        self._problems: list[str] = []

    def add(self, step: int, stamp_ns: int, final: bool) -> None:
        """One transition; `final`: terminated or truncated."""
        if step != self._next:
            missing = f"{self._next} .. {step - 1}" if step > self._next else f"out of order at {step}"
            self._problems.append(
                f"transitions: steps {missing} are missing" if step > self._next else f"transitions: {missing}"
            )
        self._next = step + 1
        self.count += 1
        self.first_ns = stamp_ns if self.first_ns < 0 else self.first_ns
        self.last_ns = stamp_ns
        self.ended |= final

    @property
    def window_ns(self) -> tuple[int, int] | None:
        """Stamps of the first and the newest transition."""
        return (self.first_ns, self.last_ns) if self.count else None

    @property
    def problems(self) -> list[str]:
        """What is wrong with the row, were the episode over now."""
        if not self.count:
            return ["no transition was recorded"]
        return [*self._problems, *([] if self.ended else ["the final transition is missing"])]


@dataclass(frozen=True, slots=True)
class EpisodeAudit:
    """The verdict beside the bag (`audit.json`); `reasons` is empty for a complete one."""

    episode_id: str
    reasons: tuple[str, ...]
    outcome: str
    termination: str
    transitions: int
    duration: float  # [s] first to last transition
    messages: int
    bytes: int
    topics: tuple[TopicReport, ...]

    @property
    def complete(self) -> bool:
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        return {"complete": self.complete, **data, "topics": [{**asdict(t), "dropped": t.dropped} for t in self.topics]}
