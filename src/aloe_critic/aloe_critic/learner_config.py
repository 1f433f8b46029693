"""What the learner is told and tells: its configuration, the replay it reads, progress, and the ways in which it stops early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import ConfigDict, Field
from torch import Tensor

from aloe_core.errors import AloeError
from aloe_critic.methods.base import Count, NotNegative, Positive, SampleFacts, Share
from aloe_policy.protocol import SampleBatch


class Replay(Protocol):
    """What the learner asks of the replay: N chunk samples over the ticks of all recordings."""

    facts: SampleFacts
    start: Tensor  # int64 [N], tick each chunk starts at
    bootstrap: Tensor  # int64 [N], tick it is backed up to; meaningless where the bootstrap discount is 0
    backup: int  # steps that a chunk is backed up over
    ticks: int  # number of ticks with an observation
    return_range: tuple[float, float]  # lowest and highest discounted return that the rewards allow
    digest: str  # of the content, to refuse resuming on other data

    def observe(self, ticks_B: Tensor) -> SampleBatch:
        """Observations at ticks."""
        ...

    def samples(self, index_B: Tensor, steps_B: Tensor | None = None) -> dict[str, Any]:
        """Chunk samples as the critic learns from them, see `methods.base.CriticBatch`, without chunks of the policy.

        `steps` int64 `[B]`: back-up length where a chunk is to be cut short of `backup`; its later rows count as not executed.
        """
        ...

    def chunks(self, index_B: Tensor) -> SampleBatch:
        """Chunk samples as the policy learns from them: observations as it wants them, `action` and `action_mask`."""
        ...


SourceName = Literal["scripted", "policy", "human"]
Whole = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class LearnerConfig:
    """How long and how fast to learn. The paper's values are for a 5 M critic on a 3 B policy."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    critic_steps: Whole = 1500  # N_Q; not disclosed
    actor_steps: Whole = 1500  # N_pi; not disclosed
    batch_size: Count = 256  # per process; paper
    actor_batch_size: Whole = 0  # of the actor's steps, for policies too large for `batch_size`; 0: the same
    critic_lr: Positive = 3e-4  # peak; paper: 3e-5
    actor_lr: Positive = 1e-3  # peak; not disclosed; ours: that of behaviour cloning
    warmup_steps: Whole = 100  # paper
    ema_decay: Share = (
        0.999  # of the actor's weights that are handed out, as in behaviour cloning; ours; 0: the last ones
    )
    hold_at_end: bool = True  # rows after a success teach the actor to stay put; false: they teach nothing; ours
    weight_decay: NotNegative = 1e-4
    grad_clip: Positive = 1.0  # paper
    policy_samples: Count = 4  # m of V(s), Eq. 10; not disclosed
    target_samples: Count = 1  # a' per target, Eq. 7; paper: 1
    source_shares: Mapping[SourceName, NotNegative] = field(
        default_factory=dict
    )  # of every batch by who drove, e.g. {human: 1, policy: 1}; else by chance
    cut_share: Share = (
        0.5  # of the critic's chunks, cut at a random step and backed up from there; ours, see docs/aloe.md
    )
    presample: bool | None = (
        None  # draw the policy's chunks once for all states instead of at every step; null: if those are fewer
    )
    refresh: Whole = 0  # actor steps after which advantages are judged anew against the policy as it is then; 0: never
    checkpoint_every: Count = 250  # steps
    log_every: Count = 25  # steps
    seed: Whole = 0


@dataclass(frozen=True)
class Progress:
    """What the learner is doing, for a progress bar or action feedback."""

    stage: str  # table, critic, evaluate, actor
    step: int
    total: int
    loss: float
    eta_s: float  # until the stage ends


class Cancelled(Exception):
    """Raised out of `Learner.run` when the progress callback asked to stop; the last checkpoint stands."""


class Diverged(AloeError):
    """Training produced numbers that cannot be right; the last good checkpoint stands."""


def learning_rate(peak: float, step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero (paper)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
