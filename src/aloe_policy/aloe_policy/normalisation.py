"""Mean and standard deviation of what goes into and comes out of a policy; stored with its weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from aloe_core.errors import AloeError

MIN_STD = 0.01  # our choice: a joint that hardly moves in the data must not become an input that explodes when it does [rad, m, opening]


class Normaliser(nn.Module):
    """Maps vectors `[..., D]` to zero mean and unit standard deviation per dimension, and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float(), persistent=False)  # kept in policy.json
        self.register_buffer("std", std.float().clamp(min=MIN_STD), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised -> physical units."""
        return x * self.std + self.mean


class Normalisation(nn.Module):
    """The normalisers of a policy, by the key of `SampleBatch` they belong to."""

    def __init__(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.of = nn.ModuleDict({key: Normaliser(mean, std) for key, (mean, std) in statistics.items()})

    def __getitem__(self, key: str) -> Normaliser:
        return self.of[key]  # type: ignore[return-value]

    def to_json(self) -> dict[str, list[float]]:
        """`state/mean`, `state/std`, ... -> numbers."""
        return {f"{k}/{p}": getattr(n, p).tolist() for k, n in self.of.items() for p in ("mean", "std")}

    @staticmethod
    def from_json(values: Mapping[str, list[float]], sizes: Mapping[str, int], where: str) -> Normalisation:
        """What `to_json` wrote; `sizes` gives the length each key must have.

        Raises:
            AloeError: a key is missing, of another size or not finite.
        """
        statistics = {}
        for key, size in sizes.items():
            pair = []
            for part in ("mean", "std"):
                numbers = values.get(f"{key}/{part}") if isinstance(values, Mapping) else None
                try:
                    row = np.array(numbers, np.float32)
                except (TypeError, ValueError, OverflowError):
                    row = np.empty(0, np.float32)
                if row.shape != (size,) or not np.isfinite(row).all():
                    raise AloeError(f"{where}: normalisation '{key}/{part}' is not {size} finite numbers")
                pair.append(torch.from_numpy(row))
            statistics[key] = (pair[0], pair[1])
        return Normalisation(statistics)

    @staticmethod
    def of_data(data: Mapping[str, np.ndarray]) -> Normalisation:
        """From arrays `[N, D]` per key."""
        moments = {k: (v.mean(0, dtype=np.float64), v.std(0, dtype=np.float64)) for k, v in data.items()}
        return Normalisation({k: (torch.from_numpy(m), torch.from_numpy(s)) for k, (m, s) in moments.items()})
