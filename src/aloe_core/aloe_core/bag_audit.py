"""Checks a bag from the first byte to the last: checksums, counts, rates, gaps, and whether its transitions make an episode."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mcap.reader import SeekingReader

from aloe_core.bag_format import Topic, TopicQos
from aloe_core.bag_mcap import McapStorage
from aloe_core.bag_reader import read_episode
from aloe_core.bag_storage import Storage, open_storage
from aloe_core.errors import AloeError
from aloe_core.messages import has_header, header_stamp_ns
from aloe_core.robot import RobotDescription
from aloe_core.topics import TRANSITION

GAP_FACTOR = 3.0  # our choice: a pause of three typical periods of a periodic topic is a gap
SHORTEST_GAP = 0.1  # [s] our choice: less is the jitter of a loaded machine
PERIODIC_SPREAD = 0.5  # a topic is periodic if the middle half of its periods differ by less than half of the median
FEWEST_PERIODS = 10


@dataclass(frozen=True, slots=True)
class TopicCheck:
    """One topic of a bag: `rate` [Hz] and `max_gap` [s] by header stamp, else by log time; `expected` is the count in metadata.yaml, -1 without it."""

    topic: str
    type: str
    count: int
    expected: int
    rate: float
    max_gap: float


@dataclass(frozen=True, slots=True)
class BagCheck:
    """Result of `verify`; `ok` means no problems."""

    folder: str
    ok: bool
    episode_id: str
    outcome: str
    steps: int
    messages: int
    size_bytes: int
    duration: float  # [s]
    topics: tuple[TopicCheck, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def verify(folder: Path | str, robot: RobotDescription | None = None) -> BagCheck:
    """Reads the whole bag; everything found wrong is a sentence in `problems`, never an exception, except that there is no bag at all.

    Args:
        robot: as for `read_episode`.

    Raises:
        AloeError: `folder` holds no bag.
    """
    folder = Path(folder)
    problems: list[str] = []
    topics: tuple[TopicCheck, ...] = ()
    first, last = 0, 0
    try:
        storage = open_storage(folder)
    except AloeError as error:
        if not folder.is_dir() or not any(folder.iterdir()):
            raise
        problems.append(str(error))
    else:
        try:
            recorded = storage.topics()
            times = _times(storage, problems)
            # What lies before the first transition is the observation the episode began with; a simulator is paused meanwhile.
            begin = min((t[0] for name, t in times.items() if name.endswith(TRANSITION)), default=0)
            topics = tuple(
                _check(topic, np.array(times.get(topic.name, []), np.int64), begin, problems) for topic in recorded
            )
            everything = [t for values in times.values() for t in values]
            first, last = (min(everything), max(everything)) if everything else (0, 0)
            if isinstance(storage, McapStorage) and storage.complete:
                _check_index(storage, sum(len(v) for v in times.values()), problems)
        finally:
            storage.close()
    episode_id, outcome, steps = "", "", 0
    if not problems:  # a damaged bag has said enough
        try:
            record = read_episode(folder, robot)
            problems += record.problems
            episode_id, outcome, steps = record.info.episode_id, record.outcome.name.lower(), len(record)
        except AloeError as error:
            problems.append(str(error))
    return BagCheck(
        folder=str(folder),
        ok=not problems,
        episode_id=episode_id,
        outcome=outcome,
        steps=steps,
        messages=sum(t.count for t in topics),
        size_bytes=sum(f.stat().st_size for f in folder.iterdir() if f.is_file()),
        duration=(last - first) / 1e9,
        topics=topics,
        problems=tuple(problems),
    )


def _times(storage: Storage, problems: list[str]) -> dict[str, list[int]]:
    """Times of every topic [ns], in the order of recording: header stamps, or log times for types without one.

    A machine under load takes in messages in bursts; what counts is whether the data themselves have a hole.
    """
    times: defaultdict[str, list[int]] = defaultdict(list)
    stamped: dict[str, bool] = {topic.name: has_header(topic.type) for topic in storage.topics()}
    for raw in storage.scan(lambda topic: True, problems):
        known = stamped.get(raw.topic, False) and len(raw.data) >= 12
        times[raw.topic].append(header_stamp_ns(raw.data) if known else raw.log_time_ns)
    return times


def _check(topic: Topic, times_ns: np.ndarray, begin_ns: int, problems: list[str]) -> TopicCheck:
    """Counts everything; looks for gaps from `begin_ns` on."""
    count = len(times_ns)
    if 0 <= topic.count != count:
        problems.append(f"{topic.name}: {count} messages, metadata.yaml says {topic.count}")
    periods = np.diff(np.sort(times_ns[times_ns >= begin_ns])) / 1e9
    span = periods.sum()
    gap = float(periods.max()) if len(periods) else 0.0
    latched = (
        TopicQos.from_rosbag2(topic.qos).durability == "transient_local"
    )  # a state: it is published when it changes
    if has_header(topic.type) and not latched and len(periods) >= FEWEST_PERIODS:
        quarter, median, three_quarters = np.quantile(periods, [0.25, 0.5, 0.75])
        if three_quarters - quarter < PERIODIC_SPREAD * median and gap > max(GAP_FACTOR * median, SHORTEST_GAP):
            problems.append(f"{topic.name}: a gap of {gap:.3f} s in a topic of {1 / median:.1f} Hz")
    rate = float(len(periods) / span) if span > 0 else 0.0
    return TopicCheck(topic.name, topic.type, count, topic.count, rate, gap)


def _check_index(storage: McapStorage, messages: int, problems: list[str]) -> None:
    """The index is what other tools go by: it must be readable and agree with the content."""
    indexed = 0
    for file in storage.files:
        with open(file, "rb") as stream:
            try:
                summary = SeekingReader(stream, validate_crcs=True).get_summary()
            except Exception as error:  # `mcap` raises whatever damaged bytes lead to
                problems.append(f"{file.name}: its index is damaged ({type(error).__name__}: {error})")
                return
        if summary is None or summary.statistics is None:
            problems.append(f"{file.name}: it has no index")
            return
        indexed += summary.statistics.message_count
    if indexed != messages:
        problems.append(f"{messages} messages, the index says {indexed}")
