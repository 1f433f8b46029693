"""The chunk critic: K values of (state, chunk) from a small Transformer over readout, proprioception, camera and action tokens, or from an MLP.

As in the paper: K learned readout tokens, one token per action step, tokens per camera from a frozen image encoder, each readout to its own head.
Every layer carries a leading ensemble dimension E: E = 1 is the paper's shared trunk with K heads, E = K are K separate trunks computed by the
same batched matrix products instead of a loop over networks. With `horizon` 0 the same network is a state value V(s).

The MLP is our choice for state observations on a CPU: the whole input as one vector, several times the steps per second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aloe_core.errors import AloeError
from aloe_policy.protocol import map_batch

Batch = Mapping[str, Any]  # `aloe_policy.protocol.SampleBatch`


@dataclass(frozen=True)
class CriticConfig:
    """Size and inputs of a critic. The defaults are the paper's; `small` is for two CPU cores."""

    state_dim: int  # proprioception [S]
    action_dim: int = 0  # [A]
    horizon: int = 50  # action steps the critic judges, from the chunk's first [H]; 0: a state value
    object_dim: int = 0  # privileged object state in simulation [O]; 0: none
    cameras: tuple[str, ...] = ()  # cameras it looks through, in this order
    feature_tokens: int = 1  # grid tokens per camera [N]
    feature_dim: int = 0  # of the frozen encoder [F]
    instruction_dim: int = 0  # sentence embedding of the instruction [L]; 0: none
    network: Literal["transformer", "mlp"] = "transformer"  # paper: transformer; mlp: no cameras, see the module
    heads: int = 2  # K, paper: Min-2
    outputs: int = 1  # numbers per head; more than one: logits of a distribution over returns
    separate_trunks: bool = False  # one Transformer per head; paper: shared
    width: int = 256  # D, paper
    layers: int = 6  # paper
    attention_heads: int = 8  # paper
    steps_per_token: int = 1  # action steps in one token; paper: 1; an mlp takes the whole chunk at once
    head_layers: int = 1  # hidden layers of the head's MLP

    def __post_init__(self) -> None:
        for key in ("heads", "width", "attention_heads", "steps_per_token"):
            if getattr(self, key) < 1:
                raise AloeError(f"critic {key} must be at least 1, not {getattr(self, key)}")
        if self.width % self.attention_heads:
            raise AloeError(
                f"critic width {self.width} is not a multiple of its {self.attention_heads} attention heads"
            )
        if self.horizon and self.horizon % self.steps_per_token:
            raise AloeError(
                f"critic horizon {self.horizon} is not a multiple of steps_per_token {self.steps_per_token}"
            )
        if self.horizon and not self.action_dim:
            raise AloeError("a critic of chunks needs action_dim")
        if self.network not in ("transformer", "mlp"):
            raise AloeError(f"critic network '{self.network}' is not one of: transformer, mlp")
        if self.network == "mlp" and self.cameras:
            raise AloeError("critic network 'mlp' sees states only; a critic with cameras is a 'transformer'")

    @property
    def token_steps(self) -> int:
        """Action steps that are embedded together."""
        return self.horizon if self.network == "mlp" else self.steps_per_token


def small(**inputs: Any) -> CriticConfig:
    """A critic that two CPU cores train in minutes, an MLP if it sees states only: our choice, measured by `benchmarks/bench_critic.py`."""
    if not inputs.get("cameras"):
        inputs = {"network": "mlp", "width": 256, **inputs}
    return CriticConfig(**{"width": 64, "layers": 2, "attention_heads": 4, "steps_per_token": 5, **inputs})


class EnsembleLinear(nn.Module):
    """E linear layers at once: `[E, ..., in] -> [E, ..., out]`; initialised independently, each like `nn.Linear`."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return F.linear(x, self.weight[0].T, self.bias[0, 0])
        flat = x.reshape(len(self.weight), -1, x.shape[-1])
        return torch.baddbmm(self.bias, flat, self.weight).view(*x.shape[:-1], -1)


class _Norm(nn.Module):
    """Layer normalisation with E sets of gains."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(members, 1, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.gain)


class _Block(nn.Module):
    """Pre-norm Transformer block on `[E, B, T, D]`; `visible` `[B, 1, 1, T]` says which tokens may be attended to."""

    def __init__(self, members: int, width: int, attention_heads: int) -> None:
        super().__init__()
        self.attention_heads = attention_heads
        self.norm_1, self.norm_2 = _Norm(members, width), _Norm(members, width)
        self.qkv = EnsembleLinear(members, width, 3 * width)
        self.out = EnsembleLinear(members, width, width)
        self.up = EnsembleLinear(members, width, 4 * width)
        self.down = EnsembleLinear(members, 4 * width, width)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        e, b, t, d = x.shape
        qkv = self.qkv(self.norm_1(x)).view(e * b, t, 3, self.attention_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if visible is not None:
            visible = visible.expand(e, *visible.shape).reshape(e * b, 1, 1, t)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.out(mixed.transpose(1, 2).reshape(e, b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class _Residual(nn.Module):
    """Pre-norm residual MLP block on `[E, B, 1, D]`."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.norm = _Norm(members, width)
        self.up = EnsembleLinear(members, width, width)
        self.down = EnsembleLinear(members, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


class ChunkCritic(nn.Module):
    """Q(s, chunk) `[B, K]`, or V(s) `[B, K]` when `config.horizon` is 0.

    Inputs are those of `SampleBatch`: `state` [B, S]; `object_state` [B, O]; `features` camera -> [B, N, F]; `instruction` [B, L]; and with a horizon
    `action` [B, >= H, A], `action_mask` [B, >= H] (true = executed). Steps after the end of an episode are masked: their action cannot be seen.
    Physical units; the critic normalises by statistics that `set_statistics` stores in it.
    """

    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = c = config
        self.members = members = c.heads if c.separate_trunks else 1
        if c.network == "transformer":
            self.readouts = nn.Parameter(0.02 * torch.randn(members, 1, c.heads // members, c.width))
        self.inputs = [
            n
            for n, size in (("state", c.state_dim), ("object_state", c.object_dim), ("instruction", c.instruction_dim))
            if size
        ]
        sizes = {"state": c.state_dim, "object_state": c.object_dim, "instruction": c.instruction_dim}
        self.embed = nn.ModuleDict({name: EnsembleLinear(members, sizes[name], c.width) for name in self.inputs})
        for name in ("state", "object_state"):
            self.register_buffer(f"{name}_mean", torch.zeros(sizes[name]))
            self.register_buffer(f"{name}_std", torch.ones(sizes[name]))
        if c.cameras:
            self.embed["features"] = EnsembleLinear(members, c.feature_dim, c.width)
            self.camera_position = nn.Parameter(
                0.02 * torch.randn(members, 1, len(c.cameras) * c.feature_tokens, c.width)
            )
        if c.horizon:
            self.register_buffer("action_mean", torch.zeros(c.action_dim))
            self.register_buffer("action_std", torch.ones(c.action_dim))
            bits = 1 if c.token_steps > 1 else 0  # within a token the network must be told which steps count
            self.embed["action"] = EnsembleLinear(members, c.token_steps * (c.action_dim + bits), c.width)
            self.action_position = nn.Parameter(0.02 * torch.randn(members, 1, c.horizon // c.token_steps, c.width))
        self.blocks = nn.ModuleList(
            _Residual(members, c.width) if c.network == "mlp" else _Block(members, c.width, c.attention_heads)
            for _ in range(c.layers)
        )
        self.norm = _Norm(members, c.width)
        self.hidden = nn.ModuleList(EnsembleLinear(c.heads, c.width, c.width) for _ in range(c.head_layers))
        self.last = EnsembleLinear(c.heads, c.width, c.outputs)

    @torch.no_grad()
    def set_statistics(self, **mean_std: tuple[Tensor, Tensor]) -> None:
        """Normalisation of `state`, `object_state`, `action`: (mean, std) per entry; a constant entry is left unscaled."""
        for name, (mean, std) in mean_std.items():
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, batch: Batch) -> Tensor:
        """`[B, K]`, or logits `[B, K, outputs]` for a distributional critic."""
        c = self.config
        readouts = c.heads // self.members
        tokens: list[Tensor] = []
        for name in self.inputs:
            x = batch[name]
            if name != "instruction":
                x = (x - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")
            tokens.append(self._embed(name, x.unsqueeze(1)))
        if c.cameras:
            grid = torch.cat([batch["features"][camera] for camera in c.cameras], dim=1)
            tokens.append(self._embed("features", grid.to(self.camera_position.dtype)) + self.camera_position)
        visible = None
        if c.horizon:
            action_tokens, visible_BT = self._action_tokens(batch["action"], batch.get("action_mask"))
            tokens.append(action_tokens)
            if visible_BT is not None:
                before = readouts + sum(t.shape[2] for t in tokens[:-1])
                visible = F.pad(visible_BT, (before, 0), value=True)[:, None, None, :]
        if c.network == "mlp":
            x = torch.stack(tokens).sum(dim=0)  # a linear layer of the whole input
            for block in self.blocks:
                x = block(x)
            return self._heads(self.norm(x).expand(-1, -1, readouts, -1))
        x = torch.cat([self.readouts.expand(-1, len(batch["state"]), -1, -1), *tokens], dim=2)
        for block in self.blocks:
            x = block(x, visible)
        return self._heads(self.norm(x[:, :, :readouts]))

    def penultimate(self, batch: Batch) -> Tensor:
        """What the last, linear layer of every head sees, `[B, K * D]`: frozen features for `related.variance_aware`."""
        seen: list[Tensor] = []
        hook = self.last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        try:
            self(batch)
        finally:
            hook.remove()
        return seen[0].transpose(0, 1).flatten(1)

    def _embed(self, name: str, x_BTF: Tensor) -> Tensor:
        """`[B, T, F] -> [E, B, T, D]`."""
        return self.embed[name](x_BTF.expand(self.members, *x_BTF.shape))

    def _action_tokens(self, action_BHA: Tensor, mask_BH: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens `[E, B, T, D]` of the chunk's first `horizon` steps, and which of them hold an executed step `[B, T]` (None: all)."""
        c = self.config
        if action_BHA.shape[1] < c.horizon:
            raise AloeError(f"the critic judges {c.horizon} action steps, this chunk has {action_BHA.shape[1]}")
        x = (action_BHA[:, : c.horizon] - self.action_mean) / self.action_std
        visible_BT = None
        if mask_BH is not None:
            mask_BH = mask_BH[:, : c.horizon].bool()
            x = torch.where(mask_BH.unsqueeze(-1), x, torch.zeros_like(x))
            visible_BT = mask_BH.view(len(x), -1, c.token_steps).any(dim=-1)
        if c.token_steps > 1:
            bits = torch.ones_like(x[..., :1]) if mask_BH is None else mask_BH.unsqueeze(-1).to(x.dtype)
            x = torch.cat([x, bits], dim=-1).view(len(x), c.horizon // c.token_steps, -1)
        return self._embed("action", x) + self.action_position, visible_BT

    def _heads(self, readouts: Tensor) -> Tensor:
        """Readouts `[E, B, K/E, D]` to values `[B, K]` or logits `[B, K, outputs]`."""
        x = readouts.transpose(1, 2).flatten(0, 1)  # [K, B, D]
        for layer in self.hidden:
            x = F.gelu(layer(x), approximate="tanh")
        values = self.last(x).transpose(0, 1)
        return values.squeeze(-1) if self.config.outputs == 1 else values


def pessimistic(critic: ChunkCritic, batch: Batch) -> Tensor:
    """Q_pess = min over heads `[B]`."""
    return critic(batch).min(dim=-1).values


def repeat_batch(batch: Batch, times: int) -> dict[str, Any]:
    """Every sample `times` times in a row: `[B, ...] -> [B * times, ...]`."""
    return map_batch(
        batch,
        lambda tensor: tensor.repeat_interleave(times, dim=0),
        lambda texts: [text for text in texts for _ in range(times)],
    )


def on_device(batch: Batch, device: torch.device | str) -> Any:
    """The batch, with the batches inside it, on a device."""
    return map_batch(batch, lambda tensor: tensor.to(device), lambda texts: texts)
