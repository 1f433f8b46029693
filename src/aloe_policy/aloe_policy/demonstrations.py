"""What behaviour cloning learns from: the chunks executed in good episodes, out of a replay store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_policy.bc_config import BcConfig
from aloe_policy.protocol import SampleBatch, TrainablePolicy
from aloe_policy.replay import ReplayStore
from aloe_policy.replay.tensors import Instructions, ReplayChunks

Progress = Callable[[int, int], None]  # (done, total)


class ChunkSource(Protocol):
    """Random access to samples."""

    def __len__(self) -> int:
        """Number of ticks at which a chunk may start."""
        ...

    def chunk_batch(self, ticks: Tensor, horizon: int) -> SampleBatch:
        """Observations at `ticks [B]`, the actions executed from there on, `action_mask` and `at_end`; chunks never cross the end of an episode."""
        ...

    def vectors(self) -> Mapping[str, np.ndarray]:
        """All values `[N, D]` of `state`, `action` and, if there, `object_state`: what normalisation is computed from."""
        ...


def open_demonstrations(
    store_folder: Path,
    bags: Sequence[Path],
    robot: RobotDescription,
    config: BcConfig,
    workers: int = 1,
    on_bags: Progress = lambda done, total: None,
    on_images: Progress = lambda done, total: None,
    on_problems: Callable[[str], None] = lambda text: None,
    policy: TrainablePolicy | None = None,
) -> ReplayChunks:
    """Brings the store up to date with `bags`, encodes new images, and chooses the episodes that the configuration asks for.

    Args:
        on_problems: is told of bags that are left out or incomplete, where others can be used.
        policy: the policy to train, whose cameras then count; None: a fresh one, as the configuration says.

    Raises:
        AloeError: no bags, none that can be used (another robot, a camera without images, ...), none with a wanted outcome, or one of those
            without the instruction that the policy reads.
    """
    if policy is None:
        cameras, size, name = config.cameras, (config.image_size, config.image_size), config.policy.encoder
        objects = not cameras
    else:
        cameras, size, name = policy.spec.cameras, policy.spec.image_size or (0, 0), policy.frozen_encoder
        objects = policy.spec.object_dim > 0
    store = ReplayStore(store_folder)
    report = store.ingest(bags, robot, cameras, size, objects, workers, on_bags)
    if not report.episodes:
        raise AloeError(f"none of the bags can be used:\n{report.text()}")
    if report.left_out or report.incomplete:
        on_problems(report.text())
    if objects and policy is not None and store.spec.object_size != policy.spec.object_dim:
        raise AloeError(
            f"the policy looks at {policy.spec.object_dim} numbers of object state, the bags hold {store.spec.object_size}"
        )
    if not cameras:
        return ReplayChunks(store, config.wanted, report.episodes)
    chunks = ReplayChunks(store, config.wanted, report.episodes, name or None, Instructions.of(store, not name))
    if policy is None or policy.needs_instruction:
        _check_instructions(store, chunks.episodes)
    if name:
        from aloe_policy.encoders import image_encoder

        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = image_encoder(name, size, device)
        store.cache_features(
            name, lambda images: encoder(torch.tensor(images, device=device)).cpu().numpy(), on_progress=on_images
        )
    return chunks


def _check_instructions(store: ReplayStore, episodes: Sequence[int]) -> None:
    silent = [store.episodes[e].bag for e in episodes if not store.episodes[e].instruction]
    if silent:
        more = f", nor do {len(silent) - 1} others" if len(silent) > 1 else ""
        raise AloeError(
            f"bag {silent[0]} holds no instruction{more}, but a policy that looks through cameras follows one: leave such bags out"
        )
