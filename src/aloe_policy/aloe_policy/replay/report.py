"""What the replay is made of (the paper's replay table): frames and share by source and iteration, and how often a human took over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aloe_core.fragments import tick_sources
from aloe_core.vocabulary import Outcome, Source
from aloe_policy.replay.store import ReplayStore


@dataclass(frozen=True)
class ReplayRow:
    """Ticks of one source in one iteration; `share` of all ticks."""

    iteration: int
    source: str
    episodes: int
    frames: int
    share: float


@dataclass(frozen=True)
class IterationRow:
    """One iteration. `takeover_rate` is the human's share of the ticks in episodes that a policy drove at all, `takeover_episodes` the share of those episodes
    in which a human took over."""

    iteration: int
    episodes: int
    successes: int
    takeover_rate: float
    takeover_episodes: float


@dataclass(frozen=True)
class ReplayReport:
    """Composition of the replay; `unlabelled`: episodes without an outcome."""

    frames: int
    rows: tuple[ReplayRow, ...]
    iterations: tuple[IterationRow, ...]
    unlabelled: int = 0

    def text(self) -> str:
        """Two tables for a person, and how many episodes nobody has labelled."""
        lines = ["iteration  source    episodes    frames  share"]
        lines += [
            f"{r.iteration:9d}  {r.source:<9s} {r.episodes:8d} {r.frames:9d} {100 * r.share:5.1f}%" for r in self.rows
        ]
        lines += ["", "iteration  episodes  successes  take-over (ticks)  take-over (episodes)"]
        lines += [
            f"{i.iteration:9d} {i.episodes:9d} {i.successes:10d} {100 * i.takeover_rate:17.1f}% {100 * i.takeover_episodes:20.1f}%"
            for i in self.iterations
        ]
        if self.unlabelled:
            episodes = sum(i.episodes for i in self.iterations)
            lines.append(
                f"{self.unlabelled} of {episodes} episodes without an outcome: docs/record.md says how to label"
            )
        return "\n".join(lines)


def replay_report(store: ReplayStore, episodes: Sequence[int] | None = None) -> ReplayReport:
    """Counts ticks by who really drove them (idle ticks are their own source).

    Args:
        episodes: numbers of the episodes to count; None: all.
    """
    chosen = range(len(store.episodes)) if episodes is None else episodes
    counts: dict[int, list[np.ndarray]] = {}
    wins: dict[int, int] = {}
    unlabelled = 0
    for number in chosen:
        entry = store.episodes[number]
        ticks = tick_sources(store.arrays["source"][entry.start : entry.start + entry.steps])
        counts.setdefault(entry.iteration, []).append(np.bincount(ticks, minlength=len(Source)))
        wins[entry.iteration] = wins.get(entry.iteration, 0) + (store.outcome(number) == Outcome.SUCCESS)
        unlabelled += store.outcome(number) == Outcome.UNLABELLED
    total = int(sum(c.sum() for found in counts.values() for c in found))
    rows, iterations = [], []
    for iteration in sorted(counts):
        by_episode = np.stack(counts[iteration])  # [episodes, sources]
        for source in Source:
            frames = int(by_episode[:, source].sum())
            if frames:
                with_source = int((by_episode[:, source] > 0).sum())
                rows.append(ReplayRow(iteration, source.name.lower(), with_source, frames, frames / total))
        human, policy = by_episode[:, Source.HUMAN], by_episode[:, Source.POLICY]
        rolled = policy > 0
        driven = int((human + policy)[rolled].sum())
        iterations.append(
            IterationRow(
                iteration,
                len(by_episode),
                wins[iteration],
                float(human[rolled].sum() / driven) if driven else 0.0,
                float((human[rolled] > 0).mean()) if rolled.any() else 0.0,
            )
        )
    return ReplayReport(total, tuple(rows), tuple(iterations), unlabelled)
