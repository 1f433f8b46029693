"""What worked from here: recorded stretches that start near a state and went best, after GC-TTT's selection (2507.18809)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome, Source
from aloe_critic.related.adaptation import what_worked_from_here
from aloe_critic.replay import StoreReplay

EndValue = Callable[[np.ndarray], np.ndarray]  # index of samples [n] -> V where each begins [n]


@dataclass(frozen=True)
class Stretch:
    """A recorded stretch, as many steps long as a chunk."""

    episode: str
    number: int  # of the episode in the store
    step: int  # it starts at
    source: str
    outcome: str  # of its fragment
    distance: float  # of its start from here, root mean square over the entries [standard deviations]
    value: float  # discounted return of its steps and the value at its end
    sample: int


def from_here(
    replay: StoreReplay,
    episode: int,
    step: int,
    reach: float = 0.5,
    top_share: float = 0.2,
    end_value: EndValue | None = None,
) -> list[Stretch]:
    """The best of the stretches that start within `reach` of the observation at a step of an episode, best first, at most one per fragment.

    Args:
        episode: number in the store; stretches of this episode itself are left out.
        reach: root mean square difference of state (and object state) that still counts as here [standard deviations over the store].
        top_share: of those near by.
        end_value: V at the samples that begin where stretches end; None: the return that really followed.

    Raises:
        AloeError: no such observation.
    """
    store, samples = replay.store, replay.samples_of
    if not 0 <= episode < len(store.episodes):
        raise AloeError(
            f"store {store.root} has {len(store.episodes)} episodes, numbered from 0; there is no {episode}"
        )
    entry = store.episodes[episode]
    if not 0 <= step <= entry.steps:
        raise AloeError(f"episode {episode} has observations 0 .. {entry.steps}, not {step}")
    here, there = _positions(replay, entry.start + step)
    candidates = np.flatnonzero(samples.train_critic & (samples.episode != episode))
    candidates = _nearest_of_each_fragment(candidates, samples.fragment, np.linalg.norm(there - here, axis=1))
    end = _end_values(replay, candidates, end_value)
    known = np.isfinite(end)
    candidates, end = candidates[known], end[known]
    found = what_worked_from_here(
        here, there[candidates], samples.chunk_return[candidates], end, reach=reach, top_share=top_share
    )
    return [
        Stretch(
            episode=store.episodes[int(samples.episode[at])].episode_id,
            number=int(samples.episode[at]),
            step=int(samples.start[at] - store.episodes[int(samples.episode[at])].start),
            source=Source(int(samples.source[at])).name.lower(),
            outcome=Outcome(int(samples.outcome[at])).name.lower(),
            distance=float(np.linalg.norm(there[at] - here)),
            value=float(samples.chunk_return[at] + value),
            sample=int(at),
        )
        for at, value in zip(candidates[found], end[found], strict=True)
    ]


def _positions(replay: StoreReplay, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The state at a row `[D]` and at every sample `[N, D]`, such that distances are root mean squares in standard deviations."""
    arrays = replay.store.arrays
    everything = np.concatenate([arrays[n] for n in ("state", "object_state") if n in arrays], axis=1).astype(
        np.float64
    )
    spread = everything.std(axis=0)
    scaled = everything / np.where(spread > 1e-6, spread, 1.0) / np.sqrt(everything.shape[1])
    return scaled[row], scaled[replay.samples_of.start]


def _nearest_of_each_fragment(candidates: np.ndarray, fragment_N: np.ndarray, distance_N: np.ndarray) -> np.ndarray:
    """Neighbouring ticks tell the same story: of each fragment the nearest one."""
    by_distance = candidates[np.argsort(distance_N[candidates], kind="stable")]
    _, first = np.unique(fragment_N[by_distance], return_index=True)
    return by_distance[np.sort(first)]


def _end_values(replay: StoreReplay, index: np.ndarray, end_value: EndValue | None) -> np.ndarray:
    """Discounted value where each stretch ends `[n]`; 0 behind a terminal step, NaN where it is not known."""
    samples = replay.samples_of
    discount = samples.bootstrap_discount[index].astype(np.float64)
    sample_at = np.full(replay.ticks + 1, -1)
    sample_at[samples.start] = np.arange(len(samples))
    following = sample_at[samples.bootstrap[index]]
    out = np.where(discount > 0, np.nan, 0.0)
    going_on = (discount > 0) & (following >= 0)
    if end_value is None:
        out[going_on] = discount[going_on] * samples.return_to_go[following[going_on]]
    elif going_on.any():
        out[going_on] = discount[going_on] * end_value(following[going_on])
    return out
