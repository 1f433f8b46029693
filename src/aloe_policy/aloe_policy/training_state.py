"""State of a training run in one safetensors file, replaced atomically: a kill at any instant leaves the last state or the new one, never half of one.

Tensors are model and optimizer state; the JSON in the file's header says where the run stands. All randomness of a step is derived from (seed, phase, step),
see `random_numbers`, so that the position is the whole state of the random numbers and of the data cursor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.optim import Optimizer

from aloe_core.errors import AloeError


def random_numbers(*key: int) -> torch.Generator:
    """A generator for one purpose, e.g. `(seed, phase, step)`: the same key gives the same numbers, in whatever order steps are run or resumed."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def write_state(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replaces `file` by tensors and JSON-able facts; on disk when it returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = serialise(_separate(tensors), metadata={"aloe": json.dumps(facts)})
    new = file.with_name(f".{file.name}.new")
    with open(new, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_state(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote.

    Raises:
        AloeError: the file is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            facts = json.loads((stream.metadata() or {})["aloe"])
            if not isinstance(facts, dict):
                raise TypeError("its header holds no facts")
            return {key: stream.get_tensor(key) for key in stream.keys()}, facts  # noqa: SIM118
    except FileNotFoundError:
        raise AloeError(f"there is no saved state {file}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise AloeError(f"{file} is not a state of this software, or is damaged: {error}") from None


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """State of a module under `prefix/`."""
    return {f"{prefix}/{key}": value for key, value in module.state_dict().items()}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """State of a module without its frozen parameters: whoever resumes has those from the checkpoint the training started from."""
    frozen = _frozen(module)
    return {key: value for key, value in module.state_dict().items() if key not in frozen}


def trained_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """`trained_state` under `prefix/`."""
    return {f"{prefix}/{key}": value for key, value in trained_state(module).items()}


def load_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """The inverse of `module_tensors` and of `trained_tensors`.

    Raises:
        AloeError: the state belongs to a network of another shape.
    """
    own = {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}
    frozen = _frozen(module)
    kept = {key: value for key, value in module.state_dict().items() if key in frozen}
    try:
        module.load_state_dict({**kept, **own})
    except RuntimeError as error:
        raise AloeError(f"{file} holds a '{prefix}' of another shape: {' '.join(str(error).split())[:200]}") from None


def _frozen(module: nn.Module) -> set[str]:
    """Names of the parameters that no training changes."""
    return {key for key, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and contiguous; of those that share memory (tied weights) each gets its own, as the file format wants it."""
    out, seen = {}, set()
    for key, value in tensors.items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        out[key] = own.clone() if place in seen else own
        seen.add(place)
    return out


def optimizer_tensors(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """Per-parameter state of an optimizer under `prefix/<index>/`; its hyper-parameters are configuration, not state."""
    out = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            out[f"{prefix}/{index}/{key}"] = torch.as_tensor(value)
    return out


def load_optimizer(prefix: str, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        AloeError: it is the state of another kind of optimizer, or of other parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = {str(number): p.shape for number, p in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if not name.startswith(f"{prefix}/"):
            continue
        number, _, key = name.removeprefix(f"{prefix}/").partition("/")
        if number not in shapes or (value.numel() != 1 and value.shape != shapes[number]):
            raise AloeError(
                f"the saved state has '{name}' {tuple(value.shape)}, which no parameter of this training has"
            )
        state.setdefault(int(number), {})[key] = value
    if len({frozenset(values) for values in state.values()}) > 1:
        raise AloeError(f"the saved state of '{prefix}' lacks a part of what each parameter has")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
