"""FlowPolicy: observation -> chunk by flow matching. And its entry in the registry of policies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import Self

from aloe_core.errors import AloeError
from aloe_core.policy import POLICY_FILE
from aloe_core.robot import RobotDescription, explain
from aloe_policy import flow_matching
from aloe_policy.checkpoint import PolicySpec, check_robot, read_checkpoint, write_checkpoint
from aloe_policy.networks import ActionMLP, ActionTransformer, GridReadout
from aloe_policy.normalisation import Normalisation
from aloe_policy.protocol import SampleBatch, TrainablePolicy, batch_size

if TYPE_CHECKING:
    from aloe_policy.acting import ActingPolicy

TYPE = "flow"
MAX_ETA = 0.95  # our choice: where a field derived from a clean chunk stops growing, in a policy that was taught fields
LAST_ETA = 1 - 1e-6  # the same in a policy that was taught clean chunks; integration ends earlier
MAX_STEPS = 1000  # of the integration


@dataclass(frozen=True)
class FlowConfig:
    """What a FlowPolicy is made of."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    network: Literal["mlp", "transformer"] = "mlp"  # mlp: state observations on a CPU; transformer: everything else
    target: Literal["action", "velocity"] = "action"  # what the loss compares: clean chunks, or fields (paper Eq. 15)
    width: int = 384  # D
    layers: int = 3  # residual or Transformer blocks
    heads: int = 4  # attention heads of the transformer
    rows_per_token: int = 1  # chunk rows per token of the transformer
    camera_tokens: int = 8  # tokens read from each camera's feature grid
    encoder: str = "efficientnet_lite0"  # frozen image encoder, see aloe_policy.encoders
    steps: int = 10  # integration steps
    method: Literal["euler", "midpoint"] = "euler"  # how the flow is integrated
    bf16: bool = False  # run the network in bfloat16 (autocast); the frozen encoder stays in float32


class FlowPolicy(TrainablePolicy):
    """Flow matching over chunks (paper Eq. 15), on state or image observations.

    With cameras in `spec` it sees images (through a frozen encoder), the instruction and the joints; without, the joints and the simulator's object state.
    """

    def __init__(self, spec: PolicySpec, config: FlowConfig, normalisation: Normalisation) -> None:
        """Randomly initialised by torch's global generator.

        Raises:
            AloeError: the configuration is impossible; the message names the key.
        """
        super().__init__()
        check_config(spec, config)
        self.spec, self.config, self.normalisation = spec, config, normalisation
        width, dim = config.width, spec.action_dim
        self.state_token = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        tokens = 1
        if spec.object_dim:
            self.object_token = nn.Sequential(nn.Linear(spec.object_dim, width), nn.GELU(), nn.Linear(width, width))
            tokens += 1
        if spec.cameras:
            from aloe_policy.encoders import INSTRUCTION_DIM, grid_shape

            cells, features = grid_shape(config.encoder, spec.image_size or (0, 0))
            self.readouts = nn.ModuleDict(
                {c: GridReadout(features, cells, width, config.camera_tokens) for c in spec.cameras}
            )
            self.instruction_token = nn.Linear(INSTRUCTION_DIM, width)
            tokens += 1 + len(spec.cameras) * config.camera_tokens
        self.network: nn.Module
        if config.network == "mlp":
            self.network = ActionMLP(dim, spec.horizon, width, config.layers, tokens)
        else:
            self.network = ActionTransformer(
                dim, spec.horizon, width, config.layers, config.heads, config.rows_per_token
            )

    @property
    def frozen_encoder(self) -> str:
        return self.config.encoder if self.spec.cameras else ""

    def act(
        self, batch: SampleBatch, generator: torch.Generator, prefix: Tensor | None = None, prefix_steps: int = 0
    ) -> Tensor:
        shape = (batch_size(batch), self.spec.horizon, self.spec.action_dim)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(self.device)
        normaliser = self.normalisation["action"]
        with torch.no_grad(), self._autocast():
            tokens = self._tokens(batch)

            def field(x: Tensor, eta: Tensor) -> Tensor:
                return self._predict(x, eta, tokens)[1]

            if prefix is None or not len(prefix):
                chunk = flow_matching.integrate(field, noise, self.config.steps, self.config.method)
            else:
                known = normaliser(prefix[: self.spec.horizon].to(noise))
                chunk = flow_matching.integrate_with_prefix(
                    field, noise, self.config.steps, known, min(prefix_steps, len(known))
                )
        return normaliser.inverse(chunk)

    def loss(self, batch: SampleBatch, generator: torch.Generator) -> Tensor:
        action = self.normalisation["action"](batch["action"])
        noise = torch.randn(action.shape, generator=generator, device=generator.device).to(action)
        eta = torch.rand(len(action), generator=generator, device=generator.device).to(action)
        x = flow_matching.interpolate(action, noise, eta)
        mask = batch.get("action_mask")
        if mask is not None:  # rows that were not executed look like pure noise, whatever the batch holds there
            x = torch.where(mask[:, :, None], x, noise)
        with self._autocast():
            clean, field = self._predict(x, eta, self._tokens(batch))
        if self.config.target == "velocity":
            error = field - flow_matching.field_target(action, noise)  # paper Eq. 15
        else:  # our choice: the same minimiser, the error of Eq. 15 weighted by (1 - eta)^2
            error = clean - action
        return flow_matching.masked_mean_square(error, mask)

    def save(self, folder: Path, name: str = "policy-0") -> str:
        return write_checkpoint(
            Path(folder),
            type=TYPE,
            name=name,
            spec=self.spec,
            config=asdict(self.config),
            normalisation=self.normalisation.to_json(),
            weights=self.state_dict(),
        )

    @classmethod
    def load(cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu") -> Self:
        policy, _ = cls.load_with_version(folder, robot, device)
        return policy

    @classmethod
    def load_with_version(
        cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu"
    ) -> tuple[Self, str]:
        """Like `load`, with the checkpoint's version."""
        folder = Path(folder)
        checkpoint = read_checkpoint(folder, TYPE)
        if robot is not None:
            check_robot(checkpoint.spec, robot, f"policy {folder}")
        try:
            config = TypeAdapter(FlowConfig).validate_python(checkpoint.config)
        except ValidationError as error:
            raise AloeError(f"{folder / POLICY_FILE}: config: {explain(error)}") from None
        spec = checkpoint.spec
        sizes = {"state": spec.action_dim, "action": spec.action_dim}
        if spec.object_dim:
            sizes["object_state"] = spec.object_dim
        normalisation = Normalisation.from_json(checkpoint.normalisation, sizes, str(folder / POLICY_FILE))
        if _least_weights(spec, config) > sum(tensor.numel() for tensor in checkpoint.weights.values()):
            raise AloeError(f"{folder}: the weights do not fit the configuration: it describes a larger network")
        policy = cls(spec, config, normalisation)
        try:
            policy.load_state_dict(checkpoint.weights)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:200]
            raise AloeError(f"{folder}: the weights do not fit the configuration: {detail}") from None
        return policy.to(device).eval(), checkpoint.version

    def _tokens(self, batch: SampleBatch) -> Tensor:
        """What was observed, `[B, N, D]`."""
        tokens = [self.state_token(self.normalisation["state"](batch["state"]))[:, None]]
        if self.spec.object_dim:
            tokens.append(self.object_token(self.normalisation["object_state"](batch["object_state"]))[:, None])
        if self.spec.cameras:
            from aloe_policy.encoders import batch_features

            features = batch_features(batch, self.spec.cameras, self.config.encoder, self.device)
            tokens.append(self.instruction_token(batch["instruction"])[:, None])
            tokens += [self.readouts[c](features[c]) for c in self.spec.cameras]
        return torch.cat(tokens, 1)

    def _predict(self, x: Tensor, eta: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The clean chunk and the field at x, both `[B, H, A]`, float32; one is predicted, the other derived."""
        out = self.network(x, eta, tokens).float()
        if self.config.target == "velocity" and self.config.network == "transformer":
            return flow_matching.action_from_field(x, out, eta), out
        limit = MAX_ETA if self.config.target == "velocity" else LAST_ETA  # the same field in `loss` and in `act`
        return out, flow_matching.field_from_action(x, out, eta.clamp(max=limit))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)


def load_policy(spec: str, robot: RobotDescription, device: str = "cpu") -> ActingPolicy:
    """Serves the checkpoint folder `spec` to the control side; entry point `flow` of group `aloe.policies`.

    Raises:
        AloeError: see `TrainablePolicy.load`.
    """
    from aloe_policy.acting import ActingPolicy

    policy, version = FlowPolicy.load_with_version(Path(spec), robot, device)
    return ActingPolicy(policy, version)


def _least_weights(spec: PolicySpec, config: FlowConfig) -> int:
    """How many weights such a policy has at least. Whoever asks has not had to make it."""
    inputs = spec.action_dim + spec.object_dim + len(spec.cameras) * config.camera_tokens
    inputs += spec.action_dim * (spec.horizon if config.network == "mlp" else config.rows_per_token)
    return config.width * (inputs + 2 * config.layers * config.width)


def check_config(spec: PolicySpec, config: FlowConfig) -> None:
    """Whether there can be such a policy.

    Raises:
        AloeError: no; the message names the key.
    """
    sizes = {
        key: getattr(config, key) for key in ("width", "layers", "heads", "rows_per_token", "camera_tokens", "steps")
    }
    for key, value in {**sizes, "horizon": spec.horizon}.items():
        if value < 1:
            raise AloeError(f"policy configuration: {key} must be at least 1, not {value}")
    if spec.object_dim < 0:
        raise AloeError(f"policy configuration: object_dim {spec.object_dim} is no length")
    if config.steps > MAX_STEPS:
        raise AloeError(f"policy configuration: {config.steps} integration steps; more than {MAX_STEPS} change nothing")
    if spec.horizon % config.rows_per_token:
        raise AloeError(
            f"policy configuration: rows_per_token {config.rows_per_token} does not divide the horizon of {spec.horizon}"
        )
    if config.network == "transformer" and config.width % config.heads:
        raise AloeError(f"policy configuration: width {config.width} is not a multiple of heads {config.heads}")
    if spec.cameras and spec.image_size is None:
        raise AloeError("policy configuration: a policy with cameras needs an image size")
    if spec.cameras:
        from aloe_policy.encoders import grid_shape

        grid_shape(config.encoder, spec.image_size or (0, 0))
