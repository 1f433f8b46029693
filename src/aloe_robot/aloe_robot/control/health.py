"""How the control loop is doing, for its diagnostics."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from aloe_core.chunk import NANOSECONDS
from aloe_core.vocabulary import SafetyState
from aloe_robot.control.records import SafetyReport

OK, WARN, ERROR = 0, 1, 2  # levels of diagnostic_msgs/DiagnosticStatus
SECONDS = 10  # of ticks that are looked back on


class TickTimes:
    """Wall times [s] of the last ticks against a period [ns]."""

    def __init__(self, period_ns: int) -> None:
        self._period = period_ns / NANOSECONDS
        self._times: deque[float] = deque(maxlen=round(SECONDS / self._period))

    def add(self, time: float) -> None:
        """A tick has ended."""
        self._times.append(time)

    @property
    def last(self) -> float:
        """Time of the last tick; minus infinity before the first."""
        return self._times[-1] if self._times else -np.inf

    @property
    def rate_hz(self) -> float:
        """Ticks per second; 0 before the second tick."""
        return (len(self._times) - 1) / (self._times[-1] - self._times[0]) if len(self._times) > 1 else 0.0

    @property
    def jitter_p99_s(self) -> float:
        """99th percentile of |time between two ticks - period| [s]; 0 before the second tick."""
        if len(self._times) < 2:
            return 0.0
        return float(np.percentile(np.abs(np.diff(np.array(self._times)) - self._period), 99))


def verdict(report: SafetyReport, missing: Sequence[str], topic: str, episode_id: str) -> tuple[int, str]:
    """Level and sentence of the diagnostics; `missing`: joints that have not been measured on `topic`."""
    if report.state == SafetyState.STOPPED:
        return ERROR, report.message
    if missing:
        return WARN, f"no joint state for {', '.join(missing)} on {topic}"
    if report.message:
        return WARN, report.message
    return OK, f"episode '{episode_id}'" if episode_id else "no episode"
