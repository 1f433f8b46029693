"""How good is a critic? Its values against what the simulator says chunks are worth, for policies from bad to good.

    python benchmarks/critic_quality.py             # prepares everything and trains the critics, most interesting first; resumes
    python benchmarks/critic_quality_report.py      # docs/critic_quality.md of whatever is there

Policies: behaviour cloning of 5 .. 100 demonstrations. Replays: `mixed`, the same for all policies, demonstrations and episodes of *one* policy with a
human who takes over, so that for the others it is off-policy; `own`, demonstrations and episodes of the policy itself. Critics: trained by `Learner`.
Truth: `critic_truth.py`. Every piece of work leaves a file.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from critic_setting import HORIZON, ROBOT, ROWS, WITH_OWN_REPLAY, Budget, measure, policy_of, save, starts_of, store_of
from evidence import once

from aloe_core.robot import RobotDescription, load_robot
from aloe_critic.critic import ChunkCritic
from aloe_critic.improvement import ImproveConfig, critic_config, make_replay
from aloe_critic.learner import Learner, LearnerConfig, Progress
from aloe_critic.methods import Method, make_method
from aloe_critic.policy_chunks import ChunkTable, FreshChunks
from aloe_critic.replay import StoreReplay, fit_to
from aloe_policy.flow import FlowPolicy

TRANSFORMER = {"network": "transformer", "width": 64}


@dataclass(frozen=True)
class Variant:
    """A critic: what differs from the defaults."""

    method: str = "aloe"
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    critic: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)


SNAPSHOTS = (300, 600, 1200, 2400, 4800)  # critic steps after which the critic is asked for its values
DEFAULT = Budget()
H25 = {"critic_horizon": 25}
WHOLE = {"cut_share": 0.0}  # chunks as they were recorded
VARIANTS = {
    "td50": Variant(),
    "td25": Variant(config=H25),
    "td50_b25": Variant(config={"backup": 25}),
    "td1": Variant(config={"backup": 1}),
    "mc_q": Variant("monte_carlo_q", learner=WHOLE),
    "awr": Variant("awr"),
    "td50_whole": Variant(learner=WHOLE),
    "td25_whole": Variant(config=H25, learner=WHOLE),
    "td50_half": Variant(options={"complete_share": 0.5}, learner=WHOLE),
    "td50_masked": Variant(options={"complete_share": 0.0}, learner=WHOLE),
    "td50_all_cut": Variant(learner={"cut_share": 1.0}),
    "td50_long": Variant(learner={"critic_steps": 4800}),
    "td25_long": Variant(config=H25, learner={"critic_steps": 4800}),
    "td50_unbounded": Variant(options={"bound_values": False}),
    "td50_mean": Variant(options={"target_reduction": "mean"}),
    "td50_fast_target": Variant(options={"polyak": 0.02}),
    "td25_fast_target": Variant(options={"polyak": 0.02}, config=H25),
    "td50_heads1": Variant(critic={"heads": 1}),
    "td50_heads5": Variant(critic={"heads": 5}),
    "td50_separate": Variant(critic={"separate_trunks": True}),
    "td50_transformer": Variant(critic=TRANSFORMER),
    "td25_transformer": Variant(config=H25, critic=TRANSFORMER),
    "td50_batch256": Variant(learner={"batch_size": 256}),
    "bee": Variant("bee"),
}
MAIN = ("td50", "td25", "mc_q", "awr", "td50_b25", "td1")  # for every policy; the first four with several seeds
ABLATED = ("td50_whole", "td25_whole", "td50_half", "td50_masked")  # of these, also for `bc20`


def opinions(method: Method, truth: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a critic thinks of the measured states: heads of `q [S, C, K]`, of chunks of the policy `v [S, M, K]`, and at the start of episodes."""
    critic: ChunkCritic = method.critic  # type: ignore[assignment]

    def ask(prefix: str, chunk_SCHA: np.ndarray) -> np.ndarray:
        times = chunk_SCHA.shape[1] if critic.config.horizon else 1
        batch = {
            key: torch.from_numpy(truth[f"{prefix}{key}"]).repeat_interleave(times, dim=0)
            for key in ("state", "object_state")
        }
        chunks = torch.from_numpy(chunk_SCHA).flatten(0, 1)
        with torch.no_grad():
            heads = critic({**batch, "action": chunks} if critic.config.horizon else batch)
        return heads.unflatten(0, (-1, times)).numpy()

    policy_chunks = np.concatenate([truth["value_chunk"], truth["chunk"][:, 1:3]], axis=1)
    return {
        "q": ask("", truth["chunk"]),
        "v": ask("", policy_chunks),
        "start": ask("start_", truth["start_chunk"]),
    }


class Tables:
    """Chunks of a policy at all states of a replay; drawn once for all critics, as the learner draws them for one."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._table: ChunkTable | None = None

    def of(self, data: str, name: str, policy: FlowPolicy, replay: StoreReplay) -> ChunkTable:
        """Four chunks a state; the last table made is kept."""
        if self._key != (data, name) or self._table is None:
            fresh = FreshChunks(policy.eval(), replay.observe, HORIZON)
            self._table, self._key = ChunkTable(fresh, replay.ticks, 4, (0, 1)), (data, name)
        return self._table


def judge(root: Path, job: Job, robot: RobotDescription, budget: Budget, tables: Tables) -> dict[str, Any]:
    """Trains a critic; its opinions after so many steps are files in its folder."""
    variant, folder = VARIANTS[job.variant], root / "critics" / str(job)
    policy = policy_of(root, job.policy, robot)
    truth = dict(np.load(measure(root, job.policy, robot, budget)))
    for rows in ROWS:
        starts_of(root, job.policy, rows, robot, budget)
    config = ImproveConfig(method=variant.method, options=variant.options, critic=variant.critic, **variant.config)
    replay = make_replay(store_of(root, job.data, robot, budget), policy, config)
    torch.manual_seed(job.seed)
    method = make_method(variant.method, critic_config(replay, config), variant.options, replay.return_range)
    fit_to(method, replay)
    folder.mkdir(parents=True, exist_ok=True)

    def look(progress: Progress) -> None:
        if progress.stage == "critic" and progress.step in SNAPSHOTS:
            save(folder / f"{progress.step:05d}.npz", opinions(method, truth))

    chosen = {"critic_steps": budget.critic_steps, "batch_size": budget.batch_size, **variant.learner}
    learner = Learner(method, policy, replay, LearnerConfig(**chosen, seed=job.seed), folder / "run", on_progress=look)
    if method.needs_policy_chunks:
        learner._chunks = tables.of(job.data, job.policy, policy, replay)
    began = time.process_time()
    learner.learn_critic()
    return {"cpu_s": time.process_time() - began, "cost": replay.samples_of.failure_cost, "samples": len(replay.start)}


@dataclass(frozen=True)
class Job:
    """One critic to train."""

    data: str  # name of the replay: mixed, or a policy's own
    policy: str  # whose value is asked for
    variant: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{'mixed' if self.data == 'mixed' else 'own'}/{self.policy}/{self.variant}_{self.seed}"


def plan() -> list[Job]:
    """All critics, most interesting first."""
    few = [v for v in VARIANTS if "transformer" not in v and "long" not in v]
    jobs = [Job("mixed", p, v) for p in ("bc20", "bc100", "bc5") for v in MAIN]
    jobs += [Job("mixed", p, v) for p in ("bc20", "bc100") for v in ABLATED]
    jobs += [Job("mixed", p, v) for p in ("bc3", "bc10") for v in MAIN]
    jobs += [Job("mixed", "bc100", v) for v in few]
    jobs += [Job(p, p, v) for p in WITH_OWN_REPLAY for v in MAIN[:4]]
    jobs += [Job("mixed", p, v, s) for s in (1, 2) for p in ("bc5", "bc20", "bc100") for v in MAIN[:4]]
    jobs += [Job("mixed", "bc100", v) for v in VARIANTS]
    return list(dict.fromkeys(jobs))


def main(out: Path = Path("runs/critic_quality"), budget: Budget = DEFAULT, variants: tuple[str, ...] = ()) -> None:
    """Does whatever of the work is not done yet.

    Args:
        out: folder for bags, policies, truth and critics.
        budget: sizes.
        variants: train the critics of these only, see `VARIANTS`; none: all of the plan.
    """
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown:
        raise SystemExit(f"critic_quality: no variant '{unknown[0]}'; there are: {', '.join(VARIANTS)}")
    torch.set_num_threads(1)
    robot, tables = load_robot(ROBOT), Tables()
    out.mkdir(parents=True, exist_ok=True)
    once(out / "budget.json", lambda: {"budget": asdict(budget)})
    for job in plan():
        if not variants or job.variant in variants:
            result = once(out / "critics" / str(job) / "done.json", lambda j=job: judge(out, j, robot, budget, tables))
            print(f"{job}: {result['cpu_s']:.0f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
