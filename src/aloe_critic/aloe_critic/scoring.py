"""Judges single chunks as they are proposed: what `critic_node` publishes and the report draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.robot import RobotDescription
from aloe_critic.critic import repeat_batch
from aloe_critic.critic_file import chunk_critic, load_critic
from aloe_policy.acting import ActingPolicy
from aloe_policy.trainable import load_trainable
from aloe_policy.training_state import random_numbers


@dataclass(frozen=True)
class Score:
    """A critic's judgement of one chunk, in units of scaled return; `q` and `v` within the possible returns if the method bounds values, as its `evaluate`."""

    q: float  # pessimistic: minimum over heads
    q_heads: tuple[float, ...]  # as they are
    v: float  # mean pessimistic value of the policy's own chunks
    advantage: float  # q - v
    head_std: float  # spread over heads; not a calibrated uncertainty


class ChunkScorer:
    """A critic and the policy its values refer to.

    Args:
        critic: file, or folder with `critic.safetensors`.
        policy: checkpoint of the policy that V(s) is of.
        samples: m, chunks of the policy per value.
        seed: of those chunks.

    Raises:
        AloeError: the critic values states only, or was made for another robot or chunk size.
    """

    def __init__(self, critic: Path, policy: Path, robot: RobotDescription, samples: int = 8, seed: int = 0) -> None:
        method, facts, self.critic_version = load_critic(critic)
        self.critic = chunk_critic(method, str(critic))
        self._range: tuple[float, float] = getattr(method, "return_range", (-math.inf, math.inf))
        if facts.robot_hash != robot.hash:
            raise AloeError(
                f"{critic} was made for a robot with hash {facts.robot_hash}, '{robot.name}' has {robot.hash}"
            )
        trainable, self.policy_version = load_trainable(policy, robot)
        self._acting = ActingPolicy(trainable, self.policy_version)
        self._samples, self._seed, self._encoder = samples, seed, facts.encoder
        self.cameras, self.image_size = self._acting.cameras, self._acting.image_size
        self.uses_task_state = self._acting.uses_task_state or self.critic.config.object_dim > 0
        if self.critic.config.horizon > self._acting.horizon:
            raise AloeError(
                f"the critic judges {self.critic.config.horizon} steps, the policy proposes {self._acting.horizon}"
            )

    @torch.no_grad()
    def score(self, observation: Observation, positions: np.ndarray, number: int = 0) -> Score:
        """Judges the chunk `positions` `[H, A]` proposed at an observation; `number` (the chunk's) varies the policy's samples.

        Raises:
            AloeError: the observation lacks something, or the chunk is too short.
        """
        batch = self._batch(observation)
        action = torch.from_numpy(np.asarray(positions, np.float32))[None]
        heads = self.critic({**batch, "action": action})[0]
        repeated: Any = repeat_batch(batch, self._samples)
        chunks = self._acting.policy.act(repeated, random_numbers(self._seed, number))
        v = float(self.critic({**repeated, "action": chunks}).min(dim=1).values.clamp(*self._range).mean())
        q = float(heads.min().clamp(*self._range))
        return Score(q, tuple(heads.tolist()), v, q - v, float(heads.std(correction=0)))

    def _batch(self, observation: Observation) -> dict[str, Any]:
        """The observation as a batch of one, with what the policy looks at and what the critic looks at."""
        batch: dict[str, Any] = dict(self._acting._batch(observation))
        if self._encoder:
            from aloe_policy.encoders import batch_features

            batch["features"] = batch_features(batch, self.cameras, self._encoder, torch.device("cpu"))  # type: ignore[arg-type]
        if size := self.critic.config.object_dim:
            found = observation.object_state
            if found is None or found.shape != (size,):
                has = "none" if found is None else f"one of {found.size}"
                raise AloeError(
                    f"critic {self.critic_version} looks at an object state of {size} numbers, the observation has {has}"
                )
            batch["object_state"] = torch.from_numpy(np.asarray(found, np.float32))[None]
        return batch
