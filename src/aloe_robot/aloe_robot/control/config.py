"""Settings of the control loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError

EXECUTION_MODES = (
    "latest",
    "temporal_ensemble",
    "cross_fade",
    "rtc",
)  # how consecutive chunks become one stream; see `ChunkBuffer`


@dataclass(frozen=True)
class ControlConfig:
    """Settings of `ControlLoop`; durations in seconds of control time.

    Raises:
        AloeError: a value makes no sense; the message names the key.
    """

    execution_mode: str = "latest"
    execute_steps: int = (
        25  # rows of the running chunk whose time passes before the next is asked for [paper: 25 of 50 for packing]
    )
    ensemble_decay: float = (
        0.01  # m of the ensemble weights exp(-m i), i = 0 for the oldest chunk [ACT, arXiv 2304.13705, Algorithm 2]
    )
    cross_fade_time: float = 0.1  # from one chunk to the next, execution mode cross_fade
    engage_blend_time: float = 0.2  # from the last command to the human's targets
    release_blend_time: float = 0.2  # from the held pose to the fresh chunk after a release
    engage_ticks: int = 2  # consecutive ticks a human must ask for control: a twitch of one frame is no intervention
    policy_latency: float = (
        0.0  # simulated inference time: a chunk asked for at t is used from t + latency on, however early it came
    )
    request_timeout: float = 2.0  # without an answer for so long a request counts as lost and may be repeated

    def __post_init__(self) -> None:
        if self.execution_mode not in EXECUTION_MODES:
            raise AloeError(f"execution_mode: '{self.execution_mode}' is not one of: {', '.join(EXECUTION_MODES)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "execution_mode":
                continue
            if field.name in ("execute_steps", "engage_ticks"):
                if not isinstance(value, int) or value < 1:
                    raise AloeError(f"{field.name}: {value!r} is not a whole number above 0")
            elif not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise AloeError(f"{field.name}: {value!r} is not a finite number of at least 0")
        if self.engage_ticks < 2:
            raise AloeError("engage_ticks: 1 would make a twitch of one frame an intervention; use 2 or more")
        if self.request_timeout <= self.policy_latency:
            raise AloeError(
                f"request_timeout: {self.request_timeout} s must be above policy_latency ({self.policy_latency} s), else every request is lost"
            )

    @property
    def policy_latency_ns(self) -> int:
        return round(self.policy_latency * NANOSECONDS)

    @property
    def request_timeout_ns(self) -> int:
        return round(self.request_timeout * NANOSECONDS)
