"""What drives the robot, seen from the control side: something that proposes chunks. And the registry that finds it by name or folder."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.robot import RobotDescription

POLICY_FILE = "policy.json"  # in a checkpoint folder; its key "type" names the loader


class ChunkPolicy(Protocol):
    """Proposes action chunks. One instance serves one robot."""

    version: str  # PolicyVersion.version
    horizon: int  # rows of a chunk
    cameras: tuple[str, ...]  # cameras it needs, by name; empty for state observations
    image_size: tuple[int, int] | None  # (height, width) [pixel] it wants
    uses_task_state: bool  # whether it needs the simulator's privileged state

    def propose(
        self,
        observation: Observation,
        generator: np.random.Generator,
        prefix: np.ndarray | None = None,
        prefix_steps: int = 0,
    ) -> np.ndarray:
        """A chunk float32 `[H, A]` for `observation`.

        Args:
            observation: built by `ObservationBuilder`.
            generator: the only source of randomness.
            prefix: what remains of the running chunk from the observation's time on, `[n, A]`; for real-time chunking.
            prefix_steps: rows of `prefix` that will certainly be executed while this call computes.
        """
        ...


def request_generator(seed: int, episode_id: str, request_id: int) -> np.random.Generator:
    """The randomness of one chunk: a function of seed, episode and request alone, so that a graph and a lockstep roll-out sample alike."""
    digest = hashlib.sha256(f"{seed}/{episode_id}/{request_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def load_policy(spec: str, robot: RobotDescription, **options: Any) -> ChunkPolicy:
    """A policy by name (`scripted`) or by checkpoint folder (`runs/bc/policy`), through the entry points of group `aloe.policies`.

    Raises:
        AloeError: no such policy; the folder is not a checkpoint; or the loader refuses it.
    """
    loaders = {e.name: e for e in entry_points(group="aloe.policies")}
    folder = Path(spec)
    if os.path.isdir(folder):  # also false for a name that no folder can have, where Path raises
        file = folder / POLICY_FILE
        try:
            kind = json.loads(file.read_text())["type"]
        except FileNotFoundError:
            raise AloeError(f"{folder} is not a policy checkpoint: it has no {POLICY_FILE}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AloeError(f"{file}: not a policy description (JSON with a key 'type')") from None
    else:
        kind = spec.split(":", 1)[0]
    if not isinstance(kind, str) or kind not in loaders:
        known = ", ".join(sorted(loaders)) or "none"
        raise AloeError(f"'{spec}' is neither a checkpoint folder nor a known policy ({known})")
    return loaders[kind].load()(spec, robot, **options)
