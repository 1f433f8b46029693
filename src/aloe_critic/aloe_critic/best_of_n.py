"""Best-of-n acting: sample n chunks from a policy, execute the one the critic values most (Q_pess, minimum over heads).

A checkpoint is a folder with the policy, the critic and `policy.json` of type `best_of_n`. The critic's choice is only as good as its values are on
chunks that were never executed; compare with n = 1 before trusting it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Self

from aloe_core.errors import AloeError
from aloe_core.policy import POLICY_FILE
from aloe_core.robot import RobotDescription
from aloe_critic.critic import ChunkCritic, pessimistic, repeat_batch
from aloe_critic.critic_file import CRITIC_FILE, chunk_critic, load_critic
from aloe_policy.acting import ActingPolicy
from aloe_policy.checkpoint import check_replaceable, replace_folder
from aloe_policy.protocol import SampleBatch, TrainablePolicy, batch_size
from aloe_policy.trainable import load_trainable

TYPE = "best_of_n"


class BestOfN(TrainablePolicy):
    """A policy that proposes the best of n of its chunks."""

    def __init__(
        self,
        policy: TrainablePolicy,
        critic: ChunkCritic,
        n: int,
        critic_file: Path | None = None,
        encoder: str = "",
    ) -> None:
        """Freezes both: what is trained is the policy alone.

        Args:
            critic_file: where the critic came from, copied into checkpoints.
            encoder: of the image features the critic looks at; empty: none.

        Raises:
            AloeError: n < 1, or the critic judges chunks of another size or looks at an object state of another size.
        """
        super().__init__()
        if n < 1:
            raise AloeError(f"best_of_n needs n of at least 1, not {n}")
        spec, judged = policy.spec, critic.config
        if judged.action_dim != spec.action_dim or judged.horizon > spec.horizon:
            raise AloeError(
                f"the critic judges {judged.horizon} steps of {judged.action_dim} actions, the policy proposes {spec.horizon} of {spec.action_dim}"
            )
        if spec.object_dim and judged.object_dim not in (0, spec.object_dim):
            raise AloeError(
                f"the critic looks at {judged.object_dim} numbers of object state, the policy at {spec.object_dim}"
            )
        self.policy, self.critic, self.n, self._critic_file, self._encoder = policy, critic, n, critic_file, encoder
        self.spec = replace(spec, object_dim=spec.object_dim or judged.object_dim)  # batches bring what either looks at
        self.requires_grad_(False)

    @torch.no_grad()
    def act(
        self, batch: SampleBatch, generator: torch.Generator, prefix: Tensor | None = None, prefix_steps: int = 0
    ) -> Tensor:
        """See `TrainablePolicy.act`.

        Raises:
            AloeError: the batch lacks the object state that the critic looks at.
        """
        size, objects = batch_size(batch), self.critic.config.object_dim
        if objects and "object_state" not in batch:
            raise AloeError(
                f"the critic of this best_of_n policy looks at an object state of {objects} numbers, the batch has none"
            )
        seen = dict(batch)
        if self._encoder:  # encode once for all n, and for the policy too if it has the same encoder
            from aloe_policy.encoders import batch_features

            seen["features"] = batch_features(batch, self.spec.cameras, self._encoder, self.device)
            if not self.policy.reads_images:
                seen.pop("images", None)
        seen = repeat_batch(seen, self.n)
        chunks = self.policy.act(seen, generator, prefix, prefix_steps)  # type: ignore[arg-type]
        value_BN = pessimistic(self.critic, {**seen, "action": chunks}).view(size, self.n)
        return chunks.unflatten(0, (size, self.n))[torch.arange(size), value_BN.argmax(dim=1)]

    def loss(self, batch: SampleBatch, generator: torch.Generator) -> Tensor:
        """The policy's own loss `[B]`: training does not look at the critic."""
        return self.policy.loss(batch, generator)

    def save(self, folder: Path, name: str = "policy-0") -> str:
        if self._critic_file is None:
            raise AloeError("this best_of_n policy was not made from a critic file and cannot be saved")
        folder = Path(folder)
        check_replaceable(folder, (POLICY_FILE, CRITIC_FILE, "policy"))
        new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        inner = self.policy.save(new / "policy", name)
        shutil.copyfile(self._critic_file, new / CRITIC_FILE)
        description = {"type": TYPE, "n": self.n, "name": name}
        sha256 = _hash(description, inner, new / CRITIC_FILE)
        (new / POLICY_FILE).write_text(json.dumps({**description, "sha256": sha256}, indent=1))
        replace_folder(folder, new)
        return sha256

    @classmethod
    def load(cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu") -> Self:
        return cls.load_with_version(folder, robot, device)[0]

    @classmethod
    def load_with_version(
        cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu"
    ) -> tuple[Self, str]:
        """Like `load`, with the checkpoint's version."""
        folder = Path(folder)
        file = folder / POLICY_FILE
        try:
            description = json.loads(file.read_text())
            inner = json.loads((folder / "policy" / POLICY_FILE).read_text())["sha256"]
            claimed, name, n = description.pop("sha256"), description["name"], description["n"]
        except (OSError, json.JSONDecodeError, KeyError) as error:
            raise AloeError(f"{folder} is not a best_of_n checkpoint: {error}") from None
        method, facts, _ = load_critic(folder, device)
        if robot is None:
            raise AloeError(f"{folder}: name the robot; the policy inside is loaded for one")
        policy, _ = load_trainable(folder / "policy", robot)
        if facts.robot_hash != policy.spec.robot_hash:
            raise AloeError(
                f"{folder}: critic and policy were made for different robots ({facts.robot_hash}, {policy.spec.robot_hash})"
            )
        if _hash(description, inner, folder / CRITIC_FILE) != claimed:
            raise AloeError(
                f"{folder} is damaged: its content does not have the hash that {POLICY_FILE} claims; copy it again"
            )
        best = cls(policy, chunk_critic(method, str(folder)), n, folder / CRITIC_FILE, facts.encoder)
        return best.to(device).eval(), f"{name}-{claimed[:8]}"


def _hash(description: dict, inner: str, critic: Path) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode() + inner.encode())
    digest.update(critic.read_bytes())
    return digest.hexdigest()


def load_policy(spec: str, robot: RobotDescription, device: str = "cpu") -> ActingPolicy:
    """Serves a best_of_n checkpoint to the control side; entry point `best_of_n` of group `aloe.policies`."""
    policy, version = BestOfN.load_with_version(Path(spec), robot, device)
    return ActingPolicy(policy, version)
