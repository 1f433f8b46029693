"""A checkpoint: a folder with `policy.json`, which says what the policy is and for which robot, and `model.safetensors`, its weights."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_core.policy import POLICY_FILE
from aloe_core.robot import RobotDescription, explain

WEIGHTS_FILE = "model.safetensors"
FORMAT = 1  # raised when older readers would misread a checkpoint
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)


@dataclass(frozen=True)
class PolicySpec:
    """What goes into a policy and what comes out: the part of a checkpoint that must fit the robot."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    robot: str  # name of the robot description
    robot_hash: str  # RobotDescription.hash
    action_names: tuple[str, ...]  # order of states and actions
    horizon: int  # rows of a chunk
    cameras: tuple[str, ...] = ()  # cameras it looks through; empty: state observations
    image_size: tuple[int, int] | None = None  # (height, width) [pixel] of the images
    object_dim: int = 0  # length of the simulator's object state; 0: not used

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_names)

    @staticmethod
    def of(
        robot: RobotDescription,
        horizon: int,
        cameras: tuple[str, ...] = (),
        image_size: tuple[int, int] | None = None,
        object_dim: int = 0,
    ) -> PolicySpec:
        """The specification of a policy for `robot`."""
        for name in cameras:
            robot.camera(name)
        return PolicySpec(robot.name, robot.hash, robot.action_names, horizon, tuple(cameras), image_size, object_dim)


@dataclass(frozen=True)
class Checkpoint:
    """The verified content of a checkpoint folder."""

    type: str  # entry point of group `aloe.policies` that serves it
    name: str  # "<run>-<iteration>"
    spec: PolicySpec
    config: dict[str, Any]  # of the policy class
    normalisation: dict[str, list[float]]
    weights: dict[str, Tensor]
    sha256: str  # over everything else in the folder

    @property
    def version(self) -> str:
        """`PolicyVersion.version`: name and the first 8 digits of the hash."""
        return f"{self.name}-{self.sha256[:8]}"


def write_checkpoint(
    folder: Path,
    *,
    type: str,
    name: str,
    spec: PolicySpec,
    config: Mapping[str, Any],
    normalisation: Mapping[str, list[float]],
    weights: Mapping[str, Tensor],
) -> str:
    """Writes the folder as a whole or not at all, replacing an older checkpoint of that name; returns the content hash.

    A kill leaves the old checkpoint or the new one; where the file system cannot exchange two folders, possibly the old one as `.<name>.old-<pid>`.

    Raises:
        AloeError: something else has that name.
    """
    folder = Path(folder)
    check_replaceable(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    data = safetensors.torch.save(tensors)
    description = {
        "type": type,
        "format": FORMAT,
        "name": name,
        "spec": asdict(spec),
        "config": dict(config),
        "normalisation": dict(normalisation),
    }
    sha256 = _content_hash(description, data)
    new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for file, content in (
        (WEIGHTS_FILE, data),
        (POLICY_FILE, json.dumps({**description, "sha256": sha256}, indent=1).encode()),
    ):
        with open(new / file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    replace_folder(folder, new)
    return sha256


def read_checkpoint(folder: Path, type: str) -> Checkpoint:
    """Reads and verifies a checkpoint folder.

    Raises:
        AloeError: a file is missing or damaged, the content does not have the hash it claims, it is of another type, or a weight is not finite.
    """
    file = Path(folder) / POLICY_FILE
    try:
        description = json.loads(file.read_text())
        data = (Path(folder) / WEIGHTS_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AloeError(f"{folder} is not a policy checkpoint: {Path(error.filename).name} is missing") from None
    except (ValueError, RecursionError):
        raise AloeError(f"{file} is damaged: not JSON; copy the checkpoint again") from None
    if not isinstance(description, dict) or not isinstance(description.get("type"), str):
        raise AloeError(f"{file}: not a policy description (a mapping with a key 'type')")
    if description["type"] != type:
        raise AloeError(f"{folder} holds a policy of type '{description['type']}', not '{type}'")
    if description.get("format") != FORMAT:
        raise AloeError(f"{file}: checkpoint format {description.get('format')} cannot be read, only format {FORMAT}")
    claimed = description.pop("sha256", None)
    sha256 = _content_hash(description, data)
    if claimed != sha256:
        raise AloeError(
            f"{folder} is damaged: its content does not have the hash that {POLICY_FILE} claims; copy the checkpoint again"
        )
    try:
        spec = TypeAdapter(PolicySpec).validate_python(description["spec"])
        weights = safetensors.torch.load(data)
        config, normalisation, name = description["config"], description["normalisation"], description["name"]
    except KeyError as error:
        raise AloeError(f"{file}: key {error} is missing") from None
    except ValidationError as error:
        raise AloeError(f"{file}: spec: {explain(error)}") from None
    except SafetensorError as error:
        raise AloeError(f"{folder / WEIGHTS_FILE} is not a readable safetensors file: {error}") from None
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AloeError(f"{folder}: weight '{key}' is not finite; the training that wrote it diverged")
    return Checkpoint(type, name, spec, config, normalisation, weights, sha256)


def check_robot(spec: PolicySpec, robot: RobotDescription, where: str) -> None:
    """Whether a policy may drive `robot`.

    Raises:
        AloeError: it was made for other joints, another order of joints, or cameras this robot lacks; the message says which.
    """
    if len(spec.action_names) != robot.action_dim:
        raise AloeError(f"{where} has {len(spec.action_names)} actions, robot '{robot.name}' has {robot.action_dim}")
    for index, (theirs, ours) in enumerate(zip(spec.action_names, robot.action_names, strict=True)):
        if theirs != ours:
            raise AloeError(f"{where} has '{theirs}' as action {index}, robot '{robot.name}' has '{ours}' there")
    for camera in spec.cameras:
        robot.camera(camera)
    if spec.robot_hash != robot.hash:
        raise AloeError(
            f"{where} was made for robot '{spec.robot}' with hash {spec.robot_hash}, robot '{robot.name}' has hash {robot.hash}: "
            "arms, control rate or cameras differ"
        )


def check_replaceable(folder: Path, files: Collection[str] = (POLICY_FILE, WEIGHTS_FILE)) -> None:
    """Raises `AloeError` unless `folder` is free, empty, or holds the `files` of a checkpoint and nothing else."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise AloeError(f"{folder} is not a checkpoint; choose another folder")
    foreign = sorted(set(os.listdir(folder)) - set(files)) if folder.exists() else []
    if foreign:
        raise AloeError(f"{folder} holds '{foreign[0]}' and is not a checkpoint; choose another folder")


def replace_folder(folder: Path, new: Path) -> None:
    """Gives `new` the name `folder`; the folder that had it is removed."""
    if not folder.exists():
        new.rename(folder)
    elif _exchange(folder, new):
        shutil.rmtree(new)
    else:
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Each of two folders gets the name of the other, in one step; false where the C library or the file system cannot do that."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _content_hash(description: Mapping[str, Any], weights: bytes) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    digest.update(weights)
    return digest.hexdigest()
