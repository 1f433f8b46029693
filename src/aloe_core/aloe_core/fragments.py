"""Fragments: stretches of an episode with one driver, and what each may teach under the three intervention protocols.

A recording keeps who moved each arm at every tick. How an intervention turns into training data is decided here,
afterwards, from that alone, so one recording serves all three protocols:

- `aloe`: the policy's fragment ends in failure where a human takes over; the human's is a fragment of its own
  (the paper's protocol).
- `hil_serl`: one stream of executed actions from the first tick to the last; human fragments are demonstrations too.
- `hg_dagger`: only chunks in which a human drives every step train the policy, by imitation; there is no critic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome, Source

Protocol = Literal["aloe", "hil_serl", "hg_dagger"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True, slots=True)
class Fragment:
    """Ticks `start .. stop - 1` of an episode, driven by one source.

    Attributes:
        start: first tick.
        stop: one past the last tick.
        source: who drove; NONE only if nobody drove in the whole episode.
        outcome: how it ended; UNLABELLED where another driver merely went on.
        terminal: nothing follows the last tick: no bootstrap.
        truncated: the fragment ends here, but the value goes on: bootstrap from tick `stop`. Neither terminal nor
            truncated: the stream runs on into the next fragment, and so may a chunk.
        train_policy: chunks that start here may train the policy.
        train_critic: chunks that start here may train the critic.
    """

    start: int
    stop: int
    source: Source
    outcome: Outcome
    terminal: bool
    truncated: bool
    train_policy: bool
    train_critic: bool

    @property
    def demonstration(self) -> bool:
        """Whether somebody competent drove: `hil_serl` keeps these in its demonstration buffer as well."""
        return self.source in (Source.HUMAN, Source.SCRIPTED)


def tick_sources(source: np.ndarray) -> np.ndarray:
    """Source per arm uint8 `[T, arms]` -> source of the tick uint8 `[T]`.

    HUMAN if any arm is driven by a human, else POLICY if any is by the policy, else SCRIPTED, else NONE.

    Raises:
        AloeError: wrong shape or unknown source.
    """
    source = np.asarray(source)
    if source.ndim != 2 or source.shape[1] == 0:
        raise AloeError(f"sources are an array [ticks, arms], not one of shape {source.shape}")
    unknown = np.setdiff1d(source, [int(s) for s in Source])
    if unknown.size:
        raise AloeError(f"unknown source {unknown[0]}; known: 0 none, 1 scripted, 2 policy, 3 human")
    tick = np.full(len(source), Source.NONE, np.uint8)
    for who in (Source.SCRIPTED, Source.POLICY, Source.HUMAN):  # the later one wins
        tick[(source == who).any(axis=1)] = who
    return tick


def derive_fragments(
    source: np.ndarray, outcome: Outcome | int, protocol: Protocol = "aloe", *, timeout_is_failure: bool = True
) -> list[Fragment]:
    """The fragments of one episode, in order; together they cover every tick once. An episode without ticks has none.

    A tick in which nobody drives belongs to the fragment before it; at the start of an episode, to the first one.

    Args:
        source: who moved each arm, uint8 `[T, arms]` (`Transition.source`).
        outcome: the episode's outcome as labelled last.
        protocol: how interventions are read.
        timeout_is_failure: running out of time is a failure of the task (terminal), not a mere cut (truncated).

    Raises:
        AloeError: unknown protocol, outcome or source.
    """
    if protocol not in PROTOCOLS:
        raise AloeError(f"unknown intervention protocol '{protocol}'; known: {', '.join(PROTOCOLS)}")
    if outcome not in tuple(Outcome):
        raise AloeError(f"unknown outcome {outcome}; known: 0 unlabelled, 1 success, 2 failure, 3 timeout")
    outcome = Outcome(outcome)
    ends_task = outcome in (Outcome.SUCCESS, Outcome.FAILURE) or (outcome == Outcome.TIMEOUT and timeout_is_failure)
    spans = _spans(tick_sources(source))
    fragments = []
    for i, (start, stop, who) in enumerate(spans):
        last = i == len(spans) - 1
        taken_over = not last and spans[i + 1][2] == Source.HUMAN
        if last:
            ending = (outcome, ends_task, not ends_task)
        elif protocol == "hil_serl":
            ending = (Outcome.UNLABELLED, False, False)
        elif taken_over and protocol == "aloe":
            ending = (Outcome.FAILURE, True, False)  # paper: early termination, labelled failure
        else:  # our choice: what a human hands back is worth what the policy makes of it
            ending = (Outcome.UNLABELLED, False, True)
        fragments.append(
            Fragment(
                start,
                stop,
                who,
                *ending,
                train_policy=protocol != "hg_dagger" or who in (Source.HUMAN, Source.SCRIPTED),
                train_critic=protocol != "hg_dagger",
            )
        )
    return fragments


@dataclass(frozen=True, slots=True)
class ChunkStops:
    """For every tick, one past the last step a chunk starting there may hold, int64 `[T]`; the tick itself: none may."""

    policy: np.ndarray
    critic: np.ndarray


def chunk_stops(source: np.ndarray, fragments: Sequence[Fragment], protocol: Protocol) -> ChunkStops:
    """Which chunk starts may train the policy and the critic, and how far the chunks reach.

    A chunk never leaves its stream: under `aloe` its fragment, under `hil_serl` the episode, under `hg_dagger` the ticks
    in a row in which a human (or the scripted demonstrator) really drives, so that nothing learns to wait from the ticks
    after a release.

    Args:
        source: as given to `derive_fragments`, `[T, arms]`.
        fragments: its result.
        protocol: the same.
    """
    ticks = len(source)
    stop = np.empty(ticks, np.int64)
    for i in reversed(range(len(fragments))):
        f = fragments[i]
        stop[f.start : f.stop] = f.stop if f.terminal or f.truncated else stop[f.stop]
    at = np.arange(ticks)
    policy = np.where(_spread(fragments, "train_policy", ticks), stop, at)
    critic = np.where(_spread(fragments, "train_critic", ticks), stop, at)
    if protocol == "hg_dagger":
        idle = tick_sources(source) == Source.NONE
        next_idle = np.append(np.where(idle, at, ticks), ticks)
        next_idle = np.minimum.accumulate(next_idle[::-1])[::-1][:ticks]
        policy = np.minimum(policy, np.maximum(next_idle, at))
    return ChunkStops(policy, critic)


def _spans(tick: np.ndarray) -> list[tuple[int, int, Source]]:
    """Source per tick `[T]` -> (start, stop, source) of the stretches, idle ticks given to the stretch before them."""
    spans: list[tuple[int, int, Source]] = []
    for t, value in enumerate(tick.tolist()):
        who = Source(value)
        if spans and (who == Source.NONE or who == spans[-1][2]):
            spans[-1] = (spans[-1][0], t + 1, spans[-1][2])
        elif len(spans) == 1 and spans[0][2] == Source.NONE:  # idle from the start
            spans[0] = (0, t + 1, who)
        else:
            spans.append((t, t + 1, who))
    return spans


def _spread(fragments: Sequence[Fragment], flag: str, ticks: int) -> np.ndarray:
    mask = np.zeros(ticks, bool)
    for f in fragments:
        mask[f.start : f.stop] = getattr(f, flag)
    return mask
