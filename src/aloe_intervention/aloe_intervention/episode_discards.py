"""Bags on their way to `discarded/`: moved only once nobody writes them any more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aloe_core.errors import AloeError
from aloe_intervention.episode_store import EpisodeStore
from aloe_intervention.episode_types import AnswerDiscard, EpisodeConfig


@dataclass(slots=True)
class RecorderView:
    """What `recorder/status` last said; `seen_s` on the monotonic clock [s]."""

    episode_id: str = ""
    recording: bool = False
    busy: bool = False  # recording or finalising
    failed: bool = False
    message: str = ""
    seen_s: float = -math.inf

    def writes(self, wall_s: float, silence_s: float) -> str:
        """The episode whose bag it has in hand; empty: none, or it has been silent for more than `silence_s` [s]."""
        return self.episode_id if self.busy and wall_s - self.seen_s <= silence_s else ""


class Discards:
    """Discards asked for and not yet done."""

    def __init__(self, store: EpisodeStore, config: EpisodeConfig) -> None:
        self._store = store
        self._config = config
        self._pending: dict[str, tuple[int, float, str]] = {}  # episode -> (call, deadline [s], reason)

    def add(self, call: int, episode_id: str, reason: str, wall_s: float) -> None:
        """Asks for one.

        Raises:
            AloeError: it was asked for already, or there is no such bag.
        """
        if episode_id in self._pending:
            raise AloeError(f"episode '{episode_id}' is being discarded already")
        if not self._store.has(episode_id):
            raise AloeError(f"there is no bag '{episode_id}' in {self._store.bags}")
        self._pending[episode_id] = (call, wall_s + self._config.ready_timeout_s, reason)

    def due(self, recorder: RecorderView, wall_s: float) -> list[AnswerDiscard]:
        """Moves the bags that the recorder has let go of (or that a silent recorder will never let go of) and says what became of each."""
        answers = []
        written = recorder.writes(wall_s, self._config.fault_timeout_s)
        for episode_id, (call, deadline, reason) in list(self._pending.items()):
            held = written == episode_id
            if held and wall_s <= deadline:
                continue
            del self._pending[episode_id]
            if held:
                answers.append(
                    AnswerDiscard(call, episode_id, "", f"recorder_node is still writing the bag '{episode_id}'")
                )
                continue
            try:
                answers.append(AnswerDiscard(call, episode_id, str(self._store.discard(episode_id)), reason))
            except AloeError as error:
                answers.append(AnswerDiscard(call, episode_id, "", str(error)))
        return answers
