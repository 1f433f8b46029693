"""An interrupt that waits until the one who is interrupted can do with it."""

from __future__ import annotations

import signal
from types import TracebackType

from typing_extensions import Self


class Interrupt:
    """While it is entered, SIGINT and SIGTERM are only noted; `heed` raises `KeyboardInterrupt` for them.

    What a signal's handler raises can end up in the middle of a request, or within rclpy, which makes another exception of it. Of the main thread only.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heed(self) -> None:
        """Raises `KeyboardInterrupt` if there was an interrupt."""
        if self._came:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: object) -> None:
        self._came = True
