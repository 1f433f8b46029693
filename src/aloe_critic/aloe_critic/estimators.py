"""Two estimators of a policy's value beside fitted Q and the mean return: linear and variance-aware on the critic's features, and estimated ratios.

Both are checks on the neural critic: the first replaces its last layer by a regression with closed-form intervals, the second asks only where policy and
recording overlap. Each refuses with a reason where the data do not carry it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aloe_critic.critic import ChunkCritic, repeat_batch
from aloe_critic.methods.aloe import complete
from aloe_critic.ope import Estimate, Refused, bootstrap_weighted
from aloe_critic.policy_chunks import FreshChunks
from aloe_critic.related.density_ratio import GaussianDensity, effective_samples, ratio_value
from aloe_critic.related.variance_aware import Transitions, variance_aware_value
from aloe_critic.related.vlearn import piece_means
from aloe_critic.replay import StoreReplay
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.training_state import random_numbers

BATCH = 512
MOST = 4000  # chunks that are looked at; neighbouring ones tell next to nothing new
SAMPLES = 4  # chunks of the policy per state
COMPONENTS = 16  # principal directions of the critic's features; ours: a hundred collinear ones do not settle
CHUNK_DIRECTIONS = 2  # that densities of chunks are fitted in; ours
RATIO_CLIP = 10.0  # of a single chunk; ours
Z = 1.959964  # 95 %


@torch.no_grad()
def linear_value(
    replay: StoreReplay,
    critic: ChunkCritic,
    policy: TrainablePolicy,
    starts_E: Tensor,
    least: float = 10.0,
    key: tuple[int, ...] = (0,),
) -> Estimate:
    """VA-OPE: fitted Q, linear in what the last layer of the critic sees; V(s0) averaged over the starts (rows `[E]`).

    Each of two halves of the episodes estimates the value with the variance from the other (cross-fitting, ours). The effective sample size is that of the
    weights 1/sigma^2, divided by how many looked-at chunks share a step.

    Raises:
        Refused: too few episodes or effective samples, or a value that no return can have.
    """
    index = _looked_at(replay)
    fresh = FreshChunks(policy.eval(), replay.observe, critic.config.horizon)
    phi, next_phi, returns, discounts = [], [], [], []
    for number, at in enumerate(index.split(BATCH)):
        batch = replay.samples(at)
        batch["policy_action"] = fresh.draw(replay.start[at], 1, random_numbers(*key, 0, number))
        following = fresh.draw(replay.bootstrap[at], SAMPLES, random_numbers(*key, 1, number))
        phi.append(critic.penultimate(complete(batch)))
        next_phi.append(_mean_features(critic, batch["next"], following))
        returns.append(batch["chunk_return"])
        discounts.append(batch["bootstrap_discount"])
    starting = fresh.draw(starts_E, 2 * SAMPLES, random_numbers(*key, 2))
    first = _mean_features(critic, replay.observe(starts_E), starting)
    compress = _Compression(torch.cat(phi).numpy())
    episode = replay.samples_of.episode[index.numpy()]
    data = Transitions(
        compress(torch.cat(phi).numpy()),
        torch.cat(returns).double().numpy(),
        torch.cat(discounts).double().numpy(),
        compress(torch.cat(next_phi).numpy()),
        episode,
    )
    start_phi = compress(first.numpy())
    halves = _halves(data, key)
    estimates, effective = [], 0.0
    for half, other in (halves, halves[::-1]):
        value, variance = variance_aware_value(half, other)
        mean, error = value.predict(start_phi.mean(axis=0, keepdims=True))
        spread = (start_phi @ value.weights).var() / len(start_phi)  # which starts were recorded
        estimates.append((float(mean[0]), float(error[0] ** 2), float(spread)))
        effective += effective_samples(1 / variance)
    shared = float((replay.bootstrap[index] - replay.start[index]).double().mean()) / _stride(replay)
    effective /= max(1.0, shared)
    if effective < least:
        raise Refused(f"only {effective:.1f} effective chunks of {len(index)}, {least:g} are needed")
    v = sum(e[0] for e in estimates) / 2
    low, high = replay.return_range
    if not low - (high - low) <= v <= high + (high - low):
        raise Refused(
            f"a value of {v:.3g} while returns lie within [{low:.3g}, {high:.3g}]: the features do not carry it"
        )
    reach = Z * float(np.sqrt(sum(e[1] for e in estimates) / 4 + sum(e[2] for e in estimates) / 2))
    return Estimate(v, v - reach, v + reach, len(np.unique(episode)), effective)


@torch.no_grad()
def ratio_estimate(
    replay: StoreReplay, policy: TrainablePolicy, starts_E: Tensor, least: float = 10.0, key: tuple[int, ...] = (0,)
) -> Estimate:
    """DPE, our reading: returns of the recorded episodes, weighted by the product over their chunks of pi(c|s) / pi_b(c|s), both densities fitted.

    Densities are linear Gaussians over the mean of a chunk's steps up to where the next chunk begins, in its leading directions, pi_b one per source, pi of
    the policy's own chunks at the same states. So every step of an episode enters one ratio. Ratios are clipped, and the mean is self-normalised. An episode
    counts until a driver's stretch ends, as the protocol reads it.

    Raises:
        Refused: too few effective episodes, none with an outcome, or a protocol that lets no chunk teach a critic.
    """
    samples = replay.samples_of
    fitted = _looked_at(replay).numpy()
    index_of_row = np.full(replay.ticks, -1)
    index_of_row[samples.start] = np.arange(len(samples))
    paths = [list(_path(replay, index_of_row, int(row))) for row in starts_E]
    paths = [path for path in paths if path and np.isfinite(samples.return_to_go[path[0]])]
    if not paths:
        raise Refused("no episode has an outcome from its first observation on")
    needed, place = np.unique(np.concatenate([fitted, *paths]), return_inverse=True)
    state, recorded, own = _chunk_means(replay, policy, torch.from_numpy(needed), key)
    log_ratio = density_log_ratio(state, recorded, own, samples.source[needed], place[: len(fitted)])
    bounds = np.cumsum([len(fitted), *map(len, paths)])
    clipped = np.minimum(log_ratio, np.log(RATIO_CLIP))
    weights = np.array([np.exp(clipped[place[a:b]].sum()) for a, b in pairwise(bounds)])
    returns = samples.return_to_go[[path[0] for path in paths]].astype(np.float64)
    found = ratio_value(weights, np.ones(len(weights)), returns, self_normalised=True, min_effective=least)
    low, high = bootstrap_weighted(returns, weights)
    return Estimate(found.value, low, high, found.samples, found.effective_samples)


def density_log_ratio(
    state_NS: np.ndarray, recorded_ND: np.ndarray, own_ND: np.ndarray, source_N: np.ndarray, fitted: np.ndarray
) -> np.ndarray:
    """log pi(c|s) - log pi_b(c|s) at recorded chunks `[N]`, with densities fitted to those of the index `fitted`: one to the policy's own, one per source."""
    pooled = np.concatenate([recorded_ND[fitted], own_ND[fitted]])
    scale = np.where(pooled.std(axis=0) > 1e-6, pooled.std(axis=0), 1.0)
    _, _, directions = np.linalg.svd((pooled - pooled.mean(axis=0)) / scale, full_matrices=False)
    recorded, own = (x / scale @ directions[:CHUNK_DIRECTIONS].T for x in (recorded_ND, own_ND))
    out = GaussianDensity.fit(state_NS[fitted], own[fitted]).log_density(state_NS, recorded)
    for source in np.unique(source_N):
        of = source_N == source
        chosen = fitted[of[fitted]]
        if not len(chosen):
            raise Refused(f"no chunk of source {source} to fit its density to")
        out[of] -= GaussianDensity.fit(state_NS[chosen], recorded[chosen]).log_density(state_NS[of], recorded[of])
    return out


class _Compression:
    """Standardised principal directions and a constant."""

    def __init__(self, x_ND: np.ndarray) -> None:
        x = x_ND.astype(np.float64)
        self.mean = x.mean(axis=0)
        _, size, directions = np.linalg.svd(x - self.mean, full_matrices=False)
        kept = size[:COMPONENTS] > 1e-6 * size[0]
        self.to = directions[:COMPONENTS][kept].T / size[:COMPONENTS][kept] * np.sqrt(len(x))

    def __call__(self, x_ND: np.ndarray) -> np.ndarray:
        return np.column_stack([(x_ND - self.mean) @ self.to, np.ones(len(x_ND))])


def _stride(replay: StoreReplay) -> int:
    return -(-int(replay.facts.train_critic.sum()) // MOST)


def _looked_at(replay: StoreReplay) -> Tensor:
    """Every so many chunks that may teach a critic."""
    teaching = replay.facts.train_critic.nonzero().squeeze(1)
    if not len(teaching):
        raise Refused("the protocol lets no chunk teach a critic")
    return teaching[:: _stride(replay)]


def _mean_features(critic: ChunkCritic, observed: Mapping[str, Any], chunks_BMHA: Tensor) -> Tensor:
    """Features `[B, D]`, averaged over M chunks at each observation: what is linear in them has the mean value."""
    repeated = repeat_batch(observed, chunks_BMHA.shape[1])
    return (
        critic.penultimate({**repeated, "action": chunks_BMHA.flatten(0, 1)})
        .unflatten(0, (len(chunks_BMHA), -1))
        .mean(dim=1)
    )


def _halves(data: Transitions, key: tuple[int, ...]) -> tuple[Transitions, Transitions]:
    """Two halves by episode."""
    episodes = np.unique(data.episode)
    if len(episodes) < 4:
        raise Refused(f"{len(episodes)} episodes do not give two halves of two or more")
    shuffled = np.random.default_rng(key).permutation(episodes)
    first = np.isin(data.episode, shuffled[: len(shuffled) // 2])
    return data.of(first), data.of(~first)


def _path(replay: StoreReplay, index_of_row: np.ndarray, row: int) -> Iterator[int]:
    """Samples of the chunks executed one after the other from a row to the end of its stream."""
    samples = replay.samples_of
    while True:
        at = int(index_of_row[row])
        if at < 0:
            return
        yield at
        if samples.terminal[at] or samples.truncated[at]:
            return
        row = int(samples.bootstrap[at])


def _chunk_means(
    replay: StoreReplay, policy: TrainablePolicy, index: Tensor, key: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised states `[N, S]`, and means of the recorded and of the policy's chunks `[N, A]`, over the steps before the row that a chunk is backed up to:
    there the next one of a `_path` begins."""
    fresh = FreshChunks(policy.eval(), replay.observe, replay.samples_of.horizon)
    states: list[Tensor] = []
    recorded: list[Tensor] = []
    own: list[Tensor] = []
    for number, at in enumerate(index.split(BATCH)):
        batch = replay.samples(at)
        steps = replay.bootstrap[at] - replay.start[at]
        mask = torch.arange(batch["action"].shape[1]) < steps[:, None]
        states.append(torch.cat([batch[n] for n in ("state", "object_state") if n in batch], dim=1))
        chunks = fresh.draw(replay.start[at], 1, random_numbers(*key, 3, number))[:, 0]
        for chunk, out in ((batch["action"], recorded), (chunks, own)):
            out.append(piece_means(chunk, mask, 1)[0].squeeze(1))
    state = torch.cat(states).double().numpy()
    spread = state.std(axis=0)
    state = (state - state.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
    return state, torch.cat(recorded).double().numpy(), torch.cat(own).double().numpy()
