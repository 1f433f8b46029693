"""The action chunk: a time-indexed block of future joint targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aloe_core.errors import AloeError

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """Joint targets for the instants `stamp_ns + k * dt_ns`, k = 0 .. horizon - 1.

    Attributes:
        stamp_ns: time of the *observation* the chunk was computed from [ns].
        positions: float32 `[H, A]`, action order of the robot description; joints [rad], grippers 0 closed .. 1 open.
        dt_ns: time between rows [ns].
        chunk_id: unique within one policy process, increasing.
        request_id: the request it answers; 0 when unasked.
        policy_version: version of the policy that computed it.
        inference_latency_s: wall time of the inference alone [s].
        camera_stamps_ns: stamp of the image used from each camera [ns].
    """

    stamp_ns: int
    positions: np.ndarray
    dt_ns: int
    chunk_id: int
    request_id: int = 0
    policy_version: str = ""
    episode_id: str = ""
    inference_latency_s: float = 0.0
    camera_stamps_ns: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.positions.ndim != 2 or self.positions.shape[0] == 0:
            raise AloeError(f"a chunk needs positions [horizon, action], not an array of shape {self.positions.shape}")
        if self.dt_ns <= 0:
            raise AloeError(f"a chunk needs a positive time step, not {self.dt_ns} ns")

    @property
    def horizon(self) -> int:
        return self.positions.shape[0]

    def row_at(self, time_ns: int) -> int:
        """Row whose interval `[stamp + k dt, stamp + (k+1) dt)` holds `time_ns`; may lie outside 0 .. horizon - 1."""
        return (time_ns - self.stamp_ns) // self.dt_ns
