"""`aloe ingest`: bags into the replay store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from aloe_policy.replay import ReplayStore


def ingest(
    bags: Positional[tuple[Path, ...]],
    *,
    store: Path,
    robot: str = "aloha_sim",
    cameras: tuple[str, ...] = (),
    image_size: tuple[int, int] = (128, 128),
    object_state: bool = True,
    encoder: str | None = None,
    workers: int = 1,
    json_: Annotated[Path | None, arg(name="json")] = None,
) -> int:
    """Bring a replay store up to date with bags, and say what it is made of. Bags that cannot be used are named with the reason.

    Args:
        bags: Bags, folders that hold bags, or patterns.
        store: Folder of the store; made if it is not there.
        robot: Robot description the bags must have been recorded with.
        cameras: Cameras to keep; none keeps states only.
        image_size: Height and width of the stored images [pixel].
        object_state: Keep the privileged object state of simulated tasks.
        encoder: Also cache what this frozen image encoder makes of every image.
        workers: Processes that decode.
        json_: Also write the report to this file.
    """
    from aloe_core.robot import load_robot
    from aloe_policy.replay import ReplayStore, replay_report

    kept = ReplayStore(store)
    report = kept.ingest(bags, load_robot(robot), cameras, image_size, object_state, workers, _progress("bags"))
    print(report.text())
    if encoder is not None and cameras:
        _cache(kept, encoder)
    composition = replay_report(kept, report.episodes)
    if report.episodes:
        print(f"\n{composition.text()}")
    if json_ is not None:
        json_.write_text(json.dumps({**asdict(report), "replay": asdict(composition)}, indent=1) + "\n")
    return 0 if report.episodes else 1


def _cache(store: ReplayStore, encoder: str) -> None:
    """Runs the policy's frozen encoder over the images it has not seen."""
    import numpy as np
    import torch

    from aloe_policy.encoders import image_encoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = image_encoder(encoder, store.spec.image_size, device)

    def encode(images: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(images).to(device)).cpu().numpy()

    store.cache_features(encoder, encode, on_progress=_progress("images encoded"))


def _progress(what: str) -> Callable[[int, int], None]:
    """Prints progress on one line of a terminal; nothing elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
