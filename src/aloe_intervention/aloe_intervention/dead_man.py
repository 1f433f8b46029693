"""When a human's take-over of an arm begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aloe_core.errors import AloeError


@dataclass(frozen=True, slots=True)
class DeadManConfig:
    """How an operator asks for control and gives it back.

    Attributes:
        engage_buttons: all down together take over; empty: buttons do not.
        release_buttons: all going down together gives back; the same as `engage_buttons` makes them a toggle.
        engage_button_samples: consecutive messages in which `engage_buttons` must be down, so that a twitch is not an intervention.
        hold: control lasts while `engage_buttons` are held down, and nothing else takes over or gives back.
        engage_deflection: deflection of any axis that takes over when it lasts; 0: deflection does not.
        engage_samples: consecutive messages of the stick it must last, for the same reason.
        rest_deflection: smaller deflections are rest.
        release_time: rest for this long gives back [s]; 0: never, an operator who pauses keeps the arm.
    """

    engage_buttons: tuple[int, ...] = (0, 1)
    release_buttons: tuple[int, ...] = (0, 1)
    engage_button_samples: int = 2
    hold: bool = False
    engage_deflection: float = 0.3
    engage_samples: int = 4
    rest_deflection: float = 0.03
    release_time: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rest_deflection < 1 or not 0 <= self.engage_deflection <= 1:
            raise AloeError("dead man: deflections are shares of the full deflection in [0, 1]")
        if 0 < self.engage_deflection <= self.rest_deflection:
            raise AloeError(
                f"dead man: engage_deflection {self.engage_deflection} must exceed rest_deflection {self.rest_deflection}"
            )
        if min(self.engage_samples, self.engage_button_samples) < 1 or not self.release_time >= 0:
            raise AloeError(
                "dead man: engage_samples and engage_button_samples are at least 1, release_time at least 0 s"
            )
        if self.hold:
            if not self.engage_buttons:
                raise AloeError("dead man: hold is set but engage_buttons is empty, there is nothing to hold")
            return
        if not self.engage_buttons and not self.engage_deflection:
            raise AloeError("dead man: neither engage_buttons nor engage_deflection is set, nobody could take over")
        if not self.release_buttons and not self.release_time:
            raise AloeError("dead man: neither release_buttons nor release_time is set, nobody could let go")


class DeadMan:
    """Take-over of one arm: latched, or held. What is held when watching begins counts only after it has been let go once."""

    def __init__(self, config: DeadManConfig) -> None:
        self.config = config
        self.engaged = False
        self._held_here = False  # engaged by holding the buttons of this stick
        self.interrupt()

    def interrupt(self) -> None:
        """The stick was lost or nonsense: whatever it is held at when it returns is no edge."""
        self._release_was_down = True
        self._forget()
        self._last_sample_ns: int | None = None
        self._last_buttons_ns: int | None = None
        self._active_ns: int | None = None

    def follow(self, engaged: bool) -> None:
        """Somebody else takes over or gives back for this arm as well. What this stick is held at is no edge."""
        if engaged != self.engaged:
            self.engaged, self._held_here = engaged, False
            self._forget()

    def _forget(self) -> None:
        self._armed = self._ready = False  # deflection counts only after rest, buttons only after they were up
        self._samples = self._presses = 0

    def buttons_down(self, buttons: tuple[int, ...]) -> bool:
        """Whether the buttons that take over or give back are all down; never with `hold`, where they are down all the time."""
        config = self.config
        return not config.hold and (pressed(buttons, config.engage_buttons) or pressed(buttons, config.release_buttons))

    def update(
        self,
        stamp_ns: int,
        now_ns: int,
        twist: np.ndarray,
        buttons: tuple[int, ...],
        buttons_ns: int | None = None,
    ) -> bool:
        """Takes the state of the stick; whether the operator has control now.

        Args:
            stamp_ns: of the message with the twist; one seen again is not a further sample.
            now_ns: current time.
            twist: `[6]`, shares of the full deflection.
            buttons: 1: down now; buttons pressed one after the other are not down together.
            buttons_ns: of the message with the buttons; None: they came with the twist.
        """
        config = self.config
        deflection = float(np.abs(twist).max())
        if self._active_ns is None or deflection > config.rest_deflection or any(buttons):
            self._active_ns = now_ns
        self._armed = self._armed or deflection <= config.rest_deflection
        if stamp_ns != self._last_sample_ns:
            self._last_sample_ns = stamp_ns
            lasting = self._armed and config.engage_deflection > 0 and deflection >= config.engage_deflection
            self._samples = self._samples + 1 if lasting else 0
        engage_down, release_down = pressed(buttons, config.engage_buttons), pressed(buttons, config.release_buttons)
        buttons_ns = stamp_ns if buttons_ns is None else buttons_ns
        if not engage_down:
            self._ready, self._presses = True, 0
        elif self._ready and buttons_ns != self._last_buttons_ns:
            self._presses += 1
        self._last_buttons_ns = buttons_ns
        release = release_down and not self._release_was_down
        self._release_was_down = release_down
        held = self._presses >= config.engage_button_samples

        if self.engaged:
            if config.hold:
                over = self._held_here and not engage_down
            else:
                over = release or (config.release_time > 0 and now_ns - self._active_ns >= config.release_time * 1e9)
            if over:
                self.follow(False)
                self._ready = not engage_down
        elif held or (not config.hold and self._samples >= config.engage_samples):
            self.follow(True)
            self._held_here = held
        return self.engaged


def pressed(buttons: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether all `wanted` buttons are down; false if none is named."""
    return bool(wanted) and all(i < len(buttons) and buttons[i] for i in wanted)
