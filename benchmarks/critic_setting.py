"""What critics are tried on: policies from bad to good, their episodes, replays of these, and states with the true value of several chunks.

Everything is made when it is first asked for, and leaves a file.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from critic_truth import Moment, Truth, observe
from evidence import once

from aloe_core.bag_reader import read_episode
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Source
from aloe_critic.improvement import ImproveConfig, make_replay
from aloe_critic.learner import Learner, LearnerConfig
from aloe_critic.methods import make_method
from aloe_critic.replay import StoreReplay
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation
from aloe_policy.replay import ChunkSamples, ReplayStore
from aloe_robot.sim.env import SimEnv

TASK, ROBOT = "transfer_cube", "aloha_sim"
HORIZON = 50
POLICIES = {
    "bc5": (5, 1000),
    "bc10": (10, 1000),
    "bc20": (20, 1000),
    "bc3": (3, 1000),
    "bc100": (100, 2000),
}  # demonstrations, steps
WITH_OWN_REPLAY = ("bc20", "bc100")
STRANGER = {
    "bc3": "bc20",
    "bc5": "bc20",
    "bc10": "bc20",
    "bc20": "bc5",
    "bc100": "bc5",
}  # another policy, for the chunk `other`
DATA_POLICY = "bc20"  # whose episodes the mixed replay holds
CHUNKS = (
    "data",
    "policy",
    "policy_2",
    "other",
    "elsewhere",
    "noise",
)  # judged at every state; `noise` by the critic alone
ROWS = {25: 6, 50: 4}  # rows of a chunk that are played, see critic_truth, and roll-outs of each state and chunk
VALUE_CHUNKS = 6  # of the policy at every state, for V


@dataclass(frozen=True)
class Budget:
    """Sizes."""

    demonstrations: int = 20  # in every replay
    episodes: int = 40  # of a policy, in a replay
    start_episodes: int = 40  # from fresh initial states, for V(s0)
    states: int = 16  # of the mixed replay
    own_states: int = 6  # of the policy's own replay
    critic_steps: int = 1200
    batch_size: int = 128


def number_of(*key: object) -> int:
    """A seed that follows from names."""
    return zlib.crc32("/".join(map(str, key)).encode())


def save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """All at once, so that an interruption leaves no half of it."""
    new = file.with_suffix(".new.npz")
    np.savez_compressed(new, **arrays)
    os.replace(new, file)


def roll_out(policy: Path | str, seeds: range, bags: Path | None, operator: str = "", rows: int = 25) -> dict[str, Any]:
    """Episodes in lockstep that play `rows` of every chunk; bags that an interruption left behind are made again."""
    from aloe_policy.evaluation import RolloutSpec, run_episodes, summarise
    from aloe_robot.control.config import ControlConfig

    if bags is not None:
        shutil.rmtree(bags, ignore_errors=True)
    spec = RolloutSpec(str(policy), TASK, ROBOT, ControlConfig(execute_steps=rows), operator=operator, bags=bags)
    began = time.perf_counter()
    rollouts = list(run_episodes(spec, seeds))
    return {"rollouts": summarise(spec, rollouts, time.perf_counter() - began)}


def clone(root: Path, name: str, robot: RobotDescription) -> dict[str, Any]:
    """Behaviour cloning on the first demonstrations."""
    count, steps = POLICIES[name]
    store = demonstrations(root, robot)
    replay = StoreReplay(ChunkSamples(store, HORIZON, episodes=range(count)))
    torch.manual_seed(0)
    spec = PolicySpec.of(robot, HORIZON, object_dim=store.spec.object_size)
    policy = FlowPolicy(spec, FlowConfig(), Normalisation(replay.statistics()))
    config = LearnerConfig(actor_steps=steps, actor_lr=1e-3, batch_size=128)
    method = make_method("filtered_bc", replay.critic_config(steps_per_token=10))
    trained = Learner(method, policy, replay, config, root / f"{name}_run").run()
    return {"sha256": trained.save(root / name, f"{name}-0")}


def demonstrations(root: Path, robot: RobotDescription) -> ReplayStore:
    """The scripted expert's episodes."""
    most = max(n for n, _ in POLICIES.values())
    once(root / "demos.json", lambda: roll_out("scripted", range(10_000, 10_000 + most), root / "demos", rows=50))
    store = ReplayStore(root / "demo_store")
    store.ingest([root / "demos"], robot)
    return store


def policy_of(root: Path, name: str, robot: RobotDescription) -> FlowPolicy:
    """A policy by name."""
    once(root / f"{name}.json", lambda: clone(root, name, robot))
    return FlowPolicy.load(root / name, robot)


def starts_of(root: Path, name: str, rows: int, robot: RobotDescription, budget: Budget) -> dict[str, Any]:
    """Episodes of a policy from initial states that no replay holds."""
    policy_of(root, name, robot)
    return once(root / f"start_{name}_{rows}.json", lambda: roll_out(root / name, start_seeds(budget), None, rows=rows))


def store_of(root: Path, data: str, robot: RobotDescription, budget: Budget) -> ReplayStore:
    """A replay by name: `mixed`, or that of a policy."""
    bags = root / f"bags_{data}"
    if data == "mixed":
        policy_of(root, DATA_POLICY, robot)
        seeds = range(20_000, 20_000 + budget.episodes)
        once(root / "mixed.json", lambda: roll_out(root / DATA_POLICY, seeds, bags, "practised"))
    else:
        policy_of(root, data, robot)
        first = 30_000 + 1000 * list(POLICIES).index(data)
        seeds = range(first, first + budget.episodes)
        once(root / f"own_{data}.json", lambda: roll_out(root / data, seeds, bags))
    demonstrations(root, robot)
    store = ReplayStore(root / f"replay_{data}")
    store.ingest([*sorted((root / "demos").iterdir())[: budget.demonstrations], bags], robot)
    return store


def start_seeds(budget: Budget) -> range:
    """Initial states that no replay holds."""
    return range(50_000, 50_000 + budget.start_episodes)


def choose(replay: StoreReplay, sources: dict[Source, int], key: str) -> np.ndarray:
    """Samples of a replay, so many of each source, at random."""
    random = np.random.default_rng(number_of(key))
    source, usable = replay.facts.source.numpy(), replay.facts.train_critic.numpy()
    parts = [
        random.choice(np.flatnonzero(usable & (source == kind)), count, replace=False)
        for kind, count in sources.items()
    ]
    return np.concatenate(parts)


def moments_of(replay: StoreReplay, index: np.ndarray, robot: RobotDescription) -> list[Moment]:
    """The simulator's states at the start of samples, from their bags."""
    store, moments = replay.store, []
    for sample in index:
        row = int(replay.start[sample])
        bag = read_episode(store.episodes[int(replay.samples_of.episode[sample])].bag, robot)
        at = int(np.flatnonzero(bag.step == store.arrays["step"][row])[0])
        assert bag.sim_state is not None
        moments.append(Moment.of(bag.sim_state[at], bag.executed[:at]))
    return moments


def measure(root: Path, name: str, robot: RobotDescription, budget: Budget) -> Path:
    """The file with states, chunks and what became of them under one policy."""
    file = root / "truth" / f"{name}.npz"
    if file.exists():
        return file
    policy = policy_of(root, name, robot)
    stranger = policy_of(root, STRANGER[name], robot)
    states, human = budget.states, budget.states // 3
    wanted = {"mixed": {Source.SCRIPTED: states // 4, Source.HUMAN: human, Source.POLICY: states - human - states // 4}}
    if name in WITH_OWN_REPLAY:
        wanted[name] = {Source.POLICY: budget.own_states}
    parts: dict[str, list[np.ndarray]] = {}
    moments: list[Moment] = []
    for data, sources in wanted.items():
        replay = make_replay(store_of(root, data, robot, budget), policy, ImproveConfig())
        index = choose(replay, sources, f"{data}/states")
        moments += moments_of(replay, index, robot)
        batch = replay.samples(torch.from_numpy(index))
        observed = {key: batch[key] for key in ("state", "object_state")}
        random = np.random.default_rng(number_of(data, "chunks"))
        generator = torch.Generator().manual_seed(number_of(name, data))
        own = [policy.act(observed, generator).numpy() for _ in range(2 + VALUE_CHUNKS)]  # type: ignore[arg-type]
        mask, executed = batch["action_mask"].numpy()[..., None], batch["action"].numpy()
        whole = np.flatnonzero(replay.samples_of.stop - replay.samples_of.start >= HORIZON)
        elsewhere = replay.samples(torch.from_numpy(random.choice(whole, len(index))))["action"].numpy()
        spread = replay.statistics()["action"][1].numpy()
        recorded = np.where(mask, executed, own[0])  # what was not executed is the policy's, as in `aloe.complete`
        noise = recorded + spread * random.standard_normal(recorded.shape).astype(np.float32)
        other = stranger.act(observed, generator).numpy()  # type: ignore[arg-type]
        found = {
            "state": batch["state"].numpy(),
            "object_state": batch["object_state"].numpy(),
            "chunk": np.stack([recorded, own[0], own[1], other, elsewhere, noise], axis=1),
            "value_chunk": np.stack(own[2:], axis=1),
            "executed_rows": mask.sum(axis=(1, 2)),
            "source": replay.facts.source.numpy()[index],
            "own": np.full(len(index), data != "mixed"),
        }
        for key, value in found.items():
            parts.setdefault(key, []).append(value)
    arrays = {key: np.concatenate(values) for key, values in parts.items()}
    truth = Truth(robot, TASK, policy)
    played = len(CHUNKS) - 1
    for rows, repeats in ROWS.items():
        pairs, chunks = np.repeat(np.arange(len(moments)), played), arrays["chunk"][:, :played].reshape(-1, HORIZON, 14)
        seed = number_of(name, rows)
        outcome, steps = truth.roll_out([moments[i] for i in pairs], chunks, rows, repeats, seed)
        arrays[f"outcome_{rows}"] = outcome.reshape(-1, played, repeats)
        arrays[f"steps_{rows}"] = steps.reshape(-1, played, repeats)
        pairs = np.repeat(np.arange(len(moments)), VALUE_CHUNKS)
        chunks = arrays["value_chunk"].reshape(-1, HORIZON, 14)
        outcome, steps = truth.roll_out([moments[i] for i in pairs], chunks, rows, 1, seed + 1)
        arrays[f"value_outcome_{rows}"] = outcome.reshape(-1, VALUE_CHUNKS)
        arrays[f"value_steps_{rows}"] = steps.reshape(-1, VALUE_CHUNKS)
    env = SimEnv(TASK, cameras=())
    starts = []
    for start in start_seeds(budget):
        env.reset(start)
        starts.append(observe(robot, [env]))
    for key in ("state", "object_state"):
        arrays[f"start_{key}"] = np.concatenate([s[key].numpy() for s in starts])  # type: ignore[literal-required]
    generator = torch.Generator().manual_seed(number_of(name, "start"))
    observed = {key: torch.from_numpy(arrays[f"start_{key}"]) for key in ("state", "object_state")}
    arrays["start_chunk"] = np.stack([policy.act(observed, generator).numpy() for _ in range(4)], axis=1)  # type: ignore[arg-type]
    file.parent.mkdir(parents=True, exist_ok=True)
    save(file, arrays)
    return file
