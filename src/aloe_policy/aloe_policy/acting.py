"""A trained policy as the control side sees it: one observation in, one chunk out."""

from __future__ import annotations

import numpy as np
import torch

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_policy.protocol import SampleBatch, TrainablePolicy


class ActingPolicy:
    """Serves a `TrainablePolicy` as an `aloe_core.policy.ChunkPolicy`.

    Args:
        policy: its weights are used as they are.
        version: `PolicyVersion.version` of the checkpoint.
    """

    def __init__(self, policy: TrainablePolicy, version: str) -> None:
        self.policy = policy.eval()
        self.version = version
        self.horizon = policy.spec.horizon
        self.cameras = policy.spec.cameras
        self.image_size = policy.spec.image_size
        self.uses_task_state = policy.spec.object_dim > 0

    def propose(
        self,
        observation: Observation,
        generator: np.random.Generator,
        prefix: np.ndarray | None = None,
        prefix_steps: int = 0,
    ) -> np.ndarray:
        """A chunk float32 `[H, A]`; see `ChunkPolicy.propose`.

        Raises:
            AloeError: the observation lacks something the policy needs.
        """
        batch = self._batch(observation)
        noise = torch.Generator().manual_seed(int(generator.integers(2**63)))
        known = None if prefix is None or not len(prefix) else torch.from_numpy(np.asarray(prefix, np.float32))
        return self.policy.act(batch, noise, known, prefix_steps)[0].cpu().numpy()

    def _batch(self, observation: Observation) -> SampleBatch:
        spec, device = self.policy.spec, self.policy.device
        batch: SampleBatch = {"state": torch.from_numpy(observation.state)[None].to(device)}
        if spec.object_dim:
            found = observation.object_state
            if found is None or found.shape != (spec.object_dim,):
                size = "none" if found is None else str(found.size)
                raise AloeError(
                    f"policy {self.version} needs an object state of {spec.object_dim} numbers, the observation has {size}"
                )
            batch["object_state"] = torch.from_numpy(np.asarray(found, np.float32))[None].to(device)
        if spec.cameras:
            for camera in spec.cameras:
                if camera not in observation.images:
                    raise AloeError(
                        f"policy {self.version} needs an image of camera '{camera}', the observation has none"
                    )
            batch["images"] = {c: torch.from_numpy(observation.images[c])[None].to(device) for c in spec.cameras}
        if self.policy.needs_instruction and not observation.instruction:
            raise AloeError(f"policy {self.version} follows an instruction, the observation has none")
        self._add_instruction(batch, observation)
        return batch

    def _add_instruction(self, batch: SampleBatch, observation: Observation) -> None:
        if not self.policy.spec.cameras:
            return
        from aloe_policy.encoders import embed

        batch["instruction"] = torch.from_numpy(embed(observation.instruction))[None].to(self.policy.device)
        batch["instruction_text"] = [observation.instruction]
