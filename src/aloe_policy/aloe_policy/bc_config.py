"""Configuration of a behaviour-cloning run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from aloe_core.errors import AloeError
from aloe_core.robot import explain
from aloe_core.vocabulary import Outcome, outcome_from_text
from aloe_core.yaml_file import read_yaml
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig


@dataclass(frozen=True)
class BcConfig:
    """A behaviour-cloning run; the defaults suit state observations on two CPU cores."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str = "bc"  # of the run; part of the policy's version
    robot: str = "aloha_sim"  # robot description: name or file
    outcomes: tuple[str, ...] = ("success",)  # episodes to learn from
    cameras: tuple[str, ...] = ()  # cameras to look through; empty: the simulator's object state instead
    image_size: int = 128  # side of the square images [pixel]
    horizon: int = 50  # rows of a chunk (paper: 50)
    hold_at_end: bool = True  # rows past the end of an episode teach to stay put; false: they teach nothing
    policy: FlowConfig = field(default_factory=FlowConfig)
    steps: int = 3000  # gradient steps
    batch_size: int = 128  # samples a step, over all processes
    accumulate: int = 1  # parts each process splits its share into, to save memory
    learning_rate: float = 1e-3  # peak, after the warm-up; then cosine to zero
    warmup_steps: int = 100  # linear
    weight_decay: float = 1e-4  # AdamW
    beta1: float = 0.9  # AdamW
    beta2: float = 0.95  # AdamW
    grad_clip: float = 1.0  # norm
    ema_decay: float = 0.999  # of the weights that are saved as the policy
    seed: int = 0  # of weights, batches and noise
    log_every: int = 50  # steps
    save_every: int = 500  # steps
    compile: bool = False  # torch.compile the network

    def __post_init__(self) -> None:
        for key in ("image_size", "horizon", "steps", "batch_size", "accumulate", "log_every", "save_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")
        for outcome in self.outcomes:
            outcome_from_text(outcome)

    def check_continues(self, spec: PolicySpec, where: str) -> None:
        """Whether this run may go on from a policy with `spec`, which brings its own cameras, image size, chunks and network.

        Raises:
            AloeError: one of those keys is set to something else than the policy has.
        """
        side = spec.image_size[0] if spec.image_size and spec.image_size[0] == spec.image_size[1] else None
        has = {"cameras": spec.cameras, "image_size": side, "horizon": spec.horizon, "policy": None}
        fresh = BcConfig()
        for key, value in has.items():
            if getattr(self, key) not in (getattr(fresh, key), value):
                raise AloeError(f"{where} brings its own '{key}'; leave that key out of the configuration")

    @property
    def wanted(self) -> tuple[Outcome, ...]:
        """`outcomes` as the project's vocabulary."""
        return tuple(outcome_from_text(text) for text in self.outcomes)


def load_config(file: Path) -> BcConfig:
    """Reads a YAML file of `BcConfig` keys.

    Raises:
        AloeError: the file is missing or not YAML, or a key is unknown or wrong; the message names file and key.
    """
    if not Path(file).is_file():
        raise AloeError(f"there is no configuration file {file}")
    data = read_yaml(Path(file))
    try:
        return TypeAdapter(BcConfig).validate_python(data or {})
    except ValidationError as error:
        raise AloeError(f"{file}: {explain(error)}") from None
