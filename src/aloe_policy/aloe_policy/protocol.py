"""What a learning algorithm needs of a policy, whatever network is inside, and the batch both sides agree on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aloe_core.robot import RobotDescription
from aloe_policy.checkpoint import PolicySpec


class SampleBatch(TypedDict, total=False):
    """B samples: observations at B instants and, for learning, the chunk of actions executed from each instant on.

    A plain dict of tensors on one device, and of texts. A policy reads the keys it needs and ignores the others. Vectors
    are in the robot's action order, in physical units; policies normalise inside.
    """

    state: Tensor  # float32 [B, A] measured joints [rad], gripper openings [0..1]
    object_state: Tensor  # float32 [B, O] privileged object poses of a simulated task
    images: dict[str, Tensor]  # camera -> uint8 [B, h, w, 3] RGB, at the policy's image size
    features: dict[
        str, Tensor
    ]  # camera -> float [B, N, D] what the frozen encoder made of the image; spares encoding it again
    instruction: Tensor  # float32 [B, E] sentence embedding
    instruction_text: list[str]  # the B instructions themselves, for policies with a tokenizer of their own
    action: Tensor  # float32 [B, H, A] executed actions; rows past the end of the episode repeat the last one
    action_mask: Tensor  # bool [B, H] which rows were executed; all if the key is missing
    at_end: Tensor  # bool [B] the executed rows go on to the end of a complete episode, not to a gap in the recording


class TrainablePolicy(nn.Module, ABC):
    """A policy over action chunks that can be sampled, improved, saved and loaded.

    `forward` is `loss`, so that wrappers which synchronise gradients in `forward` (torch's DDP, hence `accelerate`) work unchanged.
    """

    spec: PolicySpec

    @property
    def frozen_encoder(self) -> str:
        """Encoder of `aloe_policy.encoders` whose `features` it takes in place of `images`; empty: batches bring it the images themselves and
        `instruction_text`."""
        return ""

    @property
    def reads_images(self) -> bool:
        """Whether batches must bring images."""
        return bool(self.spec.cameras) and not self.frozen_encoder

    @property
    def needs_instruction(self) -> bool:
        """Whether it follows an instruction and has none of its own: without one it is neither trained nor asked."""
        return bool(self.spec.cameras)

    def check_trainable(self) -> None:
        """Called before a training begins, so that it does not fail after hours of training a critic.

        Raises:
            AloeError: it acts, but has no loss.
        """

    @abstractmethod
    def act(
        self, batch: SampleBatch, generator: torch.Generator, prefix: Tensor | None = None, prefix_steps: int = 0
    ) -> Tensor:
        """Samples a chunk for each observation, float32 `[B, H, A]`, without gradient.

        Args:
            batch: observations; `action` is not read.
            generator: the only source of randomness; its device may differ from the policy's.
            prefix: what remains of the running chunk from the observation's time on, `[n, A]`; the new chunk continues it. Ignored by policies that cannot.
            prefix_steps: rows of `prefix` that will certainly be executed.
        """

    @abstractmethod
    def loss(self, batch: SampleBatch, generator: torch.Generator) -> Tensor:
        """Loss of each sample, `[B]`, so that advantage weights can multiply it. Masked rows have no influence on it."""

    @abstractmethod
    def save(self, folder: Path, name: str = "policy-0") -> str:
        """Writes a checkpoint folder atomically; returns its content hash. `name` is "<run>-<iteration>"."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu") -> Self:
        """Reads a checkpoint.

        Raises:
            AloeError: not a checkpoint of this type, damaged, made for another robot (when `robot` is given), or with weights that are not finite.
        """

    def forward(self, batch: SampleBatch, generator: torch.Generator) -> Tensor:
        return self.loss(batch, generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def batch_size(batch: SampleBatch) -> int:
    """B."""
    return batch["state"].shape[0]


def to_device(batch: SampleBatch, device: torch.device | str) -> SampleBatch:
    """The same batch on another device."""
    return map_batch(batch, lambda tensor: tensor.to(device), lambda texts: texts)


def select(batch: SampleBatch, index: Tensor) -> SampleBatch:
    """The samples `index [b]` of a batch."""
    return map_batch(batch, lambda tensor: tensor[index], lambda texts: [texts[i] for i in index.tolist()])


def map_batch(
    batch: Mapping[str, Any], tensor: Callable[[Tensor], Tensor], texts: Callable[[list[str]], list[str]]
) -> Any:
    """The batch with `tensor` applied to every tensor and `texts` to every list of texts, also of the batches inside it."""
    mapped: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Mapping):
            mapped[key] = map_batch(value, tensor, texts)
        else:
            mapped[key] = texts(value) if isinstance(value, list) else tensor(value)
    return mapped
