"""Numbers logged while learning: one JSON line per entry, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Appends to `metrics.jsonl` in a folder, and to TensorBoard event files beside it once `tensorboard` was called."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._writer: Any = None

    def tensorboard(self) -> None:
        """Writes event files from now on."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder))

    def close(self) -> None:
        """Ends the thread that writes the event files; numbers that come later go to `metrics.jsonl` alone."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def add(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step of `critic` or `actor`, or of the `weights` judged before an actor step."""
        with open(self.folder / METRICS_FILE, "a") as stream:
            stream.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{stage}/{name}", value, step)
            self._writer.flush()

    def forget_after(self, critic_step: int, actor_step: int) -> None:
        """Drops the lines of steps that a resumed run will repeat, and one that a kill cut short."""
        limits = {"critic": critic_step, "weights": actor_step - 1, "actor": actor_step}
        kept = [json.dumps(row) + "\n" for row in read_metrics(self.folder) if row["step"] <= limits[row["stage"]]]
        (self.folder / METRICS_FILE).write_text("".join(kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Everything logged in a folder, in order; nothing if nothing was."""
    file = folder / METRICS_FILE
    if not file.exists():
        return []
    complete = file.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]
