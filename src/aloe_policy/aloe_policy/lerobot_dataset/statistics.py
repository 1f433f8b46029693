"""Statistics of features as LeRobot keeps them, per episode and over the dataset; policies normalise by the latter.

Quantiles of the dataset are, as LeRobot defines them, the means of the episodes' quantiles weighted by their counts. Values that are not finite
(no proposal, no advantage) are left out; LeRobot has none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
KEYS = ("min", "max", "mean", "std", "count", *QUANTILES)
IMAGES_PER_EPISODE = 100  # our choice: at most so many images of an episode, evenly spaced, enter its statistics

Stats = dict[str, np.ndarray]  # min, max, mean, std, q..: [D], or [3, 1, 1] of an image in 0..1; count: [1]


def vector_stats(values: np.ndarray) -> Stats | None:
    """Of `[T, D]`; None where a column has no finite number."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values).all(1)
    if not finite.any():
        return None
    kept = values[finite]
    stats = {"min": kept.min(0), "max": kept.max(0), "mean": kept.mean(0), "std": kept.std(0)}
    stats["count"] = np.array([len(kept)])
    quantiles = np.quantile(kept, list(QUANTILES.values()), axis=0)
    return stats | dict(zip(QUANTILES, quantiles, strict=True))


class ImageStats:
    """Collects histograms of 8-bit images: exact statistics per channel in constant memory."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._images = 0

    def add(self, image: np.ndarray) -> None:
        """Adds uint8 `[h, w, 3]`."""
        for channel in range(3):
            self._counts[channel] += np.bincount(image[:, :, channel].reshape(-1), minlength=256)
        self._images += 1

    def stats(self) -> Stats:
        """Per channel, `[3, 1, 1]`, scaled to 0..1."""
        levels = np.arange(256) / 255
        total = self._counts.sum(1)
        mean = self._counts @ levels / total
        present = self._counts > 0
        below = np.cumsum(self._counts, 1) / total[:, None]
        stats = {
            "min": levels[present.argmax(1)],
            "max": levels[255 - present[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(self._counts @ levels**2 / total - mean**2, 0)),
        }
        stats |= {key: levels[(below >= q).argmax(1)] for key, q in QUANTILES.items()}
        return {key: value.reshape(3, 1, 1) for key, value in stats.items()} | {"count": np.array([self._images])}


def merge(a: Stats, b: Stats) -> Stats:
    """Statistics of both together, the variance by the parallel algorithm (Chan et al. 1979)."""
    n, m = int(a["count"][0]), int(b["count"][0])
    share = m / (n + m)
    gap = b["mean"] - a["mean"]
    variance = a["std"] ** 2 * (1 - share) + b["std"] ** 2 * share + gap**2 * share * (1 - share)
    merged = {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": a["mean"] + gap * share,
        "std": np.sqrt(variance),
        "count": np.array([n + m]),
    }
    return merged | {key: a[key] * (1 - share) + b[key] * share for key in QUANTILES}


def merge_all(total: dict[str, Stats], episode: Mapping[str, Stats]) -> None:
    """Adds an episode's statistics, by feature, to the dataset's."""
    for key, stats in episode.items():
        total[key] = merge(total[key], stats) if key in total else stats
