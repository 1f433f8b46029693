"""When the control loop asks the policy for a chunk: one outstanding request at a time, decided from what has been executed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from aloe_core.chunk import ActionChunk
from aloe_core.vocabulary import RequestReason
from aloe_robot.control.buffer import ChunkBuffer, Refusal
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.records import ChunkRequest

LATENCIES_KEPT = 10  # our choice: the largest of the last few latencies predicts the next for real-time chunking [arXiv 2506.07339, Algorithm 1]


@dataclass(slots=True)
class _Open:
    request: ChunkRequest
    answered: bool = False


class ChunkRequester:
    """Makes the requests of an episode and matches the answers."""

    def __init__(self, config: ControlConfig, period_ns: int) -> None:
        self._config, self._period_ns = config, period_ns
        self._next_id = 1
        self._open: _Open | None = None
        self._superseded: set[int] = set()
        self._latencies: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self._asked = False  # in this episode
        self._quiet_until_ns = 0
        self.lost = 0  # requests without an answer in time, since the loop was made

    def start(self) -> None:
        """A new episode, or none: forgets what is under way, and counts from 1 again.

        The policy's randomness is drawn for episode and request: counted on, an episode would depend on how many chunks the ones before it took.
        """
        self._next_id = 1
        self._superseded.clear()
        self._open, self._asked, self._quiet_until_ns = None, False, 0

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        return int(self._open is not None and not self._open.answered)

    def due(self, now_ns: int) -> tuple[int, ...]:
        """Requests whose answer the tick at `now_ns` executes and that has not come."""
        if self._open is None or self._open.answered or self._open.request.due_ns > now_ns:
            return ()
        return (self._open.request.request_id,)

    def plan(
        self, stamp_ns: int, buffer: ChunkBuffer, instruction: str, fresh_ns: int, released: bool, shadow: bool
    ) -> ChunkRequest | None:
        """The request to make at this tick, if any.

        Args:
            stamp_ns: observation of this tick.
            fresh_ns: the arms that wait for the policy need a chunk whose observation is not older.
            released: a human let go of an arm in this tick: whatever is under way is no longer wanted.
            shadow: no arm would execute the chunk, for humans drive.
        """
        if self._open is not None and stamp_ns - self._open.request.stamp_ns > self._config.request_timeout_ns:
            self.give_up(self._open.request.request_id, stamp_ns)
            self._quiet_until_ns = stamp_ns
        if released and self._open is not None:
            self._superseded.add(self._open.request.request_id)
            self._open = None
        if self._open is not None or (stamp_ns < self._quiet_until_ns and not released):
            return None
        running = buffer.running
        outdated = running is not None and running.stamp_ns < fresh_ns
        used = running is None or running.row_at(stamp_ns) >= min(self._config.execute_steps, running.horizon)
        if not (released or outdated or used):
            return None
        if released or outdated:
            reason = RequestReason.RELEASE
        elif shadow:
            reason = RequestReason.SHADOW
        else:
            reason = RequestReason.REFILL if self._asked else RequestReason.START
        request = self._request(stamp_ns, buffer, instruction, reason)
        self._open, self._asked, self._next_id = _Open(request), True, self._next_id + 1
        return request

    def _request(self, stamp_ns: int, buffer: ChunkBuffer, instruction: str, reason: RequestReason) -> ChunkRequest:
        remainder = buffer.remainder(stamp_ns)
        prefix = remainder if self._config.execution_mode == "rtc" and reason == RequestReason.REFILL else remainder[:0]
        latency_ns = max((self._config.policy_latency_ns, *self._latencies))
        return ChunkRequest(
            request_id=self._next_id,
            stamp_ns=stamp_ns,
            due_ns=stamp_ns + self._config.policy_latency_ns,
            reason=reason,
            episode_id=buffer.episode_id or "",
            instruction=instruction,
            prefix=np.ascontiguousarray(prefix, np.float32),
            prefix_steps=min(len(prefix), -(-latency_ns // self._period_ns)),
        )

    def answer(self, chunk: ActionChunk, buffer: ChunkBuffer, now_ns: int) -> Refusal | None:
        """Hands a chunk to the buffer: an answer is executed when it is due, a chunk nobody asked for at once."""
        if chunk.episode_id != buffer.episode_id:
            return buffer.add(chunk, now_ns)  # which refuses it; its request has the number of another one here
        if chunk.request_id in self._superseded:
            return buffer.refuse(Refusal.SUPERSEDED)
        if self._open is None or chunk.request_id != self._open.request.request_id:
            return buffer.add(chunk, now_ns)
        refusal = buffer.add(chunk, now_ns, self._open.request.due_ns)
        if refusal is None:
            self._open.answered = True
        elif not self._open.answered:
            self._open = None
        return refusal

    def adopted(self, chunk: ActionChunk, now_ns: int) -> None:
        """The buffer has taken a chunk into use."""
        if self._open is not None and self._open.request.request_id == chunk.request_id:
            self._latencies.append(now_ns - self._open.request.stamp_ns)
            self._open = None

    def give_up(self, request_id: int, now_ns: int) -> None:
        """A request counts as lost; the next one is made after the request timeout."""
        if self._open is not None and self._open.request.request_id == request_id:
            if not self._open.answered:
                self.lost += 1
                self._quiet_until_ns = now_ns + self._config.request_timeout_ns
            self._open = None
