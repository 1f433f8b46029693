"""One improvement of a policy from recorded bags, in a run folder: what `aloe improve` and `learner_node` both do.

    RUN/replay/            the store all iterations share; bags are ingested once
    RUN/001/, RUN/002/ ..  iterations: learner state, metrics, `policy/`, `critic.safetensors`, `result.json` once finished

An iteration without `result.json` was interrupted, and is continued. Actor and critic go on from the iteration before (Algorithm 1).
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import ConfigDict

from aloe_core.bag_format import replace_file
from aloe_core.errors import AloeError
from aloe_core.fragments import Protocol
from aloe_core.policy import POLICY_FILE
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome
from aloe_critic.best_of_n import BestOfN
from aloe_critic.critic import CriticConfig
from aloe_critic.critic_file import CRITIC_FILE, CriticFacts, chunk_critic, load_critic, save_critic
from aloe_critic.learner import STATE_FILE, Learner, LearnerConfig, Progress
from aloe_critic.methods import Method, make_method
from aloe_critic.replay import StoreReplay, fit_to
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import ChunkSamples, IngestReport, ReplayStore, RewardConfig
from aloe_policy.replay.layout import locked
from aloe_policy.trainable import load_trainable

CRITIC_ENCODER = "efficientnet_lite0-128"  # of policies that bring none; our choice: the size of `BcConfig.image_size`
RESULT_FILE, STARTED_FILE, STORE, POLICY = "result.json", "started.json", "replay", "policy"


@dataclass(frozen=True)
class ImproveConfig:
    """What an improvement does."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    method: str = "aloe"  # see `methods.METHODS`
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method
    protocol: Protocol = "aloe"  # how interventions are read
    reward: RewardConfig = field(default_factory=RewardConfig)
    critic_horizon: int = 0  # steps of a chunk that the critic judges; 0: all of the policy's chunk
    backup: int = 0  # steps a chunk is backed up over, at most the critic's horizon; 0: all of it
    critic: Mapping[str, Any] = field(default_factory=dict)  # fields of `CriticConfig` that differ from `critic.small`
    learner: LearnerConfig = field(default_factory=LearnerConfig)


class NoData(AloeError):
    """There is nothing to learn from; the message says why."""


@dataclass(frozen=True)
class ImproveResult:
    """What came out; also the content of `result.json`."""

    policy: str  # checkpoint folder
    version: str
    sha256: str
    parent_version: str
    iteration: int
    method: str
    critic: str  # critic file; empty: the method has none
    episodes: int
    transitions: int
    successes: int
    used_share: float  # of the chunks, those with a weight in the actor's loss
    effective_share: float  # of the chunks used, what the weights leave of them


def improve(
    run: Path,
    store: ReplayStore,
    policy_folder: Path | None,
    robot: RobotDescription,
    config: ImproveConfig,
    on_progress: Callable[[Progress], bool | None] = lambda progress: None,
    accelerator: Accelerator | None = None,
    episodes: Sequence[int] | None = None,
) -> ImproveResult:
    """The next iteration of a run, or the rest of one that was interrupted.

    Args:
        run: folder of the run.
        store: holds the episodes.
        policy_folder: the policy to improve; None: what the iteration before made.
        on_progress: see `Learner`.
        episodes: numbers of the episodes to learn from; None: all.

    Raises:
        AloeError: nothing to learn from, a policy that does not fit, another process that improves in this run, or numbers that diverge; the last good
            checkpoint is kept.
    """
    accelerator = accelerator or Accelerator()
    busy = f"run {run} is being improved by another process; wait for it, or choose another run"
    with locked(run, 0.0, busy) if accelerator.is_main_process else nullcontext():
        return _iteration(run, store, policy_folder, robot, config, on_progress, accelerator, episodes)


def _iteration(
    run: Path,
    store: ReplayStore,
    policy_folder: Path | None,
    robot: RobotDescription,
    config: ImproveConfig,
    on_progress: Callable[[Progress], bool | None],
    accelerator: Accelerator,
    episodes: Sequence[int] | None,
) -> ImproveResult:
    number, folder = next_iteration(run)
    before = run / f"{number - 1:03d}"
    policy, parent = load_trainable(policy_folder or newest_policy(run), robot)
    policy.check_trainable()
    with accelerator.main_process_first():
        replay = _begin(folder, store, policy, parent, config, episodes)
    facts = CriticFacts(
        method=config.method,
        critic=critic_config(replay, config),
        options=dict(config.options),
        return_range=replay.return_range,
        gamma=config.reward.gamma,
        robot_hash=robot.hash,
        policy_version=parent,
        encoder=replay.samples_of.encoder or "",
        reward_scale=config.reward.scale,
    )
    torch.manual_seed(config.learner.seed + number)
    method = make_method(facts.method, facts.critic, facts.options, facts.return_range)
    method.check_policy(policy)
    if method.monte_carlo and not np.isfinite(replay.samples_of.return_to_go).any():
        raise NoData(
            f"method '{config.method}' learns from outcomes alone, and none of the {len(replay.start)} recorded chunks leads to one: "
            "label the episodes (docs/record.md)"
        )
    if not _warm_start(method, facts, before):
        fit_to(method, replay)
    learner_config = replace(config.learner, seed=config.learner.seed + 1000 * number)
    learner = Learner(method, policy, replay, learner_config, folder, accelerator, on_progress)
    if learner.accelerator.is_main_process:
        learner.metrics.tensorboard()
    try:
        improved = learner.run()
    finally:
        learner.metrics.close()
    assert learner.weight_N is not None
    weight = learner.weight_N.abs()
    used = weight[weight > 0]
    result = ImproveResult(
        policy=str(folder / POLICY),
        version="",
        sha256="",
        parent_version=parent,
        iteration=number,
        method=config.method,
        critic=str(folder / CRITIC_FILE) if method.learns else "",
        episodes=len(replay.samples_of.episodes),
        transitions=len(replay.start),
        successes=sum(store.outcome(e) == Outcome.SUCCESS for e in replay.samples_of.episodes),
        used_share=len(used) / len(weight),
        effective_share=float(used.sum() ** 2 / (used.square().sum() * len(used))),
    )
    if learner.accelerator.is_main_process:
        sha256 = improved.save(folder / POLICY, f"{run.resolve().name}-{number}")
        if method.learns:
            save_critic(folder / CRITIC_FILE, method, facts)
        result = replace(result, sha256=sha256, version=f"{run.resolve().name}-{number}-{sha256[:8]}")
        replace_file(folder / RESULT_FILE, json.dumps(asdict(result), indent=1) + "\n")
    return result


def ingest(
    run: Path,
    bags: Sequence[Path | str],
    policy_folder: Path | None,
    robot: RobotDescription,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 1,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ReplayStore, IngestReport]:
    """Takes bags into the run's store, with the cameras that the policy looks through and the frozen features of their images.

    Args:
        on_progress, on_images: told of (bags read, bags) and (images encoded, images); may raise to stop: bags read by then stay in the store.

    Raises:
        AloeError: no bags, or none that fits the policy; see `ReplayStore.ingest`.
    """
    cameras, size, name = _looks(policy_folder or newest_policy(run), robot)
    store = ReplayStore(run / STORE)
    report = store.ingest(bags, robot, cameras, size, object_state=True, workers=workers, on_progress=on_progress)
    if not report.episodes:
        raise NoData(f"none of the bags can be used:\n{report.text()}")
    if cameras:
        from aloe_policy.encoders import image_encoder

        encoder = image_encoder(name, size, "cpu")
        store.cache_features(name, lambda images: encoder(torch.from_numpy(images)).numpy(), on_progress=on_images)
    return store, report


def write_best_of_n(result: ImproveResult, n: int, robot: RobotDescription) -> str:
    """A checkpoint beside the improved policy that acts with the best of n chunks by its critic; returns the folder.

    Raises:
        AloeError: the method has no critic of chunks.
    """
    if not result.critic:
        raise AloeError(f"method '{result.method}' has no critic to choose chunks by")
    method, facts, _ = load_critic(Path(result.critic))
    policy, _ = load_trainable(result.policy, robot)
    folder = Path(result.policy).with_name("best_of_n")
    name = result.version.rsplit("-", 1)[0]
    critic = chunk_critic(method, result.critic)
    BestOfN(policy, critic, n, Path(result.critic), facts.encoder).save(folder, f"{name}-best{n}")
    return str(folder)


def next_iteration(run: Path) -> tuple[int, Path]:
    """Number and folder of the iteration to do: the first without a result."""
    number = 1
    while (run / f"{number:03d}" / RESULT_FILE).exists():
        number += 1
    return number, run / f"{number:03d}"


def finished_iterations(run: Path) -> list[Path]:
    """Folders of the iterations that have a result, in order."""
    number, _ = next_iteration(run)
    return [run / f"{n:03d}" for n in range(1, number)]


def newest_policy(run: Path) -> Path:
    """Checkpoint that the last finished iteration made.

    Raises:
        AloeError: none has finished.
    """
    finished = finished_iterations(run)
    if not finished:
        raise AloeError(
            f"{run} has no policy yet: name the one to improve (--policy, or the node's parameter 'policy')"
        )
    return finished[-1] / POLICY


def read_result(folder: Path) -> ImproveResult:
    """What an iteration came to; its policy and critic are those of `folder`, also after the run was moved or copied.

    Raises:
        AloeError: it has not finished, or its result is damaged.
    """
    try:
        result = ImproveResult(**json.loads((folder / RESULT_FILE).read_text()))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise AloeError(f"{folder} has no readable {RESULT_FILE}: {error}") from None
    return replace(result, policy=str(folder / POLICY), critic=str(folder / CRITIC_FILE) if result.critic else "")


def make_replay(
    store: ReplayStore, policy: TrainablePolicy, config: ImproveConfig, episodes: Sequence[int] | None = None
) -> StoreReplay:
    """The samples that a policy can learn from: chunks as long as its own.

    Raises:
        AloeError: the store lacks what the policy looks at, or holds no chunk.
    """
    spec = policy.spec
    if spec.object_dim and store.spec.object_size != spec.object_dim:
        raise AloeError(
            f"the policy looks at {spec.object_dim} numbers of object state, the bags hold {store.spec.object_size}"
        )
    horizon = config.critic_horizon or spec.horizon
    if not 1 <= horizon <= spec.horizon:
        raise AloeError(f"critic_horizon {horizon} must lie between 1 and the policy's horizon {spec.horizon}")
    if config.backup > horizon:
        raise AloeError(
            f"backup {config.backup} must not be longer than critic_horizon {horizon}: targets would hold rewards of steps that the critic does not see"
        )
    encoder = _encoder(policy) or None
    samples = ChunkSamples(
        store, spec.horizon, config.reward, config.protocol, config.backup or horizon, episodes, encoder
    )
    return StoreReplay(samples, with_instruction=bool(spec.cameras), with_images=policy.reads_images)


def critic_config(replay: StoreReplay, config: ImproveConfig) -> CriticConfig:
    """The critic's size and inputs; the longest token that divides the horizon, up to ten steps, unless `critic` says otherwise."""
    horizon = config.critic_horizon or replay.samples_of.horizon
    steps = max(n for n in range(1, 11) if horizon % n == 0)
    return replay.critic_config(**{"horizon": horizon, "steps_per_token": steps, **config.critic})


def _begin(
    folder: Path,
    store: ReplayStore,
    policy: TrainablePolicy,
    parent: str,
    config: ImproveConfig,
    episodes: Sequence[int] | None,
) -> StoreReplay:
    """The replay of an iteration. One that was interrupted goes on with the episodes it began with, whatever was recorded since; if something else is
    asked for now, or those episodes were labelled anew, it starts from the beginning, and what was there is kept beside it."""
    file = folder / STARTED_FILE
    asked = {"policy": parent, "config": json.loads(json.dumps(asdict(config)))}
    if file.exists():
        began = json.loads(file.read_text())
        if {key: began[key] for key in asked} == asked and max(began["episodes"]) < len(store.episodes):
            replay = make_replay(store, policy, config, began["episodes"])
            if replay.digest == began["digest"]:
                return replay
        if (folder / STATE_FILE).exists():
            kept = _unused(folder.with_name(f"{folder.name}.abandoned"))
            folder.rename(kept)
            warnings.warn(f"{folder} was begun with other settings or labels; it is kept as {kept.name}", stacklevel=3)
        else:
            shutil.rmtree(folder)
    replay = make_replay(store, policy, config, episodes)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps({**asked, "episodes": replay.samples_of.episodes, "digest": replay.digest}))
    return replay


def _unused(folder: Path) -> Path:
    """`folder`, or that name with the first number nobody has used."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _encoder(policy: TrainablePolicy) -> str:
    """The frozen encoder the critic looks through: the policy's own if it has one; empty: no cameras."""
    return policy.frozen_encoder or CRITIC_ENCODER if policy.spec.cameras else ""


_Looks = tuple[tuple[str, ...], tuple[int, int], str]  # cameras, image size, the critic's encoder
_looks_of: dict[tuple[str, int, str], _Looks] = {}  # the last one asked for


def _looks(policy: Path, robot: RobotDescription) -> _Looks:
    """What the store must hold for a policy. Remembered while its checkpoint stays as it is, for bags come often and policies may be large."""
    file = policy / POLICY_FILE
    key = (str(policy.absolute()), file.stat().st_mtime_ns if file.exists() else 0, robot.hash)
    if key not in _looks_of:
        found, _ = load_trainable(policy, robot)
        _looks_of.clear()
        _looks_of[key] = found.spec.cameras, found.spec.image_size or (0, 0), _encoder(found)
    return _looks_of[key]


def _warm_start(method: Method, facts: CriticFacts, before: Path) -> bool:
    """Continues from the critic of the iteration before, if there is one of the same method and size, for the same returns and features."""
    if not method.learns or not (before / CRITIC_FILE).exists():
        return False
    previous, was, _ = load_critic(before)
    same = {
        "method": was.method == facts.method,
        "critic": was.critic == facts.critic,
        "options": was.options == facts.options,
        "reward.gamma": was.gamma == facts.gamma,
        "reward.reward_scale": was.reward_scale is None
        or facts.reward_scale is None
        or math.isclose(was.reward_scale, facts.reward_scale),
        "encoder": was.encoder == facts.encoder,
    }
    if not all(same.values()):
        differs = ", ".join(key for key, value in same.items() if not value)
        warnings.warn(f"the critic of {before} was made with other {differs}; the new one starts afresh", stacklevel=4)
        return False
    method.continue_from(previous)
    method.train()
    return True
