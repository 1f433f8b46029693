"""Draws samples by source, reproducibly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Source


class SourceSampler:
    """Draws with replacement, a given share of every batch from each source (e.g. half from humans, half from the policy).

    Shares hold in every batch up to rounding, and exactly on average. It has no state: equal generators give equal batches.
    """

    def __init__(self, source: np.ndarray, shares: Mapping[Source, float] | None) -> None:
        """Prepares to draw from samples of sources `source [N]`.

        Args:
            shares: weight of each source, any scale; sources left out are never drawn. None: every sample is equally likely.

        Raises:
            AloeError: no samples, a negative share, or a share of a source that has no samples.
        """
        if not len(source):
            raise AloeError("there is no sample to draw")
        self._pools = [np.arange(len(source))]
        self._edges = np.array([1.0])
        if shares is not None:
            wanted = {Source(s): float(share) for s, share in shares.items() if share != 0}
            if not wanted or any(not 0 < share < np.inf for share in wanted.values()):
                raise AloeError(f"shares of sources must be positive: {dict(shares)}")
            self._pools = [np.flatnonzero(source == s) for s in wanted]
            for s, pool in zip(wanted, self._pools, strict=True):
                if not len(pool):
                    there = ", ".join(Source(v).name.lower() for v in np.unique(source))
                    raise AloeError(
                        f"no sample of source '{s.name.lower()}' in the replay (it has: {there}); set its share to 0"
                    )
            weights = np.array(list(wanted.values()))
            self._edges = np.cumsum(weights / weights.sum())
            self._edges[-1] = 1.0

    def draw(self, batch_size: int, generator: np.random.Generator) -> np.ndarray:
        """Indices of samples int64 `[B]`, in random order."""
        borders = np.floor(self._edges * batch_size + generator.random()).astype(np.int64)
        borders[-1] = batch_size
        counts = np.diff(borders, prepend=0)
        drawn = [pool[generator.integers(len(pool), size=n)] for pool, n in zip(self._pools, counts, strict=True)]
        return generator.permutation(np.concatenate(drawn))
