"""What an improvement method is: something that gives every recorded chunk a weight in the actor's loss, and perhaps learns a critic to do so.

The learner drives all methods the same way: critic steps (`forward`, `after_step`), one pass of `evaluate` over the replay, `weights`, actor steps
(`actor_loss`). A method is one file; what it learns are the parameters of the module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from aloe_core.vocabulary import Outcome, Source
from aloe_critic.critic import CriticConfig
from aloe_critic.losses import weighted_flow_loss
from aloe_critic.targets import Info
from aloe_policy.protocol import SampleBatch, TrainablePolicy

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

CriticBatch = Mapping[str, Any]
"""`SampleBatch` of B chunk starts with `action`, `action_mask`, and of the replay
chunk_return [B], bootstrap_discount [B]: see `targets`; bootstrap int64 [B]: tick the chunk is backed up to;
return_to_go [B]: discounted return to the end of the fragment, NaN where the fragment ends without an outcome;
success bool [B]: the chunk ends in the success of the task;
next: the `SampleBatch` of observations the chunk is backed up to;
next_policy_action [B, M, H, A]: chunks of the current policy there (methods with `needs_policy_chunks`);
policy_action [B, M, H, A]: chunks of the current policy at the start (in `evaluate`).
"""


@dataclass(frozen=True)
class SampleFacts:
    """What is known of every chunk start of the replay without learning, N samples."""

    source: Tensor  # uint8 [N], `Source` of the fragment
    outcome: Tensor  # uint8 [N], `Outcome` of the fragment
    episode_outcome: Tensor  # uint8 [N], `Outcome` of the whole episode
    to_end: Tensor  # bool [N], the chunk may hold every step up to the end of its fragment
    train_policy: Tensor  # bool [N], the protocol allows this chunk to train the policy
    train_critic: Tensor  # bool [N], and the critic

    def at(self, index: Tensor) -> SampleFacts:
        """Those of the samples `index [n]`."""
        return SampleFacts(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def human(self) -> Tensor:
        """bool `[N]`: a person or the scripted demonstrator drove."""
        return (self.source == Source.HUMAN) | (self.source == Source.SCRIPTED)

    @property
    def success(self) -> Tensor:
        """bool `[N]`: the fragment itself ended in success."""
        return self.outcome == Outcome.SUCCESS

    @property
    def held(self) -> Tensor:
        """bool `[N]`: after the last step that the chunk may hold the task is done, and staying put is right."""
        return self.success & self.to_end

    @property
    def failed(self) -> Tensor:
        """bool `[N]`: the fragment itself ended in a failure or ran out of time."""
        return (self.outcome == Outcome.FAILURE) | (self.outcome == Outcome.TIMEOUT)

    @property
    def example(self) -> Tensor:
        """bool `[N]`: worth imitating as it is, neither failed nor driven by the policy to no outcome."""
        return self.success | (self.human & ~self.failed)


class Method(nn.Module, ABC):
    """One way to improve a policy from replay. Subclasses say what they need and override what they do differently."""

    name: ClassVar[str]
    bootstraps: ClassVar[bool] = (
        True  # whether targets use the value at the end of a chunk, so that a chunk may be cut anywhere
    )
    monte_carlo: ClassVar[bool] = (
        False  # whether its critic learns from the returns that followed, and from nothing else
    )
    needs_policy_chunks: ClassVar[bool] = False  # whether it must sample the current policy at the states of the replay

    @property
    def learns(self) -> bool:
        """Whether there is anything to train before the actor."""
        return any(p.requires_grad for p in self.parameters())

    @property
    def chunk_steps(self) -> int:
        """Steps of the policy's chunks that a method with `needs_policy_chunks` looks at."""
        return self.critic.config.horizon  # type: ignore[union-attr, return-value]

    def forward(self, batch: CriticBatch) -> tuple[Tensor, Info]:
        """Loss of the critic on a batch. `forward`, so that wrappers that synchronise gradients work unchanged."""
        raise NotImplementedError(f"{self.name} has no critic to train")

    def after_step(self) -> None:
        """Called after every critic step, e.g. to move target networks."""

    def continue_from(self, previous: Self) -> None:
        """Takes over what this method has learned in the iteration before."""
        self.load_state_dict(previous.state_dict())

    def evaluate(self, batch: CriticBatch) -> dict[str, Tensor]:
        """What the critic thinks of each sample: `advantage` [B], and `q`, `v`, `head_std` where the method has them; without gradient."""
        return {"advantage": torch.zeros(len(batch["state"]), device=batch["state"].device)}

    @abstractmethod
    def weights(self, advantage_N: Tensor, facts: SampleFacts) -> Tensor:
        """Weight of every sample in the actor's loss `[N]`; 0 leaves it out. Seen at once, because scales and quantiles are those of all samples."""

    def check_policy(self, policy: TrainablePolicy) -> None:
        """Called before anything is learned.

        Raises:
            AloeError: the method cannot improve a policy of this type.
        """

    def actor(self, policy: TrainablePolicy) -> TrainablePolicy:
        """The policy that is trained and handed out; most methods return what they are given."""
        return policy

    def actor_loss(
        self, policy: nn.Module, batch: SampleBatch, weight_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Info]:
        """Loss of the actor on a batch."""
        return weighted_flow_loss(policy(batch, generator), weight_B)


def observation_only(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a batch that describe the observation."""
    return {k: batch[k] for k in ("state", "object_state", "features", "images", "instruction") if k in batch}


def state_value_config(critic: CriticConfig, *, heads: int = 1, outputs: int = 1) -> CriticConfig:
    """The same network without a chunk: V(s)."""
    from dataclasses import replace

    return replace(critic, horizon=0, action_dim=0, heads=heads, outputs=outputs, separate_trunks=False)
