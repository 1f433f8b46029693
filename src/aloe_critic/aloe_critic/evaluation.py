"""The value of policies from a store of recordings, by up to four estimators: `ESTIMATORS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome, Source
from aloe_critic.critic import ChunkCritic
from aloe_critic.critic_file import CriticFacts, chunk_critic, load_critic
from aloe_critic.estimators import linear_value, ratio_estimate
from aloe_critic.improvement import ImproveConfig, critic_config, make_replay
from aloe_critic.learner import Learner, Progress
from aloe_critic.methods import make_method
from aloe_critic.ope import Estimate, Refused, bootstrap_estimate, calibration_curve, state_values
from aloe_critic.replay import StoreReplay, fit_to
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import ReplayStore
from aloe_policy.trainable import load_trainable
from aloe_policy.training_state import random_numbers

SAMPLES = 8  # chunks of the policy per V(s0)
POLICY_KEY = 7  # random numbers of the estimates
NO_OUTCOME = "ran out of time, which is no outcome with reward.timeout_is_failure false: the mean without them is not the policy's"
FITTED_Q_OPTIONS = ("polyak", "bound_values", "complete_share")  # of any method's: its value stays that of the policy
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
    calibration: Sequence[tuple[float, float, int]] | None = (
        None  # (mean V(s0), mean return, count) over its own episodes
    )
    on_policy: Estimate | None = None
    on_policy_success: float | None = None  # success rate of its own episodes, of known return or not
    on_policy_unknown: int = 0  # how many of those the value leaves out, because their return is not known
    va_ope: Estimate | None = None
    dpe: Estimate | None = None
    refused: Mapping[str, str] = field(default_factory=dict)  # estimator -> why

    def estimate(self, estimator: str) -> Estimate | None:
        """By a name of `ESTIMATORS`."""
        return getattr(self, ESTIMATORS[estimator])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Starts:
    """First observations of E episodes, and what followed."""

    rows: torch.Tensor  # int64 [E], of the store
    returns: np.ndarray  # [E], discounted; NaN: not known
    success: np.ndarray  # bool [E]
    own: np.ndarray  # bool [E], one policy version drove alone from here to an outcome
    late: np.ndarray  # bool [E], the return is not known because running out of time is no outcome

    @staticmethod
    def of(replay: StoreReplay, version: str) -> Starts:
        """Those of the replay's episodes; `own` are those of a policy version."""
        store, samples = replay.store, replay.samples_of
        numbers = [number for number in samples.episodes if store.episodes[number].steps]
        rows = np.array([store.episodes[number].start for number in numbers], np.int64)
        outcome = np.array([store.outcome(number) for number in numbers], np.int64)
        return_of_row = np.full(replay.ticks, np.nan)
        return_of_row[samples.start] = samples.return_to_go
        returns = return_of_row[rows]
        alone = np.array([_drove_alone(store, number, version) for number in numbers], bool)
        late = np.isnan(returns) & (outcome == Outcome.TIMEOUT) & (not samples.reward.timeout_is_failure)
        own = alone & (outcome != Outcome.UNLABELLED)
        return Starts(torch.from_numpy(rows), returns, outcome == Outcome.SUCCESS, own, late)


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
    episodes: Sequence[int] | None = None,
) -> Evaluation:
    """Judges a policy by recordings of any policies.

    Args:
        config: reward, protocol, critic and how long it learns; of the method's options only `FITTED_Q_OPTIONS`, whichever method it names.
        work: holds the critics that are trained, each in a folder named by its policy's version and the replay; an interrupted evaluation is continued there.
        critic_file: an evaluated critic to use as it is, e.g. that of the improvement whose policy this was. Where `config` leaves `critic_horizon` open it is
            that of the critic.
        estimators: names of `ESTIMATORS`.
        least_effective: effective sample size below which `va_ope` and `dpe` refuse.
        episodes: numbers of the store's episodes to judge by; None: all.

    Raises:
        AloeError: nothing to learn from, or a critic that values states only, or of another robot, discount, scale of rewards, chunk, encoder or object state.
    """
    policy, version = load_trainable(policy_folder, robot)
    needs_critic = bool({"fqe", "va_ope"} & set(estimators))
    given = None
    if critic_file is not None and needs_critic:
        given = _given_critic(critic_file, policy, robot, config)
        config = replace(config, critic_horizon=given[0].config.horizon)
    replay = make_replay(store, policy, config, episodes)
    starts = Starts.of(replay, version)
    key = (config.learner.seed, POLICY_KEY)
    facts: dict[str, Any] = {}
    refused: dict[str, str] = {}
    if needs_critic:
        if given is None or critic_file is None:
            folder = work / f"critic_{quote(version, safe='')}" / replay.digest
            critic = _learned_critic(replay, policy, config, folder, on_progress)
        else:
            critic = given[0]
            _check_view(critic_file, *given, replay)
        facts |= _critic_facts(critic, policy, replay, starts, key, "fqe" in estimators)
    if "monte_carlo" in estimators:
        try:
            facts |= _on_policy(starts)
        except Refused as reason:
            refused["monte_carlo"] = str(reason)
        if starts.own.any():
            facts["on_policy_success"] = float(starts.success[starts.own].mean())
    for name, estimate in (
        ("va_ope", lambda: linear_value(replay, critic, policy, starts.rows, least_effective, key)),
        ("dpe", lambda: _ratios(replay, policy, starts, least_effective, key)),
    ):
        if name in estimators:
            try:
                facts[name] = estimate()
            except Refused as reason:
                refused[name] = str(reason)
    return Evaluation(policy=version, refused=refused, **facts)


def _given_critic(
    file: Path, policy: TrainablePolicy, robot: RobotDescription, config: ImproveConfig
) -> tuple[ChunkCritic, CriticFacts]:
    """A critic that is used as it is, and what it was made for.

    Raises:
        AloeError: for another robot, discount, scale of rewards or chunk.
    """
    method, facts, _ = load_critic(file)
    critic = chunk_critic(method, str(file))
    if facts.robot_hash != robot.hash:
        raise AloeError(f"{file} was made for a robot with hash {facts.robot_hash}, '{robot.name}' has {robot.hash}")
    if facts.gamma != config.reward.gamma:
        raise AloeError(
            f"{file} was made with reward.gamma {facts.gamma:g}, the configuration says {config.reward.gamma:g}; "
            "give that of the critic's improvement with --config"
        )
    scale = config.reward.scale
    if facts.reward_scale is not None and not math.isclose(facts.reward_scale, scale):
        raise AloeError(
            f"{file} was made with reward.reward_scale {facts.reward_scale:g}, the configuration says {scale:g}; "
            "give that of the critic's improvement with --config"
        )
    judges = critic.config.horizon
    if judges > policy.spec.horizon:
        raise AloeError(f"{file} judges {judges} steps, the policy proposes {policy.spec.horizon}")
    if config.critic_horizon not in (0, judges):
        raise AloeError(f"{file} judges {judges} steps, the configuration says critic_horizon {config.critic_horizon}")
    return critic, facts


def _check_view(file: Path, critic: ChunkCritic, facts: CriticFacts, replay: StoreReplay) -> None:
    """Whether the replay has what a critic looks at.

    Raises:
        AloeError: it has not.
    """
    objects, encoder = replay.store.spec.object_size, replay.samples_of.encoder or ""
    if critic.config.object_dim not in (0, objects):
        raise AloeError(
            f"{file} looks at an object state of {critic.config.object_dim} numbers, the bags hold {objects or 'none'}"
        )
    if facts.encoder not in ("", encoder):
        raise AloeError(
            f"{file} looks through the encoder '{facts.encoder}', the policy through {repr(encoder) if encoder else 'no cameras'}"
        )
    if facts.encoder:
        made, there = (
            (set(c.cameras), (c.feature_tokens, c.feature_dim), c.instruction_dim)
            for c in (critic.config, replay.critic_config())
        )
        if not made[0] <= there[0] or made[1] != there[1] or made[2] not in (0, there[2]):
            raise AloeError(
                f"{file} looks through {', '.join(sorted(made[0]))} at {made[1][0]} features of {made[1][1]} numbers and an instruction of {made[2]}; "
                f"with this policy there are {', '.join(sorted(there[0]))}, {there[1][0]} of {there[1][1]}, and {there[2]}"
            )


def _learned_critic(
    replay: StoreReplay,
    policy: TrainablePolicy,
    config: ImproveConfig,
    folder: Path,
    on_progress: Callable[[Progress], bool | None],
) -> ChunkCritic:
    """One that has learned this policy's value in `folder`. It and the policy are on the CPU, where the replay's observations are."""
    torch.manual_seed(config.learner.seed)
    options = {name: config.options[name] for name in FITTED_Q_OPTIONS if name in config.options}
    method = make_method(
        "aloe", critic_config(replay, config), {**options, "target_reduction": "mean"}, replay.return_range
    )
    fit_to(method, replay)
    Learner(method, policy, replay, config.learner, folder, on_progress=on_progress).learn_critic()
    policy.to("cpu")
    return chunk_critic(method.to("cpu").eval(), str(folder))


@torch.no_grad()
def _critic_facts(
    critic: ChunkCritic,
    policy: TrainablePolicy,
    replay: StoreReplay,
    starts: Starts,
    key: tuple[int, int],
    values_too: bool,
) -> dict[str, Any]:
    """Fields of `Evaluation` that a critic gives; without values only the spread of its heads."""
    facts: dict[str, Any] = {}
    observations = replay.observe(starts.rows)
    if values_too:
        values = state_values(critic, policy.eval(), observations, SAMPLES, key, "mean").numpy()
        facts["fitted_q"] = bootstrap_estimate(values)
        followed = starts.own & np.isfinite(starts.returns)
        if followed.any():
            facts["calibration"] = calibration_curve(values[followed], starts.returns[followed])
    chunks = policy.act(observations, random_numbers(*key, 1))
    facts["head_std"] = float(critic({**observations, "action": chunks}).std(dim=1, correction=0).mean())
    return facts


def _on_policy(starts: Starts) -> dict[str, Any]:
    """The mean return of the policy's own episodes.

    Raises:
        Refused: there are none, or the returns that are known are not those of a fair sample.
    """
    own, known = int(starts.own.sum()), starts.own & np.isfinite(starts.returns)
    if not own:
        raise Refused("no recorded episode was driven by this policy alone")
    if late := int((starts.own & starts.late).sum()):
        raise Refused(f"{late} of its {own} own episodes {NO_OUTCOME}")
    if not known.any():
        raise Refused(
            f"the return of none of its {own} own episodes is known: cut recordings, or a protocol that lets no policy's chunk teach a critic"
        )
    return {"on_policy": bootstrap_estimate(starts.returns[known]), "on_policy_unknown": own - int(known.sum())}


def _ratios(
    replay: StoreReplay, policy: TrainablePolicy, starts: Starts, least_effective: float, key: tuple[int, int]
) -> Estimate:
    """See `ratio_estimate`, which leaves out what has no known return.

    Raises:
        Refused: that would leave out the slow episodes.
    """
    if late := int(starts.late.sum()):
        raise Refused(f"{late} of the {len(starts.late)} episodes {NO_OUTCOME}")
    return ratio_estimate(replay, policy, starts.rows, least_effective, key)


def _drove_alone(store: ReplayStore, number: int, version: str) -> bool:
    """Whether nobody but a policy version drove an episode."""
    entry = store.episodes[number]
    source = store.arrays["source"][entry.start : entry.start + entry.steps]
    return set(entry.versions) - {""} == {version} and bool(np.isin(source, [Source.POLICY, Source.NONE]).all())


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
