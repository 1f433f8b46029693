"""`aloe learn`: an improvement on a launched robot."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

STAGES = {1: "reading bags", 2: "critic", 3: "actor", 4: "saving"}


class Quarters:
    """Progress for those who read lines, not a bar: one at the start of a stage and one per quarter of it, with what is left at the pace so far."""

    def __init__(self) -> None:
        self._stage, self._first, self._began, self._told = 0, 0, 0.0, 0

    def lines(self, stage: int, step: int, total: int, now: float) -> list[str]:
        """What to print after `step` of `total` steps at the time `now` [s]; a stage that is resumed does not begin with 0."""
        told, name = [], STAGES.get(stage, "")
        if stage != self._stage:
            self._stage, self._first, self._began, self._told = stage, step, now, 4 * step // max(1, total)
            told.append(f"{name} ...")
        quarter = 4 * step // max(1, total)
        if self._told < quarter < 4:
            self._told = quarter
            left = (now - self._began) * (total - step) / max(1, step - self._first)
            told.append(f"{name} {25 * quarter} %, about {left:.0f} s left")
        return told


def learn(
    method: str = "",
    critic_steps: int = 0,
    actor_steps: int = 0,
    namespace: str = "/",
    json: Path | None = None,
) -> int:
    """Let the learner of the launched robot improve the policy, and wait until the robot runs it.

    Ctrl-C cancels the improvement; the next one goes on where it was.

    Args:
        method: as in `aloe improve`; empty: the learner's own.
        critic_steps: 0: the learner's own.
        actor_steps: 0: the learner's own.
        namespace: namespace of the nodes.
        json: write the result to this file.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    from aloe_critic.nodes import learn_client

    bar = tqdm(disable=None, file=sys.stderr)
    stage, quarters = 0, Quarters()

    def show(feedback: Any) -> None:
        nonlocal stage
        if feedback.stage != stage:
            stage = feedback.stage
            bar.reset(feedback.total_steps or None)
            bar.set_description(STAGES.get(stage, ""))
        bar.total = feedback.total_steps or None  # a stage has parts of different lengths
        bar.update(feedback.step - bar.n)
        if bar.disable:
            for line in quarters.lines(feedback.stage, feedback.step, feedback.total_steps, time.monotonic()):
                print(line, flush=True)

    with bar:
        done = learn_client.learn(method, critic_steps, actor_steps, show, namespace=namespace)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(jsonlib.dumps(asdict(done), indent=2) + "\n")
    print(
        f"{done.version}: learned from {done.transitions} transitions of {done.episodes} episodes in {done.learn_s:.0f} s, "
        f"on the robot {done.reload_s:.1f} s later"
    )
    return 0
