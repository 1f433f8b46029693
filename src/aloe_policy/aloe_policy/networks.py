"""The networks inside a flow-matching policy: they map a noisy chunk, its flow time and what was observed to an equally shaped chunk.

Shapes: B batch, H horizon, A action, N observation tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Flow time eta in 0..1 -> `[B, D]`, by sines of geometrically spaced frequencies and a small MLP."""

    frequencies: Tensor

    def __init__(self, width: int, waves: int = 32, max_frequency: float = 100.0) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(0.0, math.log(max_frequency), waves))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, eta: Tensor) -> Tensor:
        angle = eta[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.sin(), angle.cos()], -1))


class Attention(nn.Module):
    """Multi-head attention of queries `[B, N, D]` to `context [B, M, D]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ExpertBlock(nn.Module):
    """Transformer block over action tokens: self-attention, cross-attention to the observation, MLP; each modulated by the flow time (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 9 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition)[:, None].unflatten(-1, (3, 3, -1)).unbind(2)
        for index, norm in enumerate(self.norms):
            y = norm(x) * (1 + scale[:, :, index]) + shift[:, :, index]
            if index == 0:
                y = self.self_attention(y, y)
            elif index == 1:
                y = self.cross_attention(y, tokens)
            else:
                y = self.mlp(y)
            x = x + gate[:, :, index] * y
        return x


class ActionTransformer(nn.Module):
    """Action expert with one token per `rows_per_token` steps of the chunk (1: one token per action step).

    The condition of every block is the flow time plus the mean observation token; details come through cross-attention to the tokens themselves.
    """

    def __init__(
        self, action_dim: int, horizon: int, width: int, layers: int, heads: int, rows_per_token: int = 1
    ) -> None:
        super().__init__()
        self.rows = rows_per_token
        size = action_dim * rows_per_token
        self.enter = nn.Linear(size, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon // rows_per_token, width))
        self.time = TimeEmbedding(width)
        self.observation = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(ExpertBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, eta: Tensor, tokens: Tensor) -> Tensor:
        """`x [B, H, A]`, `eta [B]`, `tokens [B, N, D]` -> `[B, H, A]`."""
        batch, horizon, dim = x.shape
        y = self.enter(x.reshape(batch, horizon // self.rows, self.rows * dim)) + self.position
        condition = F.silu(self.time(eta) + self.observation(tokens.mean(1)))
        for block in self.blocks:
            y = block(y, condition, tokens)
        return self.leave(self.norm(y)).reshape(batch, horizon, dim)


class ResidualBlock(nn.Module):
    """Pre-norm residual MLP block, shifted by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.condition = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x) + self.condition(condition))


class ActionMLP(nn.Module):
    """The whole chunk as one vector through residual blocks: the cheapest network, for state observations on a CPU.

    Narrower than the chunk, it cannot pass the chunk's noise on, which the field contains and the clean chunk does not. So it must be asked for
    the clean chunk.
    """

    def __init__(self, action_dim: int, horizon: int, width: int, layers: int, tokens: int) -> None:
        super().__init__()
        self.enter = nn.Linear(action_dim * horizon, width)
        self.time = TimeEmbedding(width)
        self.observation = nn.Sequential(nn.Linear(tokens * width, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, action_dim * horizon)

    def forward(self, x: Tensor, eta: Tensor, tokens: Tensor) -> Tensor:
        """`x [B, H, A]`, `eta [B]`, `tokens [B, N, D]` -> `[B, H, A]`."""
        condition = F.gelu(self.time(eta) + self.observation(tokens.flatten(1)))
        y = self.enter(x.flatten(1)) + condition
        for block in self.blocks:
            y = block(y, condition)
        return self.leave(self.norm(y)).view_as(x)


class GridReadout(nn.Module):
    """K tokens from a grid of image features `[B, N, F]`: each is what one learned query attends to, and where.

    Values carry the position of their grid cell, so a token can say where something is, like a spatial softmax does.
    """

    def __init__(self, features: int, cells: int, width: int, queries: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.enter = nn.Linear(features, width)
        self.score = nn.Linear(width, queries)
        self.position_score = nn.Parameter(torch.zeros(cells, queries))
        side = round(math.sqrt(cells))
        axis = (torch.arange(side) + 0.5) / side * 2 - 1
        self.register_buffer("place", torch.cartesian_prod(axis, axis), persistent=False)  # [N, 2] row, column in -1..1
        self.leave = nn.ModuleList([nn.Linear(width, width), nn.Linear(2 * queries, queries * width)])

    place: Tensor

    def forward(self, grid: Tensor) -> Tensor:
        x = self.enter(self.norm(grid))
        attention = (self.score(F.gelu(x)) + self.position_score).softmax(1).transpose(1, 2)  # [B, K, N]
        what, where = self.leave
        tokens = what(attention @ x)
        place = (attention @ self.place).flatten(1)
        return tokens + where(place).unflatten(-1, (attention.shape[1], -1))
