"""Waiting for messages that belong together, for as long as their sender is alive."""

from __future__ import annotations


class Gate:
    """Opens when everything has come, or after a limit of wall time; then it stays open until everything comes again.

    So a node in lockstep waits for its partner however slow the machine is, and does not crawl when the partner is gone.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s: float | None = None
        self.given_up = False

    def passes(self, complete: bool, wall_s: float) -> bool:
        """Whether to go on.

        Args:
            complete: everything waited for is there.
            wall_s: monotonic wall time [s].
        """
        if complete:
            self.given_up, self._since_s = False, None
            return True
        if self._since_s is None:
            self._since_s = wall_s
        self.given_up = self.given_up or wall_s - self._since_s >= self._limit_s
        return self.given_up
