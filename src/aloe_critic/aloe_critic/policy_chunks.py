"""Chunks of the current policy at the states of the replay, which chunk TD (a' in Eq. 7) and V(s) (Eq. 10) ask for at every step.

While the critic learns the policy stands still, so its chunks can be drawn once for all states: sampling is then a look-up, and a target costs no more than
a forward pass of the critic. Without that table (too large, or a policy that moves) chunks are drawn when they are asked for.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_critic.critic import repeat_batch
from aloe_policy.protocol import SampleBatch, TrainablePolicy
from aloe_policy.training_state import random_numbers

IMAGES_AT_ONCE = (
    32  # chunks that a policy with an image encoder of its own draws at a time; our choice: bounds its memory
)
Observe = Callable[[Tensor], SampleBatch]  # ticks [B] -> observations


class PolicyChunks(Protocol):
    """Where chunks of the policy come from."""

    def draw(self, ticks_B: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """`samples` chunks of the policy at each tick, `[B, samples, H, A]`."""
        ...


class FreshChunks:
    """Draws chunks from the policy whenever they are asked for, a few at a time from one that encodes images itself."""

    def __init__(self, policy: TrainablePolicy, observe: Observe, horizon: int) -> None:
        self.policy, self.observe, self.horizon = policy, observe, horizon

    def draw(self, ticks_B: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        at_once = max(1, IMAGES_AT_ONCE // samples) if self.policy.reads_images else max(1, len(ticks_B))
        return torch.cat([self._draw(ticks, samples, generator) for ticks in ticks_B.split(at_once)])

    def _draw(self, ticks_B: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        batch: Any = repeat_batch(self.observe(ticks_B), samples)
        chunks = self.policy.act(batch, generator)[:, : self.horizon]
        return chunks.unflatten(0, (len(ticks_B), samples))


class ChunkTable:
    """Chunks drawn once for every tick of the replay, float32 `[ticks, M, H, A]`, on the CPU."""

    def __init__(
        self,
        fresh: FreshChunks,
        ticks: int,
        samples: int,
        key: tuple[int, ...],
        batch_size: int = 1024,
        folder: Path | None = None,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Draws `samples` chunks at each of `ticks` ticks; `key` seeds them, `on_batch(ticks done)` may raise to stop.

        `folder`: the table lives in a file there, which is gone with the process, so that memory does not grow with the replay; None: in memory.

        Raises:
            AloeError: no room in `folder`.
        """
        on_batch(0)
        for number, start in enumerate(range(0, ticks, batch_size)):
            at = torch.arange(start, min(start + batch_size, ticks))
            chunks = fresh.draw(at, samples, random_numbers(*key, number))
            if not number:
                self.chunks = _room((ticks, *chunks.shape[1:]), folder)
            self.chunks[at] = chunks.to(self.chunks)
            on_batch(int(at[-1]) + 1)

    def draw(self, ticks_B: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Different chunks of the table if it holds enough; all of them, in order, if `samples` asks for all."""
        stored = self.chunks.shape[1]
        rows = ticks_B.cpu()
        if samples == stored:
            return self.chunks[rows]
        if samples > stored:
            raise ValueError(f"the table holds {stored} chunks a state, {samples} were asked for")
        which = torch.rand(len(rows), stored, generator=generator).argsort(dim=1)[:, :samples]
        return self.chunks[rows[:, None], which]


def _room(shape: tuple[int, ...], folder: Path | None) -> Tensor:
    """An uninitialised float32 tensor, in a file without a name if a folder is given."""
    if folder is None:
        return torch.empty(shape)
    folder.mkdir(parents=True, exist_ok=True)
    count = math.prod(shape)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="policy_chunks-") as file:
        try:
            os.posix_fallocate(
                file.fileno(), 0, 4 * count
            )  # else a full disk would be a signal in the middle of a write
        except OSError as error:
            raise AloeError(
                f"{folder}: no room for the policy's chunks at every state ({4 * count / 1e9:.2f} GB): {error}; `presample: false` does without"
            ) from None
        return torch.from_file(file.name, shared=True, size=count, dtype=torch.float32).view(shape)
