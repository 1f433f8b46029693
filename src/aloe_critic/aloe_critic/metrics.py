"""Numbers logged while learning: one JSON line per entry, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aloe_core.bag_format import replace_file

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Appends to `metrics.jsonl` in a folder, and to TensorBoard event files in `tensorboard/` beside it if `tensorboard` was called before the learning."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._make_writer: Any = None
        # By stage, because each counts its own steps, and a purge is of all that a writer has.
        self._writers: dict[str, Any] = {}

    def tensorboard(self) -> None:
        """Writes event files from the next `forget_after` on."""
        from torch.utils.tensorboard import SummaryWriter

        self._make_writer = SummaryWriter

    def close(self) -> None:
        """Ends the threads that write the event files; numbers that come later go to `metrics.jsonl` alone."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def add(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step of `critic` or `actor`, or of the `weights` judged before an actor step."""
        with open(self.folder / METRICS_FILE, "a") as stream:
            stream.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        if stage in self._writers:
            for name, value in values.items():
                self._writers[stage].add_scalar(f"{stage}/{name}", value, step)
            self._writers[stage].flush()

    def forget_after(self, critic_step: int, actor_step: int) -> None:
        """Drops the lines of steps that a resumed run will repeat, and one that a kill cut short."""
        limits = {"critic": critic_step, "weights": actor_step - 1, "actor": actor_step}
        kept = [json.dumps(row) + "\n" for row in read_metrics(self.folder) if row["step"] <= limits[row["stage"]]]
        replace_file(self.folder / METRICS_FILE, "".join(kept))
        if self._make_writer is not None:
            self._writers = {
                stage: self._make_writer(str(self.folder / "tensorboard" / stage), purge_step=last + 1)
                for stage, last in limits.items()
            }


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Everything logged in a folder, in order; nothing if nothing was."""
    file = folder / METRICS_FILE
    if not file.exists():
        return []
    complete = file.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]
