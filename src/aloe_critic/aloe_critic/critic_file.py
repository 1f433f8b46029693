"""A trained method on disk: one safetensors file with its networks and, in the header, everything needed to build it again and to know whose it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from aloe_core.errors import AloeError
from aloe_core.robot import explain
from aloe_critic.critic import ChunkCritic, CriticConfig
from aloe_critic.methods import Method, make_method
from aloe_policy.training_state import load_module, module_tensors, read_state, write_state

CRITIC_FILE = "critic.safetensors"
FORMAT = 1  # raised when older readers would misread a file


@dataclass(frozen=True)
class CriticFacts:
    """What a critic was made of and for."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    method: str  # name, see `methods.METHODS`
    critic: CriticConfig
    options: Mapping[str, Any]  # of the method
    return_range: tuple[float, float]  # discounted returns the rewards allow
    gamma: float  # per control step
    robot_hash: str  # RobotDescription.hash
    policy_version: str  # policy whose value it learned; its own improved policy is newer
    encoder: str = ""  # of the image features it looks at; empty: state observations
    reward_scale: float | None = None  # factor on every reward; None: an older file, which does not say


def save_critic(file: Path, method: Method, facts: CriticFacts) -> None:
    """Writes the file atomically."""
    write_state(file, module_tensors("method", method), {"format": FORMAT, **asdict(facts)})


def load_critic(file: Path, device: str = "cpu") -> tuple[Method, CriticFacts, str]:
    """(method in evaluation mode, facts, version): the version is the start of the file's hash.

    Args:
        file: the file, or a folder that holds `critic.safetensors`.

    Raises:
        AloeError: missing, damaged, of another format, or without a critic.
    """
    file = Path(file) / CRITIC_FILE if Path(file).is_dir() else Path(file)
    tensors, data = read_state(file)
    if data.pop("format", None) != FORMAT:
        raise AloeError(f"{file} is not a critic of format {FORMAT}; train it anew with `aloe improve`")
    try:
        facts = TypeAdapter(CriticFacts).validate_python(data)
    except ValidationError as error:
        raise AloeError(f"{file} is damaged: {explain(error)}") from None
    if not _holds(facts, sum(tensor.numel() for tensor in tensors.values())):
        raise AloeError(f"{file} is damaged: the critic it describes is not the one it holds")
    method = make_method(facts.method, facts.critic, facts.options, facts.return_range)
    if not method.learns:
        raise AloeError(f"{file} was written by '{facts.method}', which has no critic")
    load_module("method", method, tensors, file)
    version = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return method.to(device).eval(), facts, version


def _holds(facts: CriticFacts, numbers: int) -> bool:
    """Whether the method described has so many numbers; whoever asks has not had to give it memory."""
    if not 0 < _least_numbers(facts.critic) <= numbers:
        return False  # it may have more layers than can be counted
    try:
        with torch.device("meta"):
            method = make_method(facts.method, facts.critic, facts.options, facts.return_range)
    except (RuntimeError, TypeError):  # of sizes that no tensor can have
        return False
    return sum(tensor.numel() for tensor in method.state_dict().values()) == numbers


def _least_numbers(c: CriticConfig) -> int:
    """How many weights a critic of this size has at least, if only one head that values states; 0: there is no such critic."""
    sizes = (c.width, c.layers, c.heads, c.outputs, c.attention_heads, c.steps_per_token, c.feature_tokens)
    inputs = (c.state_dim, c.action_dim, c.object_dim, c.instruction_dim, c.feature_dim, c.horizon, c.head_layers)
    if min(sizes) < 1 or min(inputs) < 0:
        return 0
    embedded = c.state_dim + c.object_dim + c.instruction_dim + c.feature_dim * bool(c.cameras)
    positions = len(c.cameras) * c.feature_tokens
    return c.width * (embedded + positions + (2 * c.layers + c.head_layers) * c.width + 1)


def chunk_critic(method: Method, where: str) -> ChunkCritic:
    """The Q(s, chunk) inside a method.

    Raises:
        AloeError: the method values states, not chunks.
    """
    critic = getattr(method, "critic", None)
    if not isinstance(critic, ChunkCritic) or not critic.config.horizon:
        raise AloeError(
            f"{where}: method '{method.name}' values states, not chunks; this needs the critic of `aloe improve --method aloe`"
        )
    return critic
