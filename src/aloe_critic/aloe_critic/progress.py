"""VITA's value of progress (2506.10085) trained on the successes of a replay, judged by its order along successes it has not seen.

Features are the critic's observation of each step: image features averaged over the grid where the replay has them, joint and object states, the
instruction's embedding. Uses: a report beside the critic. Not done: shaping rewards with it, and warm starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aloe_core.vocabulary import Outcome
from aloe_critic.ope import value_order_correlation
from aloe_critic.related.vita import ProgressValue, progress_loss
from aloe_critic.replay import StoreReplay


@dataclass(frozen=True)
class ProgressReport:
    """How well progress is ordered on successes that were not trained on."""

    train: int  # episodes
    held_out: int
    voc: float  # mean Spearman(value, time) over the held-out ones


def success_features(replay: StoreReplay, frames: int = 40) -> list[Tensor]:
    """Standardised features `[T, F]` of each episode that succeeded, at `frames` instants spread over it."""
    store, parts = replay.store, list[Tensor]()
    for number in replay.samples_of.episodes:
        entry = store.episodes[number]
        if store.outcome(number) != Outcome.SUCCESS or entry.steps < 2:
            continue
        rows = entry.start + np.unique(np.linspace(0, entry.steps, min(frames, entry.steps + 1)).astype(np.int64))
        seen = replay.observe(torch.from_numpy(rows))
        grids = [grid.float().mean(dim=1) for grid in seen.get("features", {}).values()]
        flat = [seen[key].float() for key in ("state", "object_state", "instruction") if key in seen]
        parts.append(torch.cat([*flat, *grids], dim=1))
    if not parts:
        return []
    everything = torch.cat(parts)
    spread = everything.std(dim=0)
    scale = torch.where(spread > 1e-6, spread, torch.ones_like(spread)) * everything.shape[1] ** 0.5
    return [(part - everything.mean(dim=0)) / scale for part in parts]


def train_progress(
    episodes: list[Tensor], steps: int = 200, lr: float = 3e-3, seed: int = 0, held_out: float = 0.25
) -> tuple[ProgressValue, ProgressReport]:
    """Meta-trains the value on some episodes `[T, F]`, one a step, and orders the others with its memory adapting."""
    torch.manual_seed(seed)
    order = torch.randperm(len(episodes)).tolist()
    kept = order[: max(1, round(held_out * len(order)))] if len(order) > 1 else []
    taught = [n for n in order if n not in kept]
    model = ProgressValue(episodes[0].shape[1], width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        loss, _ = progress_loss(model, episodes[taught[step % len(taught)]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        orders = [value_order_correlation(model(episodes[n])[0].numpy()) for n in kept]
    return model, ProgressReport(len(taught), len(kept), float(np.mean(orders)) if orders else float("nan"))
