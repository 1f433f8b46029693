"""Policies that can be trained, by checkpoint. There is one registry: what drives the robot says itself what can be trained of it."""

from __future__ import annotations

from pathlib import Path

from aloe_core.errors import AloeError
from aloe_core.policy import load_policy
from aloe_core.robot import RobotDescription
from aloe_policy.protocol import TrainablePolicy


def load_trainable(spec: Path | str, robot: RobotDescription) -> tuple[TrainablePolicy, str]:
    """The policy that trains, and its version, on the CPU.

    Args:
        spec: checkpoint folder, or any name that a loader of group `aloe.policies` knows (`lerobot:<folder>`). The loader returns a
            `ChunkPolicy`; if that has the `TrainablePolicy` behind it as attribute `policy`, as `ActingPolicy` does, it can be trained.

    Raises:
        AloeError: not a policy, one that cannot be trained, or made for another robot.
    """
    acting = load_policy(str(spec), robot)
    policy = getattr(acting, "policy", None)
    if not isinstance(policy, TrainablePolicy):
        raise AloeError(
            f"{spec} can drive the robot but not be trained: its loader gives a {type(acting).__name__} "
            "without a TrainablePolicy as attribute 'policy'"
        )
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise AloeError(f"{spec} cannot be trained: all weights of this {type(policy).__name__} are frozen")
    return policy, acting.version
