"""Ticks become learning samples: fragments, interventions, rewards, and the tick of delay until the end is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aloe_core.vocabulary import Outcome, Source
from aloe_robot.control.buffer import Row
from aloe_robot.control.records import Transition


class TransitionLog:
    """Builds the transitions of one episode after the other."""

    def __init__(self) -> None:
        self._last: Transition | None = None
        self.start("")

    def start(self, episode_id: str, first_step: int = 0) -> None:
        """A new episode. `first_step` above 0: it is resumed, and fragments go on from a number not used before."""
        self._episode_id, self.step, self._fragment = episode_id, first_step, first_step
        self._drivers: list[Source] = []
        self._last = None

    def add(
        self,
        stamp_ns: int,
        source: tuple[Source, ...],
        executed: np.ndarray,
        proposal: Row | None,
        intervention_id: int,
        safety_limited: bool,
    ) -> Transition | None:
        """Notes a tick; returns the one before, which is now known not to be the last."""
        if not self._drivers:
            self._drivers = list(source)
        changed = False
        for arm, now in enumerate(source):
            # A tick in which nobody drives belongs to the fragment before it.
            if now != Source.NONE and now != self._drivers[arm]:
                changed |= self._drivers[arm] != Source.NONE
                self._drivers[arm] = now
        self._fragment += changed
        before = self._last
        self._last = Transition(
            stamp_ns=stamp_ns,
            episode_id=self._episode_id,
            step=self.step,
            fragment=self._fragment,
            source=source,
            executed=executed,
            proposal=None if proposal is None else proposal.positions,
            chunk_id=0 if proposal is None else proposal.chunk_id,
            chunk_step=0 if proposal is None else proposal.chunk_step,
            policy_version="" if proposal is None else proposal.policy_version,
            intervention_id=intervention_id,
            safety_limited=safety_limited,
        )
        self.step += 1
        return before

    def finish(self, outcome: Outcome) -> Transition | None:
        """The episode's last transition: terminated by success or failure, truncated otherwise."""
        last, self._last = self._last, None
        if last is None:
            return None
        terminated = outcome in (Outcome.SUCCESS, Outcome.FAILURE)
        reward = 0.0 if outcome == Outcome.SUCCESS else -1.0
        return replace(last, reward=reward, terminated=terminated, truncated=not terminated)
