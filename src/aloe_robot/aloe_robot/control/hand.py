"""One arm's share of the control loop: who drives it, how old its chunks may be, and the blend it is in."""

from __future__ import annotations

import numpy as np

from aloe_robot.control.arbiter import Arbiter


class ArmHand:
    """State of one arm; `span` is where its entries lie in an action vector."""

    def __init__(self, name: str, span: slice, engage_ticks: int) -> None:
        self.name, self.span = name, span
        self.arbiter = Arbiter(engage_ticks)
        self.fresh_ns = 0  # chunks with an older observation are not executed on this arm
        self.followed = False  # somebody has driven it in this episode
        self._from: np.ndarray | None = None
        self._ticks, self._tick = 0, 0

    def fade(self, command: np.ndarray, ticks: int) -> None:
        """From now on `blend` moves linearly from `command [arm's entries]` to its targets within `ticks`."""
        self._from, self._ticks, self._tick = command.copy(), ticks, 0

    def blend(self, target: np.ndarray) -> np.ndarray:
        """The target of this tick, blended while a fade runs."""
        if self._from is None or self._tick >= self._ticks:
            self._from = None
            return target
        self._tick += 1
        share = self._tick / (self._ticks + 1)
        return (1 - share) * self._from + share * target
