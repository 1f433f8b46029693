"""The replay as torch tensors: what behaviour cloning reads. (The critic's side is `aloe_critic.replay`.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome
from aloe_policy.protocol import SampleBatch
from aloe_policy.replay.store import ReplayStore

TENSORS = ("state", "object_state", "action", "action_mask")


@dataclass(frozen=True)
class Instructions:
    """What was asked for in every episode of a store.

    Attributes:
        embeddings: float32 `[episodes, E]`, sentence embeddings.
        texts: the instructions as they were given; empty: batches do without them.
    """

    embeddings: Tensor
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: ReplayStore, with_text: bool) -> Instructions:
        """Those of `store`."""
        from aloe_policy.encoders import embed

        texts = tuple(e.instruction for e in store.episodes)
        known = {text: embed(text) for text in set(texts)}
        return cls(torch.from_numpy(np.stack([known[text] for text in texts])), texts if with_text else ())


def sample_batch(batch: Mapping[str, Any], instructions: Instructions | None = None) -> SampleBatch:
    """A batch of `ReplayStore` as tensors; keys that a policy does not know are left out."""
    tensors: dict[str, Any] = {key: torch.from_numpy(np.asarray(batch[key])) for key in TENSORS if key in batch}
    for key in ("images", "features"):
        if key in batch:
            tensors[key] = {camera: torch.from_numpy(np.asarray(values)) for camera, values in batch[key].items()}
    if instructions is not None:
        tensors["instruction"] = instructions.embeddings[torch.from_numpy(batch["episode"])]
        if instructions.texts:
            tensors["instruction_text"] = [instructions.texts[episode] for episode in batch["episode"]]
    return tensors  # type: ignore[return-value]


class ReplayChunks:
    """Chunk starts of the store's episodes that ended in one of `outcomes`: a `ChunkSource` for behaviour cloning.

    Args:
        episodes: numbers to choose from, as `IngestReport.episodes`; None: all.
        encoder: cached features instead of images.
        instructions: what batches say of the episode's instruction; None: nothing.

    Raises:
        AloeError: no such episode.
    """

    def __init__(
        self,
        store: ReplayStore,
        outcomes: Sequence[Outcome] = (Outcome.SUCCESS,),
        episodes: Sequence[int] | None = None,
        encoder: str | None = None,
        instructions: Instructions | None = None,
    ) -> None:
        candidates = range(len(store.episodes)) if episodes is None else episodes
        self.episodes = [e for e in candidates if store.outcome(e) in outcomes]
        if not self.episodes:
            wanted = " or ".join(o.name.lower() for o in outcomes)
            raise AloeError(f"store {store.root}: none of {len(candidates)} episodes ended in {wanted}")
        self.store, self.encoder, self.instructions = store, encoder, instructions
        self.rows = store.starts(self.episodes)
        self.at_end = torch.from_numpy(store.reaches_end(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def chunk_batch(self, ticks: Tensor, horizon: int) -> SampleBatch:
        """Observations at chunk starts `ticks [B]` = 0 .. len - 1, the actions executed from there on, and `at_end`."""
        batch = self.store.chunk_batch(self.rows[ticks.numpy()], horizon, encoder=self.encoder)
        return {**sample_batch(batch, self.instructions), "at_end": self.at_end[ticks]}

    def vectors(self) -> Mapping[str, np.ndarray]:
        """All values `[N, D]` of `state`, `action` and, if there, `object_state`."""
        names = ("state", "action", "object_state")
        return {name: self.store.arrays[name][self.rows] for name in names if name in self.store.arrays}
