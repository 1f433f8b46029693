"""Losses of LeRobot policies per sample, exactly, so that advantage weights can multiply them.

LeRobot's policies differ in what `forward` can return and in whether it leaves padded rows out (read and tested with LeRobot 0.6.1):

    act          one number for the batch, padded rows left out -> one call per sample; in a batch of one that number is the sample's own
    smolvla      `reduction="none"` gives [B], padded rows left out
    pi0, pi05    `reduction="none"` gives [B], but averages padded rows in -> the elements [B, H, D] its inner model returns are averaged here

Of other types it is not known, so they act but have no loss here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aloe_core.errors import AloeError


def sample_losses(policy: Any, batch: dict[str, Any], executed: Tensor) -> Tensor:
    """Loss of each sample `[B]`, with gradient.

    Args:
        policy: a LeRobot policy.
        batch: as its preprocessor gives it, with `action [B, H, A]` and `action_is_pad [B, H]`.
        executed: bool `[B, H]`, which rows count.

    Raises:
        AloeError: it is not known how to get such losses from this type of policy.
    """
    kind = policy.config.type
    check_type(kind)
    losses = _LOSSES[kind](policy, batch, executed)
    if losses.shape != executed.shape[:1]:
        raise AloeError(
            f"LeRobot's policy type '{kind}' gave losses of shape {tuple(losses.shape)} for {len(executed)} samples"
        )
    return losses


def check_type(kind: str) -> None:
    """Whether a type of policy, as LeRobot calls it, has losses here.

    Raises:
        AloeError: it has none.
    """
    if kind not in _LOSSES:
        raise AloeError(
            f"it is not known how LeRobot's policy type '{kind}' weighs padded rows, so it cannot be trained here; "
            f"types that can: {', '.join(_LOSSES)}"
        )


def _one_by_one(policy: Any, batch: dict[str, Any], executed: Tensor) -> Tensor:
    count = len(executed)

    def sample(value: Any, i: int) -> Any:
        whole = isinstance(value, (Tensor, list)) and len(value) == count
        return value[i : i + 1] if whole else value

    return torch.stack([policy({key: sample(v, i) for key, v in batch.items()})[0] for i in range(count)])


def _reduced(policy: Any, batch: dict[str, Any], executed: Tensor) -> Tensor:
    return policy(batch, reduction="none")[0]


def _from_elements(policy: Any, batch: dict[str, Any], executed: Tensor) -> Tensor:
    with _outputs_of(policy.model) as outputs:
        policy(batch, reduction="none")
    elements = outputs[0][:, :, : policy.config.action_feature.shape[0]].mean(2)  # [B, H]
    return (elements * executed).sum(1) / executed.sum(1).clamp(min=1)


_LOSSES: dict[str, Callable[[Any, dict[str, Any], Tensor], Tensor]] = {
    "act": _one_by_one,
    "smolvla": _reduced,
    "pi0": _from_elements,
    "pi05": _from_elements,
}


@contextmanager
def _outputs_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what `model.forward` returns meanwhile; LeRobot calls it directly, so hooks would not see it."""
    original, own = model.forward, "forward" in vars(model)
    outputs: list[Tensor] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        outputs.append(original(*args, **kwargs))
        return outputs[-1]

    vars(model)["forward"] = forward
    try:
        yield outputs
    finally:
        if own:
            vars(model)["forward"] = original
        else:
            del vars(model)["forward"]
