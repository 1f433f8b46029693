"""Which episode should run: the events of `episode/event`, those from before we listened among them, as starts and ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aloe_core.errors import AloeError
from aloe_core.vocabulary import EventType, Outcome

SETTLE_TIME = 0.2  # [s] wall time without another old event after which the newest of them counts (our choice: they come in one burst)


@dataclass(frozen=True, slots=True)
class Start:
    """An episode is to run; `resumed`: it was under way before we listened."""

    episode_id: str
    instruction: str
    stamp_ns: int
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The running episode is over. `complaint`: what was wrong with the event that said so; empty: nothing."""

    outcome: Outcome
    complaint: str = ""


class EpisodeFollower:
    """Turns events into starts and ends.

    A reader that starts late may be given several old events, oldest first; only the newest tells what runs. An old STARTED therefore waits in `settled`
    until no old event has followed for SETTLE_TIME. An episode is over with its STOPPED, or, should that be lost, with its LABELLED or DISCARDED.
    """

    def __init__(self) -> None:
        self._late: Start | None = None
        self._since = 0.0

    def hear(self, event: int, start: Start, outcome: int, running: str, late: bool, now: float) -> Start | End | None:
        """What an event asks for.

        Args:
            event: `EventType` as a number.
            start: the start of the event's episode, if it is one.
            outcome: `Outcome` as a number.
            running: the episode that runs; empty: none.
            late: the event was published before we listened.
            now: wall time [s].

        Raises:
            AloeError: an episode without an id is to start.
        """
        if event == EventType.STARTED:
            if not start.episode_id:
                raise AloeError("an episode without an id was announced and is ignored")
            if start.episode_id == running:
                return None
            self._late, self._since = (replace(start, resumed=True) if late else None), now
            return None if late else start
        if event not in (EventType.STOPPED, EventType.LABELLED, EventType.DISCARDED):
            return None
        if self._late is not None and start.episode_id == self._late.episode_id:
            self._late = None
        if not running or start.episode_id != running:
            return None
        try:
            return End(Outcome(outcome))
        except ValueError:
            return End(Outcome.UNLABELLED, f"episode '{running}' ends with the unknown outcome {outcome}")

    def settled(self, now: float) -> Start | None:
        """The start of the episode that was under way before we listened, once."""
        if self._late is None or now - self._since < SETTLE_TIME:
            return None
        start, self._late = self._late, None
        return start
