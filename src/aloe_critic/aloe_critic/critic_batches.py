"""What a critic is shown: samples of the replay, cut where a choice of ours asks for it, with chunks of the current policy beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aloe_critic.critic import on_device
from aloe_critic.learner_config import LearnerConfig, Replay
from aloe_critic.methods.base import Method
from aloe_critic.policy_chunks import ChunkTable, FreshChunks, PolicyChunks
from aloe_policy.protocol import TrainablePolicy

TABLE = 1  # part of the random key of the presampled chunks, after the seed


class CriticBatches:
    """Makes the batches of one iteration.

    Args:
        method: says what it needs to see.
        replay: the samples.
        config: `policy_samples`, `target_samples`, `cut_share`, `presample`, `seed`.
        device: where batches go.
        folder: on whose disk the table of presampled chunks lives.
        judged: samples that will be judged.
        on_table: told how many ticks of the table are done; may raise to stop.
    """

    def __init__(
        self,
        method: Method,
        replay: Replay,
        config: LearnerConfig,
        device: torch.device,
        folder: Path,
        judged: int,
        on_table: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.method, self.replay, self.config, self.device, self.folder = method, replay, config, device, folder
        self._on_table = on_table
        self._table: ChunkTable | None = None
        at_once = replay.ticks * max(config.policy_samples, config.target_samples)
        one_by_one = (
            config.critic_steps * config.batch_size * (1 + config.target_samples) + judged * config.policy_samples
        )
        self.presamples = at_once <= one_by_one if config.presample is None else config.presample

    def to_teach(self, policy: TrainablePolicy, index: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """The samples `index` for a critic step: `policy_action` at their start, `next_policy_action` where they are backed up to."""
        if not self.method.needs_policy_chunks:
            return on_device(self.replay.samples(index), self.device)
        batch = self.replay.samples(index, self._cuts(len(index), generator))
        chunks: PolicyChunks = self.presampled(policy) if self.presamples else self.fresh(policy)
        batch["policy_action"] = chunks.draw(self.replay.start[index], 1, generator)
        batch["next_policy_action"] = chunks.draw(batch["bootstrap"], self.config.target_samples, generator)
        return on_device(batch, self.device)

    def to_judge(
        self, policy: TrainablePolicy, index: Tensor, generator: torch.Generator, moves: bool
    ) -> dict[str, Any]:
        """The samples `index` as recorded, with the chunks that V(s) is the mean of; `moves`: the policy is not the one of the table."""
        batch = self.replay.samples(index)
        if self.method.needs_policy_chunks:
            chunks: PolicyChunks = self.presampled(policy) if self.presamples and not moves else self.fresh(policy)
            batch["policy_action"] = chunks.draw(self.replay.start[index], self.config.policy_samples, generator)
        return on_device(batch, self.device)

    def fresh(self, policy: TrainablePolicy) -> FreshChunks:
        """Chunks drawn from the policy as it is now."""
        observe = lambda ticks: on_device(self.replay.observe(ticks), self.device)  # noqa: E731
        return FreshChunks(policy.eval(), observe, self.method.chunk_steps)

    def presampled(self, policy: TrainablePolicy) -> ChunkTable:
        """Chunks drawn once for the whole replay, for a policy that stands still."""
        if self._table is None:
            samples = max(self.config.policy_samples, self.config.target_samples)
            key = (self.config.seed, TABLE)
            self._table = ChunkTable(
                self.fresh(policy), self.replay.ticks, samples, key, folder=self.folder, on_batch=self._on_table
            )
        return self._table

    def _cuts(self, size: int, generator: torch.Generator) -> Tensor | None:
        """Back-up lengths `[size]`: uniform from 1 on for `cut_share` of the samples, whole for the others.

        Our choice. At the end of a fragment a chunk is partial and completed by the policy's rows; if that happened nowhere else, the critic would read
        the nearness of the end off the policy's rows, and value every fresh chunk as if failure were near. Cutting chunks everywhere takes that hint away.
        """
        if not (self.config.cut_share and self.method.bootstraps):
            return None
        whole = self.replay.backup
        cut = torch.rand(size, generator=generator) < self.config.cut_share
        return torch.where(cut, torch.randint(1, whole + 1, (size,), generator=generator), whole)
