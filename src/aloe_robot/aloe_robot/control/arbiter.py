"""Who drives each arm: one state machine per arm, written down as a table.

An arm is taken over on the *edge* of `engaged`, after `engage_ticks` consecutive ticks of it. A dead-man button that is already held when an
episode starts or a stop is reset gives no control until it was let go once, and until then the policy does not move the arm either.
"""

from __future__ import annotations

from enum import Enum, auto

from aloe_core.vocabulary import Mode


class ArmState(Enum):
    """State of one arm. `LOST` is a human's arm without usable targets: it holds and goes on with the human when they are back."""

    IDLE = auto()
    HOLD = auto()
    POLICY = auto()
    HUMAN = auto()
    LOST = auto()
    STOPPED = auto()


class Event(Enum):
    """What can happen to one arm."""

    START = auto()  # an episode starts
    END = auto()  # the episode ends
    CHUNK = auto()  # the policy has a row for this instant
    STARVED = auto()  # it has none
    ENGAGE = auto()  # a human takes the arm
    RELEASE = auto()  # and lets go
    SILENCE = auto()  # the human's targets are stale or unhealthy
    RECOVERY = auto()  # and usable again
    STOP = auto()  # latched safety stop
    RESET = auto()  # the stop is taken back


S, E = ArmState, Event
TRANSITIONS: dict[tuple[ArmState, Event], ArmState] = {
    (S.IDLE, E.START): S.HOLD,
    (S.IDLE, E.END): S.IDLE,
    (S.IDLE, E.CHUNK): S.IDLE,
    (S.IDLE, E.STARVED): S.IDLE,
    (S.IDLE, E.ENGAGE): S.IDLE,
    (S.IDLE, E.RELEASE): S.IDLE,
    (S.IDLE, E.SILENCE): S.IDLE,
    (S.IDLE, E.RECOVERY): S.IDLE,
    (S.IDLE, E.STOP): S.STOPPED,
    (S.IDLE, E.RESET): S.IDLE,
    (S.HOLD, E.START): S.HOLD,
    (S.HOLD, E.END): S.IDLE,
    (S.HOLD, E.CHUNK): S.POLICY,
    (S.HOLD, E.STARVED): S.HOLD,
    (S.HOLD, E.ENGAGE): S.HUMAN,
    (S.HOLD, E.RELEASE): S.HOLD,
    (S.HOLD, E.SILENCE): S.HOLD,
    (S.HOLD, E.RECOVERY): S.HOLD,
    (S.HOLD, E.STOP): S.STOPPED,
    (S.HOLD, E.RESET): S.HOLD,
    (S.POLICY, E.START): S.HOLD,
    (S.POLICY, E.END): S.IDLE,
    (S.POLICY, E.CHUNK): S.POLICY,
    (S.POLICY, E.STARVED): S.HOLD,
    (S.POLICY, E.ENGAGE): S.HUMAN,
    (S.POLICY, E.RELEASE): S.POLICY,
    (S.POLICY, E.SILENCE): S.POLICY,
    (S.POLICY, E.RECOVERY): S.POLICY,
    (S.POLICY, E.STOP): S.STOPPED,
    (S.POLICY, E.RESET): S.POLICY,
    (S.HUMAN, E.START): S.HOLD,
    (S.HUMAN, E.END): S.IDLE,
    (S.HUMAN, E.CHUNK): S.HUMAN,
    (S.HUMAN, E.STARVED): S.HUMAN,
    (S.HUMAN, E.ENGAGE): S.HUMAN,
    (S.HUMAN, E.RELEASE): S.HOLD,
    (S.HUMAN, E.SILENCE): S.LOST,
    (S.HUMAN, E.RECOVERY): S.HUMAN,
    (S.HUMAN, E.STOP): S.STOPPED,
    (S.HUMAN, E.RESET): S.HUMAN,
    (S.LOST, E.START): S.HOLD,
    (S.LOST, E.END): S.IDLE,
    (S.LOST, E.CHUNK): S.LOST,
    (S.LOST, E.STARVED): S.LOST,
    (S.LOST, E.ENGAGE): S.HUMAN,
    (S.LOST, E.RELEASE): S.HOLD,
    (S.LOST, E.SILENCE): S.LOST,
    (S.LOST, E.RECOVERY): S.HUMAN,
    (S.LOST, E.STOP): S.STOPPED,
    (S.LOST, E.RESET): S.LOST,
    (S.STOPPED, E.START): S.STOPPED,
    (S.STOPPED, E.END): S.STOPPED,
    (S.STOPPED, E.CHUNK): S.STOPPED,
    (S.STOPPED, E.STARVED): S.STOPPED,
    (S.STOPPED, E.ENGAGE): S.STOPPED,
    (S.STOPPED, E.RELEASE): S.STOPPED,
    (S.STOPPED, E.SILENCE): S.STOPPED,
    (S.STOPPED, E.RECOVERY): S.STOPPED,
    (S.STOPPED, E.STOP): S.STOPPED,
    (S.STOPPED, E.RESET): S.IDLE,
}

MODES = {
    S.IDLE: Mode.IDLE,
    S.HOLD: Mode.HOLD,
    S.POLICY: Mode.POLICY,
    S.HUMAN: Mode.HUMAN,
    S.LOST: Mode.HOLD,
    S.STOPPED: Mode.STOPPED,
}


class Arbiter:
    """State machine of one arm."""

    def __init__(self, engage_ticks: int) -> None:
        self.state = ArmState.IDLE
        self._engage_ticks = engage_ticks
        self._engaged_for = 0
        self._asks = False
        self._armed = False  # the human has been seen not asking since the last start or reset

    @property
    def mode(self) -> Mode:
        return MODES[self.state]

    @property
    def human(self) -> bool:
        """The arm is the human's, with usable targets or not."""
        return self.state in (ArmState.HUMAN, ArmState.LOST)

    @property
    def awaits_policy(self) -> bool:
        """Only the policy's row is missing for the policy to drive this arm."""
        return self.state in (ArmState.HOLD, ArmState.POLICY) and (self._armed or not self._asks)

    def fire(self, event: Event) -> bool:
        """Applies an event; true when the state changed."""
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if event in (Event.START, Event.RESET):
            self._armed, self._engaged_for = False, 0
        return self.state is not before

    def hear(self, engaged: bool, usable: bool) -> Event | None:
        """One tick of the human's wishes; returns ENGAGE or RELEASE when that changed who has the arm.

        Args:
            engaged: the human asks for the arm (the last known wish if the input is silent).
            usable: the targets are fresh and healthy.
        """
        self._asks = engaged
        self._engaged_for = self._engaged_for + 1 if engaged and usable else 0
        self._armed = self._armed or not engaged
        if self.human and not engaged:
            self.fire(Event.RELEASE)
            return Event.RELEASE
        if (
            not self.human
            and self._armed
            and usable
            and self._engaged_for >= self._engage_ticks
            and self.fire(Event.ENGAGE)
        ):
            return Event.ENGAGE
        if self.human:
            self.fire(Event.RECOVERY if usable else Event.SILENCE)
        return None

    def supply(self, has_row: bool) -> None:
        """Tells whether the policy has a row for this arm at this instant."""
        if self.awaits_policy or self.state is ArmState.POLICY:
            self.fire(Event.CHUNK if has_row and self.awaits_policy else Event.STARVED)
