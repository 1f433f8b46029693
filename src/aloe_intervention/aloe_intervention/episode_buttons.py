"""Buttons that start, stop and label episodes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from aloe_intervention.dead_man import pressed


@dataclass(frozen=True, slots=True)
class EpisodeButtonsConfig:
    """Which buttons, all down together, do what; empty: none. SpaceMice with two buttons need theirs for the arm, those with fifteen do not.

    Attributes:
        start_buttons: start an episode.
        stop_buttons: stop it without an outcome.
        success_buttons: stop it as a success.
        failure_buttons: stop it as a failure.
        discard_buttons: discard the running or last episode.
    """

    start_buttons: tuple[int, ...] = ()
    stop_buttons: tuple[int, ...] = ()
    success_buttons: tuple[int, ...] = ()
    failure_buttons: tuple[int, ...] = ()
    discard_buttons: tuple[int, ...] = ()


class EpisodeButtons:
    """Turns button states into actions: on the edge, once. Mashing several at a time does nothing but the first of them."""

    def __init__(self, config: EpisodeButtonsConfig) -> None:
        self._wanted = {f.name.removesuffix("_buttons"): getattr(config, f.name) for f in fields(config)}
        self._down = dict.fromkeys(self._wanted, True)  # held from the start is no edge

    @property
    def used(self) -> bool:
        """Whether any action has a button."""
        return any(self._wanted.values())

    def update(self, buttons: tuple[int, ...]) -> str:
        """`start`, `stop`, `success`, `failure` or `discard`; empty: nothing to do."""
        down = {action: pressed(buttons, wanted) for action, wanted in self._wanted.items()}
        edges = [action for action, is_down in down.items() if is_down and not self._down[action]]
        already = any(self._down[a] and down[a] for a in down)
        self._down = down
        return edges[0] if edges and not already else ""
