"""The value of policies from a store of recordings, by up to four estimators: `ESTIMATORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome, Source
from aloe_critic.critic import ChunkCritic
from aloe_critic.critic_file import chunk_critic, load_critic
from aloe_critic.estimators import linear_value, ratio_estimate
from aloe_critic.improvement import ImproveConfig, critic_config, make_replay
from aloe_critic.learner import Learner, Progress
from aloe_critic.methods import make_method
from aloe_critic.ope import Estimate, Refused, bootstrap_estimate, state_values
from aloe_critic.replay import StoreReplay, fit_to
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import ReplayStore
from aloe_policy.trainable import load_trainable
from aloe_policy.training_state import random_numbers

SAMPLES = 8  # chunks of the policy per V(s0)
POLICY_KEY = 7  # random numbers of the estimates
ESTIMATORS = {  # name -> where `Evaluation` has it
    "fqe": "fitted_q",  # mean of V(s0) by a neural critic trained on the policy
    "monte_carlo": "on_policy",  # mean return of the episodes this policy recorded without help
    "va_ope": "va_ope",  # linear and variance-aware on the critic's features
    "dpe": "dpe",  # returns weighted by estimated ratios
}


@dataclass(frozen=True)
class Evaluation:
    """Value of one policy, in discounted scaled return from the first observation of an episode; None: not asked for, or refused."""

    policy: str
    fitted_q: Estimate | None = None
    head_std: float | None = None  # spread of the critic's heads at the starts
    on_policy: Estimate | None = None
    on_policy_success: float | None = None  # success rate of those episodes
    va_ope: Estimate | None = None
    dpe: Estimate | None = None
    refused: Mapping[str, str] = field(default_factory=dict)  # estimator -> why

    def estimate(self, estimator: str) -> Estimate | None:
        """By a name of `ESTIMATORS`."""
        return getattr(self, ESTIMATORS[estimator])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate_policy(
    store: ReplayStore,
    policy_folder: Path,
    robot: RobotDescription,
    config: ImproveConfig,
    work: Path,
    critic_file: Path | None = None,
    on_progress: Callable[[Progress], bool | None] = lambda progress: None,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    least_effective: float = 10.0,
) -> Evaluation:
    """Judges a policy by recordings of any policies.

    Args:
        config: reward, protocol, critic and how long it learns.
        work: holds the critics that are trained, each in a folder named by its policy's version; an interrupted evaluation is continued there.
        critic_file: an evaluated critic to use as it is, e.g. that of the improvement whose policy this was.
        estimators: names of `ESTIMATORS`.
        least_effective: effective sample size below which `va_ope` and `dpe` refuse.

    Raises:
        AloeError: nothing to learn from, or a critic that values states only.
    """
    policy, version = load_trainable(policy_folder, robot)
    replay = make_replay(store, policy, config)
    starts = episode_starts(replay)
    key = (config.learner.seed, POLICY_KEY)
    facts: dict[str, Any] = {}
    refused: dict[str, str] = {}
    if {"fqe", "va_ope"} & set(estimators):
        folder = work / f"critic_{quote(version, safe='')}"
        critic = _critic(replay, policy, config, folder, critic_file, on_progress)
        observations = replay.observe(starts)
        if "fqe" in estimators:
            values = state_values(critic, policy.eval(), observations, SAMPLES, key, "mean")
            facts["fitted_q"] = bootstrap_estimate(values.numpy())
        with torch.no_grad():
            chunks = policy.act(observations, random_numbers(*key, 1))
            facts["head_std"] = float(critic({**observations, "action": chunks}).std(dim=1, correction=0).mean())
    if "monte_carlo" in estimators:
        returns, success = own_returns(replay, version)
        if len(returns):
            facts |= {"on_policy": bootstrap_estimate(returns), "on_policy_success": float(success.mean())}
        else:
            refused["monte_carlo"] = "no recorded episode was driven by this policy alone"
    for name, estimate in (
        ("va_ope", lambda: linear_value(replay, critic, policy, starts, least_effective, key)),
        ("dpe", lambda: ratio_estimate(replay, policy, starts, least_effective, key)),
    ):
        if name in estimators:
            try:
                facts[name] = estimate()
            except Refused as reason:
                refused[name] = str(reason)
    return Evaluation(policy=version, refused=refused, **facts)


def _critic(
    replay: StoreReplay,
    policy: TrainablePolicy,
    config: ImproveConfig,
    folder: Path,
    critic_file: Path | None,
    on_progress: Callable[[Progress], bool | None],
) -> ChunkCritic:
    """The given critic, or one that has learned this policy's value in `folder`. It and the policy are on the CPU, where the replay's observations are."""
    if critic_file is not None:
        return chunk_critic(load_critic(critic_file)[0].eval(), str(critic_file))
    torch.manual_seed(config.learner.seed)
    method = make_method("aloe", critic_config(replay, config), {**config.options, "target_reduction": "mean"})
    fit_to(method, replay)
    Learner(method, policy, replay, config.learner, folder, on_progress=on_progress).learn_critic()
    policy.to("cpu")
    return chunk_critic(method.to("cpu").eval(), str(folder))


def episode_starts(replay: StoreReplay) -> torch.Tensor:
    """First row of every episode, int64 `[E]`."""
    store = replay.store
    return torch.tensor([store.episodes[e].start for e in replay.samples_of.episodes if store.episodes[e].steps])


def own_returns(replay: StoreReplay, version: str) -> tuple[np.ndarray, np.ndarray]:
    """Discounted return and success of the episodes a policy version drove alone from start to outcome, `[E]` each."""
    store, samples = replay.store, replay.samples_of
    returns, success = [], []
    for number in samples.episodes:
        entry = store.episodes[number]
        source = store.arrays["source"][entry.start : entry.start + entry.steps]
        alone = (
            bool(len(source))
            and set(entry.versions) - {""} == {version}
            and np.isin(source, [Source.POLICY, Source.NONE]).all()
        )
        outcome = store.outcome(number)
        if not alone or outcome == Outcome.UNLABELLED:
            continue
        first = np.flatnonzero(samples.start == entry.start)
        if len(first) and np.isfinite(samples.return_to_go[first[0]]):
            returns.append(float(samples.return_to_go[first[0]]))
            success.append(outcome == Outcome.SUCCESS)
    return np.array(returns), np.array(success, bool)


def known_success(truth: str) -> dict[str, float]:
    """`"bc=0.41,aloe=0.6"` -> mapping, for comparing estimates with what is known.

    Raises:
        AloeError: not a list of name=number.
    """
    known = {}
    for part in truth.split(","):
        name, equals, value = part.partition("=")
        try:
            known[name.strip()] = float(value)
        except ValueError:
            raise AloeError(f"'{part}' is not name=number") from None
        if not equals or not name.strip():
            raise AloeError(f"'{part}' is not name=number")
    return known
