"""LeRobotPolicy: ACT, SmolVLA, pi0 or pi0.5 from LeRobot behind the project's policy protocol. Needs the package `lerobot` (Python 3.12 or newer).

Normalisation and tokens are LeRobot's own pre- and postprocessor's business: what is in its checkpoint is used as it is.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import Self

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_policy.checkpoint import PolicySpec, check_robot, read_checkpoint, write_checkpoint
from aloe_policy.lerobot_loss import check_type, sample_losses
from aloe_policy.protocol import SampleBatch, TrainablePolicy, batch_size

if TYPE_CHECKING:
    from aloe_policy.lerobot_acting import LeRobotActing

TYPE = "lerobot"
PREFIX = "lerobot:"  # `lerobot:<folder>` names a checkpoint folder as LeRobot itself writes it
STATE, OBJECTS, IMAGES, ACTION = "observation.state", "observation.environment_state", "observation.images.", "action"
LANGUAGE = ("smolvla", "pi0", "pi0_fast", "pi05")  # LeRobot's types that are known to read the instruction
PIPELINES = ("policy_preprocessor.json", "policy_postprocessor.json")
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class LeRobotPolicy(TrainablePolicy):
    """A LeRobot policy on one robot.

    Args:
        policy: LeRobot's policy object.
        preprocessor, postprocessor: LeRobot's pipelines that belong to it.
        robot: whose joints its state and action are, in that order and in the units of `SampleBatch`.
        cameras: camera of the robot -> image feature of the policy; None: `observation.images.<camera>`.
        instruction: what it is told where an observation says nothing.

    Raises:
        AloeError: its features do not fit the robot, or it needs more than one observation.
    """

    def __init__(
        self,
        policy: Any,
        preprocessor: Any,
        postprocessor: Any,
        robot: RobotDescription,
        cameras: Mapping[str, str] | None = None,
        instruction: str = "",
    ) -> None:
        super().__init__()
        self.policy, self.preprocessor, self.postprocessor = policy, preprocessor, postprocessor
        config = policy.config
        found = [key for key in config.input_features if key.startswith("observation.image")]
        self.keys = dict(cameras) if cameras is not None else {key.removeprefix(IMAGES): key for key in found}
        self.instruction = instruction
        self.spec = _spec(config, robot, self.keys)

    def act(
        self, batch: SampleBatch, generator: torch.Generator, prefix: Tensor | None = None, prefix_steps: int = 0
    ) -> Tensor:
        """See `TrainablePolicy.act`. The running chunk is ignored."""
        training = self.policy.training  # LeRobot's policies go into evaluation mode themselves, and stay there
        with torch.no_grad(), self._randomness(generator):
            chunk = self.policy.predict_action_chunk(self._prepared(self._observation(batch)))
        self.policy.train(training)
        return self.postprocessor(chunk).to(self.device, torch.float32)

    @property
    def needs_instruction(self) -> bool:
        return self.policy.config.type in LANGUAGE and not self.instruction

    def check_trainable(self) -> None:
        check_type(self.policy.config.type)

    def loss(self, batch: SampleBatch, generator: torch.Generator) -> Tensor:
        action = batch["action"]
        executed = batch.get("action_mask")
        if executed is None:
            executed = torch.ones(action.shape[:2], dtype=torch.bool, device=action.device)
        inputs = self._observation(batch)
        inputs[ACTION] = _last_executed(action, executed)
        inputs["action_is_pad"] = ~executed
        prepared = self._prepared(inputs)
        with self._randomness(generator):
            return sample_losses(self.policy, prepared, executed.to(self.device))

    def save(self, folder: Path, name: str = "policy-0") -> str:
        """See `TrainablePolicy.save`. LeRobot's own files are packed into the one weight file; `policy.save_pretrained` writes them apart."""
        with tempfile.TemporaryDirectory() as work:
            root = Path(work)
            self.policy.save_pretrained(root)
            for pipeline, file in zip((self.preprocessor, self.postprocessor), PIPELINES, strict=True):
                pipeline.save_pretrained(root, config_filename=file)
            weights = {
                f"{file.name}/{key}": tensor
                for file in sorted(root.glob("*.safetensors"))
                for key, tensor in safetensors.torch.load_file(file).items()
            }
            files = {file: json.loads((root / file).read_text()) for file in (CONFIG_FILE, *PIPELINES)}
        config = {"files": files, "cameras": self.keys, "instruction": self.instruction}
        return write_checkpoint(
            Path(folder), type=TYPE, name=name, spec=self.spec, config=config, normalisation={}, weights=weights
        )

    @classmethod
    def load(cls, folder: Path, robot: RobotDescription | None = None, device: str = "cpu") -> Self:
        """See `TrainablePolicy.load`; `robot` must be given, for LeRobot's files do not describe it."""
        if robot is None:
            raise AloeError(f"{folder}: name the robot; a LeRobot policy is bound to one when it is loaded")
        return cls.load_with_version(folder, robot, device)[0]

    @classmethod
    def load_with_version(cls, folder: Path, robot: RobotDescription, device: str = "cpu") -> tuple[Self, str]:
        """Like `load`, with the checkpoint's version."""
        checkpoint = read_checkpoint(Path(folder), TYPE)
        check_robot(checkpoint.spec, robot, f"policy {folder}")
        try:
            files, cameras, instruction = (checkpoint.config[key] for key in ("files", "cameras", "instruction"))
            contents = {file: json.dumps(files[file]) for file in (CONFIG_FILE, *PIPELINES)}
            tensors: dict[str, dict[str, Tensor]] = {}
            for key, tensor in checkpoint.weights.items():
                file, _, inner = key.partition("/")
                if Path(file).name != file or not file.endswith(".safetensors"):
                    raise AloeError(f"{folder}: weight '{key}' does not belong to a LeRobot policy")
                tensors.setdefault(file, {})[inner] = tensor
        except (KeyError, TypeError) as error:
            raise AloeError(f"{folder}: not a LeRobot policy's configuration: {error} is missing or wrong") from None
        with tempfile.TemporaryDirectory() as work:
            for file, text in contents.items():
                (Path(work) / file).write_text(text)
            for file, content in tensors.items():
                safetensors.torch.save_file(content, Path(work) / file)
            policy = cls.from_lerobot(Path(work), robot, dict(cameras), str(instruction), device, where=str(folder))
        return policy, checkpoint.version

    @classmethod
    def from_lerobot(
        cls,
        folder: Path,
        robot: RobotDescription,
        cameras: Mapping[str, str] | None = None,
        instruction: str = "",
        device: str = "cpu",
        where: str = "",
    ) -> Self:
        """Takes a checkpoint folder that LeRobot wrote (`.../pretrained_model`).

        Args:
            where: what errors call the folder.

        Raises:
            AloeError: LeRobot is not installed, the folder is not such a checkpoint or damaged, or it does not fit the robot.
        """
        where = where or str(folder)
        _need_lerobot()
        from draccus.utils import DraccusException  # type: ignore[import-not-found, unused-ignore]
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        for file in (CONFIG_FILE, WEIGHTS_FILE, *PIPELINES):
            if not (folder / file).is_file():
                raise AloeError(f"{where} is not a checkpoint of LeRobot: {file} is missing")
        steps = _checked_steps(folder / PIPELINES[0], where), _checked_steps(folder / PIPELINES[1], where)
        moved = {"device_processor": {"device": device}} if "device_processor" in steps[0] else {}
        try:
            config = PreTrainedConfig.from_pretrained(folder, local_files_only=True)
            config.device = device
            for key, value in (("pretrained_backbone_weights", None), ("load_vlm_weights", False)):
                if hasattr(config, key):  # the checkpoint has those weights: nothing is downloaded
                    setattr(config, key, value)
            policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
            pre, post = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=moved)
        except (
            DraccusException,
            safetensors.SafetensorError,
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            OSError,
            ImportError,  # of what this type of policy needs beside LeRobot itself
        ) as error:
            detail = " ".join(str(error).split())[:300]
            raise AloeError(f"{where}: LeRobot cannot load this checkpoint: {detail}") from None
        for key, tensor in policy.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise AloeError(f"{where}: weight '{key}' is not finite; the training that wrote it diverged")
        return cls(policy, pre, post, robot, cameras, instruction)

    def _observation(self, batch: SampleBatch) -> dict[str, Any]:
        """What LeRobot calls our observations; images float `[B, 3, h, w]` in 0..1."""
        told = batch.get("instruction_text", [""] * batch_size(batch))
        inputs: dict[str, Any] = {STATE: batch["state"], "task": [text or self.instruction for text in told]}
        if self.spec.object_dim:
            inputs[OBJECTS] = batch["object_state"]
        for camera, key in self.keys.items():
            inputs[key] = batch["images"][camera].permute(0, 3, 1, 2).float() / 255
        return inputs

    def _prepared(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = self.preprocessor(inputs)
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in prepared.items()}

    @contextmanager
    def _randomness(self, generator: torch.Generator) -> Iterator[None]:
        """LeRobot draws from torch's global generators: they follow `generator` meanwhile and are put back."""
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def load_policy(spec: str, robot: RobotDescription, device: str = "cpu", instruction: str = "") -> LeRobotActing:
    """Serves a checkpoint folder of ours, or LeRobot's own as `lerobot:<folder>`; entry point `lerobot` of group `aloe.policies`.

    Raises:
        AloeError: see `LeRobotPolicy.load` and `LeRobotPolicy.from_lerobot`.
    """
    from aloe_policy.lerobot_acting import LeRobotActing

    if not spec.startswith(PREFIX):
        return LeRobotActing(*LeRobotPolicy.load_with_version(Path(spec), robot, device))
    folder = Path(spec.removeprefix(PREFIX))
    policy = LeRobotPolicy.from_lerobot(folder, robot, instruction=instruction, device=device)
    with open(folder / WEIGHTS_FILE, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[attr-defined, unused-ignore]
    return LeRobotActing(policy, f"{policy.policy.config.type}-0-{digest[:8]}")


def _spec(config: Any, robot: RobotDescription, cameras: Mapping[str, str]) -> PolicySpec:
    what = f"LeRobot policy '{config.type}'"
    if config.n_obs_steps != 1:
        raise AloeError(f"{what} looks at {config.n_obs_steps} observations at once; only one is supported")
    shapes = {key: tuple(feature.shape) for key, feature in {**config.input_features, **config.output_features}.items()}
    for key in (STATE, ACTION):
        if shapes.get(key) != (robot.action_dim,):
            raise AloeError(
                f"{what}: '{key}' has the shape {shapes.get(key)}, robot '{robot.name}' needs ({robot.action_dim},)"
            )
    known = {STATE, OBJECTS, ACTION, *cameras.values()}
    unknown = sorted(key for key in shapes if key not in known)
    missing = sorted(key for key in cameras.values() if key not in shapes)
    if unknown or missing:
        raise AloeError(
            f"{what} has the features {', '.join(sorted(shapes))}; "
            + (f"no camera is named for {', '.join(unknown)}" if unknown else f"it has no {', '.join(missing)}")
        )
    sizes = {shapes[key][1:] for key in cameras.values()}
    if len(sizes) > 1:
        raise AloeError(f"{what} wants images of different sizes: {sizes}; only one size is supported")
    height, width = sizes.pop() if sizes else (0, 0)
    return PolicySpec.of(
        robot,
        int(config.chunk_size),
        tuple(cameras),
        (int(height), int(width)) if cameras else None,
        int(np.prod(shapes.get(OBJECTS, (0,)))),
    )


def _last_executed(action: Tensor, executed: Tensor) -> Tensor:
    """`[B, H, A]` in which rows that were not executed repeat the executed one before (LeRobot's own padding), else the first after."""
    index = torch.arange(action.shape[1], device=action.device).expand(action.shape[:2])
    before = torch.where(executed, index, -1).cummax(1).values
    chosen = torch.where(before < 0, executed.int().argmax(1, keepdim=True), before)
    return action.gather(1, chosen[:, :, None].expand_as(action))


def _checked_steps(file: Path, where: str) -> list[str]:
    """Registered names of a pipeline's steps. Steps by import path are refused: a stranger's checkpoint could run any code that is installed."""
    try:
        steps = [step.get("registry_name") for step in json.loads(file.read_text())["steps"]]
        by_path = [step["class"] for step in json.loads(file.read_text())["steps"] if "class" in step]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise AloeError(f"{where}: {file.name} is not a LeRobot pipeline") from None
    if by_path or None in steps:
        raise AloeError(
            f"{where}: {file.name} names steps by import path ({by_path}); only LeRobot's registered steps are loaded"
        )
    return steps


def _need_lerobot() -> None:
    if find_spec("lerobot") is None:
        raise AloeError("LeRobot policies need the Python package lerobot (Python 3.12 or newer): pip install lerobot")
