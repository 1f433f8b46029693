"""What a trained critic says about a replay: the arrays that the report draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aloe_core.vocabulary import Outcome, Source
from aloe_critic.critic import ChunkCritic, pessimistic
from aloe_critic.methods import Method
from aloe_critic.methods.aloe import complete
from aloe_critic.ope import value_order_correlation
from aloe_critic.policy_chunks import FreshChunks
from aloe_critic.related.ota import ordered_share
from aloe_critic.replay import StoreReplay
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.training_state import random_numbers

BATCH = 256


@dataclass(frozen=True)
class Judgement:
    """Values of n chunk samples; `index` says which samples of the replay."""

    index: np.ndarray  # int64 [n]
    q: np.ndarray  # [n]
    v: np.ndarray
    advantage: np.ndarray
    head_std: np.ndarray


@torch.no_grad()
def judge(
    replay: StoreReplay, method: Method, policy: TrainablePolicy, index: np.ndarray, samples: int = 4, seed: int = 0
) -> Judgement:
    """The method's q, v, advantage and head spread for samples `index [n]`; `samples` chunks of the policy per V(s)."""
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(index), BATCH):
        at = torch.from_numpy(index[start : start + BATCH])
        batch = replay.samples(at)
        if method.needs_policy_chunks:
            fresh = FreshChunks(policy.eval(), replay.observe, method.chunk_steps)
            batch["policy_action"] = fresh.draw(replay.start[at], samples, random_numbers(seed, start))
        parts.append(method.evaluate(batch))
    joined = {key: torch.cat([p[key] for p in parts]).numpy() for key in ("q", "v", "advantage", "head_std")}
    return Judgement(index, **joined)


@dataclass(frozen=True)
class FragmentRow:
    """Mean judgement of a fragment."""

    episode: str
    start_step: int
    steps: int
    source: str
    outcome: str
    advantage: float
    q_first: float
    q_last: float


def fragment_table(replay: StoreReplay, judged: Judgement) -> list[FragmentRow]:
    """One row per fragment of which a sample was judged, lowest mean advantage first."""
    samples, store = replay.samples_of, replay.store
    rows = []
    fragment = samples.fragment[judged.index]
    for number in np.unique(fragment):
        at = np.flatnonzero(fragment == number)
        all_of_it = np.flatnonzero(samples.fragment == number)
        first = judged.index[at[0]]
        entry = store.episodes[int(samples.episode[first])]
        rows.append(
            FragmentRow(
                episode=entry.episode_id,
                start_step=int(samples.start[all_of_it[0]] - entry.start),
                steps=len(all_of_it),
                source=Source(int(samples.source[first])).name.lower(),
                outcome=Outcome(int(samples.outcome[first])).name.lower(),
                advantage=float(judged.advantage[at].mean()),
                q_first=float(judged.q[at[0]]),
                q_last=float(judged.q[at[-1]]),
            )
        )
    return sorted(rows, key=lambda row: row.advantage)


def value_orders(replay: StoreReplay, judged: Judgement, least: int = 5) -> np.ndarray:
    """VOC of every successful fragment with at least `least` judged samples."""
    fragment = replay.samples_of.fragment[judged.index]
    success = replay.samples_of.outcome[judged.index] == Outcome.SUCCESS
    found = [judged.q[fragment == n] for n in np.unique(fragment[success])]
    return np.array([value_order_correlation(q) for q in found if len(q) >= least])


def ordered_shares(replay: StoreReplay, judged: Judgement, least: int = 5) -> np.ndarray:
    """Share of pairs of ticks in the right order by V, for every successful fragment with at least `least` judged samples: OTA's diagnostic."""
    fragment = replay.samples_of.fragment[judged.index]
    success = replay.samples_of.outcome[judged.index] == Outcome.SUCCESS
    found = [judged.v[fragment == n] for n in np.unique(fragment[success])]
    return np.array([ordered_share(v) for v in found if len(v) >= least])


@torch.no_grad()
def same_state_values(
    replay: StoreReplay, critic: ChunkCritic, policy: TrainablePolicy, count: int = 200, seed: int = 0
) -> dict[str, np.ndarray]:
    """Values at `count` states of failed fragments: of the chunk that was executed there, of the chunk executed at the most similar
    state of a success, and V between. Empty if the replay has no failures or no successes.

    States are compared after normalisation, as the critic sees them; the neighbour's chunk is judged at the failing state.
    """
    facts = replay.facts
    failing = torch.nonzero((facts.outcome == Outcome.FAILURE) | (facts.outcome == Outcome.TIMEOUT)).squeeze(1)
    succeeding = torch.nonzero(facts.success).squeeze(1)
    if not len(failing) or not len(succeeding):
        return {}
    chosen = failing[torch.randperm(len(failing), generator=random_numbers(seed))[:count]]
    here = replay.samples(chosen)
    there = _normalised(critic, replay.vectors(replay.start[succeeding]))
    nearest = succeeding[torch.cdist(_normalised(critic, here), there).argmin(dim=1)]
    fresh = FreshChunks(policy.eval(), replay.observe, critic.config.horizon)
    own = fresh.draw(replay.start[chosen], 4, random_numbers(seed, 1))
    mean_own = torch.stack(
        [pessimistic(critic, {**here, "action": own[:, m], "action_mask": full_mask(own[:, m])}) for m in range(4)]
    )
    here["policy_action"] = own
    other = {**replay.samples(nearest), "policy_action": own}
    return {
        "failing chunk": pessimistic(critic, complete(here)).numpy(),
        "V": mean_own.mean(dim=0).numpy(),
        "chunk of a success": pessimistic(
            critic, {**here, **{k: complete(other)[k] for k in ("action", "action_mask")}}
        ).numpy(),
    }


@torch.no_grad()
def support_values(
    replay: StoreReplay, critic: ChunkCritic, policy: TrainablePolicy, count: int = 400, seed: int = 0
) -> dict[str, np.ndarray]:
    """Values of chunks by how far they are from the data: executed here, proposed by the policy, executed elsewhere, executed with noise of one
    standard deviation. A sound critic values the last two lower."""
    index = torch.randperm(len(replay.start), generator=random_numbers(seed))[:count]
    fresh = FreshChunks(policy.eval(), replay.observe, critic.config.horizon)
    own = fresh.draw(replay.start[index], 1, random_numbers(seed, 2))
    here = complete({**replay.samples(index), "policy_action": own})
    elsewhere = here["action"].roll(1, dims=0)
    noise = torch.randn(here["action"].shape, generator=random_numbers(seed, 1)) * critic.action_std
    chunks = {
        "executed here": here["action"],
        "policy's own": own.squeeze(1),
        "executed elsewhere": elsewhere,
        "executed, with noise": here["action"] + noise,
    }
    return {name: pessimistic(critic, {**here, "action": action}).numpy() for name, action in chunks.items()}


def full_mask(action_BHA: Tensor) -> Tensor:
    """A mask that leaves every step in, bool `[B, H]`."""
    return torch.ones(action_BHA.shape[:2], dtype=torch.bool)


def _normalised(critic: ChunkCritic, batch: Any) -> Tensor:
    parts = [(batch["state"] - critic.state_mean) / critic.state_std]
    if critic.config.object_dim:
        parts.append((batch["object_state"] - critic.object_state_mean) / critic.object_state_std)
    return torch.cat(parts, dim=1)
