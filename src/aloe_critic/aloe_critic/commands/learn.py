"""`aloe learn`: an improvement on a launched robot."""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

STAGES = {1: "reading bags", 2: "critic", 3: "actor", 4: "saving"}


def learn(
    method: str = "",
    critic_steps: int = 0,
    actor_steps: int = 0,
    namespace: str = "/",
    json: Path | None = None,
) -> int:
    """Let the learner of the launched robot improve the policy, and wait until the robot runs it.

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
    stage = 0

    def show(feedback: Any) -> None:
        nonlocal stage
        if feedback.stage != stage:
            stage = feedback.stage
            bar.reset(feedback.total_steps or None)
            bar.set_description(STAGES.get(stage, ""))
            if bar.disable:
                print(f"{STAGES.get(stage, '')} ...", flush=True)
        bar.update(feedback.step - bar.n)

    done = learn_client.learn(method, critic_steps, actor_steps, show, namespace=namespace)
    bar.close()
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(jsonlib.dumps(asdict(done), indent=2) + "\n")
    print(
        f"{done.version}: learned from {done.transitions} transitions of {done.episodes} episodes in {done.learn_s:.0f} s, "
        f"on the robot {done.reload_s:.1f} s later"
    )
    return 0
