"""The replay as the learner sees it: chunk samples of a store as torch tensors, with what is known of each sample without learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from aloe_core.vocabulary import Outcome
from aloe_critic.critic import ChunkCritic, CriticConfig, small
from aloe_critic.methods import Method, SampleFacts
from aloe_policy.protocol import SampleBatch
from aloe_policy.replay import ChunkSamples
from aloe_policy.replay.tensors import Instructions, sample_batch

VALUES = ("chunk_return", "bootstrap", "bootstrap_discount", "return_to_go")


class StoreReplay:
    """`learner.Replay` over the samples of a `ReplayStore`; rows of the store are the ticks."""

    def __init__(self, samples: ChunkSamples, with_instruction: bool = False, with_images: bool = False) -> None:
        """What batches carry besides what `samples` does.

        Args:
            with_instruction: the sentence embedding, for policies that look through cameras.
            with_images: images and instructions as text, for policies that bring an encoder of their own; the critic's batches do without.
        """
        self.samples_of, self.store = samples, samples.store
        self.start, self.bootstrap = torch.from_numpy(samples.start), torch.from_numpy(samples.bootstrap)
        last = self.store.episodes[max(samples.episodes)]
        self.ticks, self.backup = last.start + last.steps + 1, samples.backup  # later episodes are not looked at
        self.return_range, self.digest = samples.return_range, samples.digest
        self.facts = SampleFacts(
            source=torch.from_numpy(samples.source),
            outcome=torch.from_numpy(samples.outcome),
            episode_outcome=torch.from_numpy(samples.episode_outcome),
            to_end=torch.from_numpy(samples.to_end),
            train_policy=torch.from_numpy(samples.train_policy),
            train_critic=torch.from_numpy(samples.train_critic),
        )
        ending = np.where(samples.outcome == Outcome.UNLABELLED, samples.episode_outcome, samples.outcome)
        self._success = torch.from_numpy(
            samples.terminal & (ending == Outcome.SUCCESS)
        )  # a stream may run on past its fragment
        self._instructions = Instructions.of(self.store, with_images) if with_instruction else None
        self._images = with_images or None  # None: the store's rule, images where there are no features

    def observe(self, ticks_B: Tensor) -> SampleBatch:
        """Observations at rows of the store, for policy and critic."""
        return self._tensors(self.store.observe(ticks_B.numpy(), self.samples_of.encoder, self._images))

    def vectors(self, ticks_B: Tensor) -> dict[str, Tensor]:
        """Only `state` and, if the store has it, `object_state` at rows of the store."""
        names = [name for name in ("state", "object_state") if name in self.store.arrays]
        return {name: torch.from_numpy(self.store.arrays[name][ticks_B.numpy()]) for name in names}

    def chunks(self, index_B: Tensor) -> SampleBatch:
        """Chunk samples as the policy learns from them."""
        samples, index = self.samples_of, index_B.numpy()
        return self._tensors(
            self.store.chunk_batch(
                samples.start[index], samples.horizon, samples.stop[index], samples.encoder, self._images
            )
        )

    def samples(self, index_B: Tensor, steps_B: Tensor | None = None) -> dict[str, Any]:
        """Chunk samples as the critic learns from them, see `methods.base.CriticBatch`; `steps`: see `ChunkSamples.batch`."""
        batch = self.samples_of.batch(index_B.numpy(), None if steps_B is None else steps_B.numpy())
        values = {name: torch.from_numpy(batch[name]) for name in VALUES}
        return {
            **self._tensors(batch),
            **values,
            "success": self._success[index_B] & torch.from_numpy(batch["terminal"]),
            "next": self._tensors(batch["next"]),
        }

    def _tensors(self, batch: dict[str, Any]) -> SampleBatch:
        return sample_batch(batch, self._instructions)

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of state, object state and action over the samples' rows, for `ChunkCritic.set_statistics`."""
        rows = np.unique(self.samples_of.start)
        out: dict[str, tuple[Tensor, Tensor]] = {}
        for name in ("state", "object_state", "action"):
            if name in self.store.arrays:
                values = self.store.arrays[name][rows].astype(np.float64)
                out[name] = (
                    torch.from_numpy(values.mean(axis=0)).float(),
                    torch.from_numpy(values.std(axis=0)).float(),
                )
        return out

    def critic_config(self, **changes: Any) -> CriticConfig:
        """A small critic of what the store holds; `changes` override its fields."""
        spec = self.store.spec
        inputs: dict[str, Any] = {
            "state_dim": len(spec.action_names),
            "action_dim": len(spec.action_names),
            "horizon": self.samples_of.horizon,
        }
        if self.samples_of.encoder is None:
            inputs["object_dim"] = spec.object_size
        else:
            grid = next(iter(self.store.features(self.samples_of.encoder).values()))
            inputs |= {"cameras": spec.cameras, "feature_tokens": grid.shape[1], "feature_dim": grid.shape[2]}
            inputs |= {"instruction_dim": 0 if self._instructions is None else self._instructions.embeddings.shape[1]}
        return small(**{**inputs, **changes})


def fit_to(method: Method, replay: StoreReplay) -> None:
    """Gives every network of a method the replay's statistics, each those it has an input for, and starts its values at the mean return.

    Our choice: values that start at 0, the best there is, take as many target lags to come down as there are back-ups in an episode.
    """
    statistics = replay.statistics()
    known = replay.samples_of.return_to_go[np.isfinite(replay.samples_of.return_to_go)]
    for module in method.modules():
        if isinstance(module, ChunkCritic):
            used = {
                "state": module.config.state_dim,
                "object_state": module.config.object_dim,
                "action": module.config.horizon,
            }
            module.set_statistics(**{name: pair for name, pair in statistics.items() if used[name]})
            if module.config.outputs == 1 and len(known):
                torch.nn.init.constant_(module.last.bias, float(known.mean()))
