"""How far a critic's opinions are from the truth, with bootstrap intervals over states."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from critic_truth import returns

from aloe_core.vocabulary import Outcome
from aloe_critic.ope import spearman
from aloe_policy.replay import RewardConfig

SENSIBLE = 4  # the first chunks of `critic_setting.CHUNKS` are such as a robot would play
CLEAR = 0.02  # smallest difference of two true values that a critic should see, and at least two standard errors


@dataclass(frozen=True)
class Judged:
    """Opinions and truth at the same S states; values of heads reduced by `min`, as the actor uses them.

    Attributes:
        q, q_true, q_error: `[S, C]`, C = 4 sensible chunks and one from elsewhere; `q_error` is the standard error of the truth. `q` is NaN where the critic
            has no action values.
        noise: `[S]`, opinion of a recorded chunk with noise of one standard deviation on it.
        spread: `[S, C]`, standard deviation of the heads.
        v, v_true: `[S]`.
        start, start_true: mean value of initial states.
        own: bool `[S]`, the state is from the policy's own replay.
    """

    q: np.ndarray
    q_true: np.ndarray
    q_error: np.ndarray
    noise: np.ndarray
    spread: np.ndarray
    v: np.ndarray
    v_true: np.ndarray
    start: float
    start_true: float
    own: np.ndarray


def read(root: Path, folder: Path, policy: str, step: int, rows: int) -> Judged:
    """A critic after `step` steps against roll-outs that play `rows` of a chunk."""
    truth = dict(np.load(root / "truth" / f"{policy}.npz"))
    found = dict(np.load(folder / f"{step:05d}.npz"))
    cost, reward = json.loads((folder / "done.json").read_text())["cost"], RewardConfig()
    q_true = returns(reward, cost, truth[f"outcome_{rows}"], truth[f"steps_{rows}"])
    fresh = returns(reward, cost, truth[f"value_outcome_{rows}"], truth[f"value_steps_{rows}"])
    v_true = np.concatenate([fresh, q_true[:, 1:3].mean(axis=2)], axis=1).mean(axis=1)
    episodes = json.loads((root / f"start_{policy}_{rows}.json").read_text())["rollouts"]["episodes"]
    ended = np.array([Outcome[e["outcome"].upper()] for e in episodes])
    heads = found["q"]
    if heads.shape[1] == 1:  # a state value has no opinion of chunks
        heads = np.full((len(heads), truth["chunk"].shape[1], 1), np.nan)
    played = q_true.shape[1]
    return Judged(
        q=heads[:, :played].min(axis=-1),
        q_true=q_true.mean(axis=2),
        q_error=q_true.std(axis=2, ddof=1) / np.sqrt(q_true.shape[2]),
        noise=heads[:, played].min(axis=-1),
        spread=heads[:, :played].std(axis=-1),
        v=found["v"].min(axis=-1).mean(axis=1),
        v_true=v_true,
        start=float(found["start"].min(axis=-1).mean()),
        start_true=float(returns(reward, cost, ended, np.array([e["steps"] for e in episodes])).mean()),
        own=truth["own"],
    )


def pairs(judged: Judged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of sensible chunks at one state whose true values clearly differ: state `[P]`, true difference, the critic's difference."""
    state, true, believed = [], [], []
    for a in range(SENSIBLE):
        for b in range(a + 1, SENSIBLE):
            gap = judged.q_true[:, a] - judged.q_true[:, b]
            error = np.hypot(judged.q_error[:, a], judged.q_error[:, b])
            clear = np.flatnonzero((np.abs(gap) > CLEAR) & (np.abs(gap) > 2 * error))
            state.append(clear)
            true.append(gap[clear])
            believed.append((judged.q[:, a] - judged.q[:, b])[clear])
    return np.concatenate(state), np.concatenate(true), np.concatenate(believed)


def bootstrap(groups: Sequence[int], statistic: Callable[[list[np.ndarray]], float]) -> tuple[float, float, float]:
    """A statistic of the states of several critics, with the 95 % interval of resampling states within each.

    Args:
        groups: number of states of each critic.
        statistic: of indices of states, one array per critic.
    """
    random = np.random.default_rng(0)
    whole = statistic([np.arange(n) for n in groups])
    drawn = [statistic([random.integers(0, n, n) for n in groups]) for _ in range(400)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return whole, float(low), float(high)


Number = tuple[float, float, float]  # with its interval


def summary(judged: Sequence[Judged]) -> dict[str, Number]:
    """All numbers of a kind of critic, over policies and seeds."""
    sizes = [len(j.v) for j in judged]
    found = [pairs(j) for j in judged]

    def over_states(value: Callable[[Judged, np.ndarray], np.ndarray]) -> Number:
        return bootstrap(
            sizes,
            lambda index: float(np.mean([np.nanmean(value(j, i)) for j, i in zip(judged, index, strict=True)])),
        )

    def ranks(index: list[np.ndarray]) -> float:
        return float(np.mean([spearman(j.v[i], j.v_true[i]) for j, i in zip(judged, index, strict=True)]))

    def right(index: list[np.ndarray]) -> float:
        wins = total = 0.0
        for (state, true, believed), chosen in zip(found, index, strict=True):
            weight = np.bincount(chosen, minlength=max(chosen.max() + 1, state.max(initial=0) + 1))[state]
            wins += (weight * (true * believed > 0)).sum()
            total += weight.sum()
        return wins / total if total else np.nan

    numbers = {
        "v_error": over_states(lambda j, i: np.abs(j.v[i] - j.v_true[i])),
        "v_bias": over_states(lambda j, i: j.v[i] - j.v_true[i]),
        "v_rank": bootstrap(sizes, ranks),
        "constant_error": over_states(lambda j, i: np.abs(j.v_true[i] - np.median(j.v_true))),
    }
    if np.isnan(judged[0].q).all():
        return numbers
    sensible = slice(0, SENSIBLE)
    return numbers | {
        "q_error": over_states(lambda j, i: np.abs(j.q[i, sensible] - j.q_true[i, sensible])),
        "action": bootstrap(sizes, right),
        "pairs": (float(sum(len(p[0]) for p in found)),) * 3,
        "elsewhere": over_states(lambda j, i: j.q[i, SENSIBLE] - j.v[i]),
        "elsewhere_true": over_states(lambda j, i: j.q_true[i, SENSIBLE] - j.v_true[i]),
        "noise": over_states(lambda j, i: j.noise[i] - j.v[i]),
        "noise_below": over_states(lambda j, i: j.noise[i] < j.v[i]),
        "spread": over_states(lambda j, i: j.spread[i, sensible]),
        "spread_rank": (
            float(
                np.nanmean(
                    [
                        spearman(
                            j.spread[:, sensible].ravel(), np.abs(j.q[:, sensible] - j.q_true[:, sensible]).ravel()
                        )
                        for j in judged
                    ]
                )
            ),
        )
        * 3,
    }
