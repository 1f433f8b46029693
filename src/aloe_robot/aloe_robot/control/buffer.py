"""The chunk buffer: which row of which chunk is for this instant.

Chunks are indexed by time alone: row k of a chunk is for `stamp + k dt`, a tick at time t gets the row for t. A row whose time has passed is gone
because it has passed, never because of an estimate of latency. Between two rows (a chunk with a period other than the control loop's, or a tick
that is not exactly on a row) the target is interpolated linearly; the last row holds for one more period, then the chunk is used up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

import numpy as np

from aloe_core.chunk import ActionChunk


class Refusal(Enum):
    """Why a chunk was not taken."""

    NO_EPISODE = "no episode is running"
    WRONG_EPISODE = "it belongs to another episode"
    WRONG_SIZE = "it has another number of joints"
    NON_FINITE = "it holds NaN or infinity"
    FUTURE = "its observation lies in the future"
    EXPIRED = "all of its rows have passed"
    DUPLICATE = "it has come before"
    OLDER = "a newer chunk is running"
    SUPERSEDED = "its request was replaced by a later one"
    MALFORMED = "the message does not fit the robot"


@dataclass(frozen=True, slots=True)
class Row:
    """Targets for one instant: `positions [A]`, and where the newest chunk behind them comes from."""

    positions: np.ndarray
    chunk_id: int
    chunk_step: int
    policy_version: str


@dataclass(slots=True)
class _Entry:
    chunk: ActionChunk
    positions: np.ndarray  # float64 [H, A]
    available_ns: int  # not used before
    end_ns: int  # used up from here on
    since_ns: int | None = None  # first instant it was executed from

    def at(self, time_ns: int) -> np.ndarray:
        """Row `[A]` for an instant that the chunk covers."""
        row, rest = divmod(time_ns - self.chunk.stamp_ns, self.chunk.dt_ns)
        here = self.positions[row]
        if rest == 0 or row + 1 == len(self.positions):
            return here
        return here + (self.positions[row + 1] - here) * (rest / self.chunk.dt_ns)


class ChunkBuffer:
    """Holds the chunks of one episode and blends them.

    Modes: `latest` executes the newest chunk. `temporal_ensemble` averages every chunk that covers the instant with weights exp(-m i), i = 0 for the
    oldest (ACT). `cross_fade` moves linearly from the chunk before to the new one over `fade_ns`. `rtc` executes the newest chunk as it is, for
    it was generated to continue the one before (real-time chunking); the request carries that one's remainder.
    """

    def __init__(
        self, action_dim: int, mode: str = "latest", decay: float = 0.01, fade_ns: int = 0, tolerance_ns: int = 0
    ) -> None:
        self._action_dim, self._mode, self._decay, self._fade_ns, self._tolerance_ns = (
            action_dim,
            mode,
            decay,
            fade_ns,
            tolerance_ns,
        )
        self._entries: list[_Entry] = []  # by (stamp, chunk id), oldest first
        self._newest = (-1, -1)
        self.episode_id: str | None = None
        self.refused: Counter[Refusal] = Counter()
        self.last_refusal = ""

    def start(self, episode_id: str | None) -> None:
        """Forgets every chunk; from now on takes those of `episode_id`, or none at all."""
        self.episode_id = episode_id
        self._entries.clear()
        self._newest = (-1, -1)

    def add(self, chunk: ActionChunk, now_ns: int, available_ns: int | None = None) -> Refusal | None:
        """Takes a chunk, or says why not. With `available_ns` it is not executed before that instant."""
        key = (chunk.stamp_ns, chunk.chunk_id)
        end_ns = chunk.stamp_ns + chunk.horizon * chunk.dt_ns
        if self.episode_id is None:
            return self.refuse(Refusal.NO_EPISODE)
        if chunk.episode_id != self.episode_id:
            return self.refuse(Refusal.WRONG_EPISODE)
        if chunk.positions.shape[1] != self._action_dim:
            return self.refuse(Refusal.WRONG_SIZE)
        if not np.isfinite(chunk.positions).all():
            return self.refuse(Refusal.NON_FINITE)
        if chunk.stamp_ns > now_ns + self._tolerance_ns:
            return self.refuse(Refusal.FUTURE)
        if end_ns <= now_ns:
            return self.refuse(Refusal.EXPIRED)
        if key == self._newest or any((e.chunk.stamp_ns, e.chunk.chunk_id) == key for e in self._entries):
            return self.refuse(Refusal.DUPLICATE)
        if key < self._newest:
            return self.refuse(Refusal.OLDER)
        self._newest = key
        available = chunk.stamp_ns if available_ns is None else max(available_ns, chunk.stamp_ns)
        self._entries.append(_Entry(chunk, chunk.positions.astype(np.float64), available, end_ns))
        return None

    def refuse(self, reason: Refusal) -> Refusal:
        """Counts a chunk that was not taken."""
        self.refused[reason] += 1
        self.last_refusal = reason.value
        return reason

    def advance(self, time_ns: int) -> ActionChunk | None:
        """Goes on to `time_ns`: drops what has passed, takes into use what is due. Returns the chunk that was newly taken into use, if any."""
        adopted = None
        for entry in self._entries:
            if entry.since_ns is None and entry.available_ns <= time_ns:
                entry.since_ns, adopted = time_ns, entry.chunk
        self._entries = [e for e in self._entries if e.end_ns > time_ns]
        used = [i for i, e in enumerate(self._entries) if self._ousts(e, time_ns)]
        if used:
            del self._entries[: used[-1]]
        return adopted

    def _ousts(self, entry: _Entry, time_ns: int) -> bool:
        """Whether nothing older than `entry` will be executed again."""
        if entry.since_ns is None or self._mode == "temporal_ensemble":
            return False
        return self._mode != "cross_fade" or time_ns + 1 >= entry.since_ns + self._fade_ns

    def row(self, time_ns: int, not_before_ns: int = 0) -> Row | None:
        """Targets for the instant last given to `advance`, out of chunks whose observation is at or after `not_before_ns`; None: starved."""
        entries = [
            e
            for e in self._entries
            if e.since_ns is not None and e.chunk.stamp_ns >= not_before_ns and e.end_ns > time_ns
        ]
        if not entries:
            return None
        newest = entries[-1].chunk
        if len(entries) == 1 or self._mode in ("latest", "rtc"):
            positions = entries[-1].at(time_ns)
        elif self._mode == "temporal_ensemble":
            weights = np.exp(-self._decay * np.arange(len(entries)))
            positions = (weights / weights.sum()) @ np.stack([e.at(time_ns) for e in entries])
        else:
            positions = entries[0].at(time_ns)
            for entry in entries[1:]:
                share = self._share(entry, time_ns)
                positions = (1 - share) * positions + share * entry.at(time_ns)
        return Row(positions, newest.chunk_id, newest.row_at(time_ns), newest.policy_version)

    def _share(self, entry: _Entry, time_ns: int) -> float:
        """Weight 0..1 of a chunk against the one before it: linear, 0 just before its first tick."""
        assert entry.since_ns is not None
        step = entry.chunk.dt_ns
        return min(1.0, (time_ns - entry.since_ns + step) / (self._fade_ns + step))

    @property
    def running(self) -> ActionChunk | None:
        """The newest chunk in use."""
        return next((e.chunk for e in reversed(self._entries) if e.since_ns is not None), None)

    def remaining(self, time_ns: int) -> int:
        """Rows of the running chunk whose time comes after `time_ns`."""
        chunk = self.running
        return 0 if chunk is None else max(0, chunk.horizon - 1 - max(chunk.row_at(time_ns), -1))

    def remainder(self, time_ns: int) -> np.ndarray:
        """`[n, A]` rows of the running chunk from `time_ns` on, at its own period; `[0, A]` when there is none."""
        entry = next((e for e in reversed(self._entries) if e.since_ns is not None), None)
        if entry is None or entry.end_ns <= time_ns:
            return np.zeros((0, self._action_dim))
        times = range(max(time_ns, entry.chunk.stamp_ns), entry.end_ns, entry.chunk.dt_ns)
        return np.stack([entry.at(t) for t in times])
