"""What goes into a tick of the control loop and what comes out: plain records, times in integer nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aloe_core.vocabulary import Mode, RequestReason, SafetyReason, SafetyState, Source


@dataclass(frozen=True, slots=True)
class TeleopInput:
    """Newest `TeleopCommand` of one arm.

    Attributes:
        stamp_ns: time of the human's input.
        engaged: the human asks for this arm.
        positions: `[arm's action entries]` joint targets, action order; None or empty while not engaged.
        healthy: false: the targets must not be followed; `message` says why.
    """

    stamp_ns: int
    engaged: bool
    positions: np.ndarray | None = None
    healthy: bool = True
    message: str = ""


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """A chunk computed from the observation at `stamp_ns` is wanted (`aloe_msgs/ChunkRequest`).

    Attributes:
        due_ns: control time from which the answer is executed.
        prefix: `[n, A]` what remains of the running chunk from `stamp_ns` on (real-time chunking), else `[0, A]`.
        prefix_steps: rows of it that will be executed before the answer is.
    """

    request_id: int
    stamp_ns: int
    due_ns: int
    reason: RequestReason
    episode_id: str
    instruction: str
    prefix: np.ndarray
    prefix_steps: int


@dataclass(frozen=True, slots=True)
class Transition:
    """One tick as a learning sample; fields as in `aloe_msgs/Transition`."""

    stamp_ns: int
    episode_id: str
    step: int
    fragment: int
    source: tuple[Source, ...]
    executed: np.ndarray
    proposal: np.ndarray | None
    chunk_id: int
    chunk_step: int
    policy_version: str
    intervention_id: int
    safety_limited: bool
    reward: float = -1.0
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class SafetyReport:
    """State of the safety filter; fields as in `aloe_msgs/SafetyStatus`. `counters[reason]` counts ticks."""

    state: SafetyState
    reason: SafetyReason
    joint: str
    message: str
    counters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ControlSnapshot:
    """What the loop did in its last tick; fields as in `aloe_msgs/ControlState`."""

    stamp_ns: int
    episode_id: str
    tick: int
    step: int
    mode: tuple[Mode, ...]
    commanded: np.ndarray
    measured: np.ndarray
    chunk_id: int
    chunk_step: int
    remaining_steps: int
    pending_requests: int
    starved_ticks: int
    discarded_chunks: int
    discard_reason: str
    intervention_id: int
    policy_version: str


@dataclass(frozen=True, slots=True)
class TickResult:
    """Result of one tick.

    Attributes:
        now_ns: time of the tick; `state.stamp_ns` is that of its observation.
        commanded: float64 `[A]` what goes to the arms: joints [rad], grippers 0..1.
        source: who moved each arm.
        proposal: `[A]` what the policy proposed for this instant, None if it had nothing.
        requests: chunk requests made in this tick.
        transition: that of the tick before, complete; None for an episode's first tick and outside episodes.
        state: everything `ControlState` tells.
        safety: state of the safety filter.
    """

    now_ns: int
    commanded: np.ndarray
    source: tuple[Source, ...]
    proposal: np.ndarray | None
    requests: tuple[ChunkRequest, ...]
    transition: Transition | None
    state: ControlSnapshot
    safety: SafetyReport
