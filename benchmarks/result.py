"""One number of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A measured value and, where there is one, the value to compare it with, in the same unit.

    `baseline` is measured in the same run where possible (a bare timer, a plain write); else a published figure, which the
    benchmark's docstring names.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None

    @property
    def ratio(self) -> float | None:
        """value / baseline."""
        return self.value / self.baseline if self.baseline else None

    def as_dict(self) -> dict[str, str | float | None]:
        """The entry in results/latest.json."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline,
            "ratio": self.ratio,
        }
