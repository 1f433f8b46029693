"""Does improvement pay? All methods from the same demonstrations, the same number of roll-outs and the same simulated human, over several seeds.

    python benchmarks/evidence.py --seeds 8 --jobs 2            # the main table
    python benchmarks/evidence.py --seeds 3 --variants aloe_n1 aloe_n5 aloe_n15     # the back-up length
    python benchmarks/evidence.py --seeds 3 --setting slow --variants filtered_bc hg_dagger aloe    # another human

Every piece of work leaves a file, so that a run that is interrupted continues; `evidence_report.py` makes docs/evidence.md of whatever is there.
A chain is one seed of one variant: behaviour cloning on a few demonstrations, then three times some episodes with the human and an improvement, then
100 episodes alone (`Budget`). The variants of a seed share demonstrations, cloned policy and the first episodes with the human: differences are paired.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tyro

ROBOT = "aloha_sim"


@dataclass(frozen=True)
class Variant:
    """One row of a table: what differs from the default of `ImproveConfig`."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    critic: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    best_of: int = 0  # in the end, also evaluate acting with the best of so many chunks


VARIANTS = {
    "filtered_bc": Variant("filtered_bc"),
    "hg_dagger": Variant("hg_dagger"),
    "awr": Variant("awr"),
    "recap": Variant("recap"),
    "aloe": Variant("aloe", best_of=8),
    "aloe_masked": Variant("aloe", {"complete_share": 0.0}, best_of=8),  # partial chunks masked, never completed
    "aloe_uncut": Variant("aloe", learner={"cut_share": 0.0}),  # chunks end early only where their fragment ends
    "aloe_whole": Variant(
        "aloe", config={"critic_horizon": 50}
    ),  # the critic judges all 50 steps, of which 25 are executed
    "aloe_n1": Variant("aloe", config={"backup": 1}),
    "aloe_n5": Variant("aloe", config={"backup": 5}),
    "aloe_n15": Variant("aloe", config={"backup": 15}),
    "aloe_n50": Variant("aloe", config={"critic_horizon": 50, "backup": 50}),
    "aloe_mean2": Variant("aloe", {"target_reduction": "mean"}),
    "aloe_min1": Variant("aloe", critic={"heads": 1}),
    "aloe_min4": Variant("aloe", critic={"heads": 4}),
    "aloe_separate": Variant("aloe", critic={"separate_trunks": True}),
    "aloe_failures": Variant("aloe", {"learn_from_failures": True}),  # the paper's actor: failed fragments teach it too
    "aloe_transformer": Variant("aloe", critic={"network": "transformer", "width": 64}),
    "aloe_sharp": Variant("aloe", {"beta": 0.33}),
    "aloe_clip3": Variant("aloe", {"clip": 3.0}, best_of=8),
    "aloe_flat": Variant("aloe", {"clip": 0.0}),  # every chunk that did not fail counts alike: what weights add
    "awr_clip1": Variant("awr", {"clip": 1.0}),  # AWR with ALOE's clip
    "awr_masked": Variant("awr", {"clip": 1.0, "learn_from_failures": False}),  # and with its mask of failures
    "state_td": Variant("state_td"),  # without action-level evaluation
    "monte_carlo_q": Variant("monte_carlo_q"),  # without off-policy bootstrapping
    "bee": Variant("bee"),
    "iql": Variant("iql"),
    "uwac": Variant("uwac"),
    "pessorl": Variant("pessorl"),
    "ota": Variant("ota"),
    "vlearn": Variant("vlearn"),
}
MAIN = ("filtered_bc", "hg_dagger", "awr", "recap", "aloe")


@dataclass(frozen=True)
class Budget:
    """What every method is given."""

    task: str = "transfer_cube"
    demonstrations: int = 6  # few, so that cloning is mediocre: 20 leave little room
    cloning_steps: int = 1500
    iterations: int = 3
    episodes: int = 20  # per iteration, with the human
    evaluation_episodes: int = 100
    time_limit: float = 16.0  # [s] of an episode with the human, who needs time to see and mend
    critic_horizon: int = 25  # steps of a chunk that are executed
    critic_steps: int = 1000
    actor_steps: int = 1000
    actor_batch_size: int = 128  # also of cloning
    operator: str = "practised"


# What is varied of the budget, in a folder of its own within that of the main table.
SETTINGS: dict[str, dict[str, Any]] = {
    "slow": {"operator": "slow"},
    "unsteady": {"operator": "unsteady"},
    "clumsy": {"operator": "clumsy"},
    "insertion": {"task": "insertion", "demonstrations": 50, "time_limit": 24.0},
}
OF_THE_HUMAN = {"operator", "time_limit"}  # fields of `Budget` that demonstrations and cloned policy do not depend on


def once(file: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of `file`, made by `work` if it is not there yet."""
    if not file.exists():
        began = time.time()
        result = {**work(), "wall_s": round(time.time() - began, 1)}
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(result, indent=1))
        os.replace(new, file)
    return json.loads(file.read_text())


def roll_out(
    policy: Path | str, seeds: range, bags: Path | None, budget: Budget, human: bool = False, iteration: int = 0
) -> dict[str, Any]:
    """Episodes in lockstep; bags that an interruption left behind are made again."""
    from aloe_policy.evaluation import RolloutSpec, run_episodes, summarise
    from aloe_robot.control.config import ControlConfig

    if bags is not None:
        shutil.rmtree(bags, ignore_errors=True)
    control = ControlConfig(execute_steps=50 if policy == "scripted" else 25)
    spec = RolloutSpec(str(policy), budget.task, ROBOT, control, bags=bags, iteration=iteration)
    if human:
        spec = replace(spec, operator=budget.operator, time_limit=budget.time_limit)
    began = time.perf_counter()
    rollouts = list(run_episodes(spec, seeds))
    return {"rollouts": summarise(spec, rollouts, time.perf_counter() - began)}


def clone(root: Path, seed: int, budget: Budget) -> dict[str, Any]:
    """Behaviour cloning on demonstrations; the policy is at `root/bc`."""
    import torch

    from aloe_core.robot import load_robot
    from aloe_critic.learner import Learner, LearnerConfig
    from aloe_critic.methods import make_method
    from aloe_critic.replay import StoreReplay
    from aloe_policy.checkpoint import PolicySpec
    from aloe_policy.flow import FlowConfig, FlowPolicy
    from aloe_policy.normalisation import Normalisation
    from aloe_policy.replay import ChunkSamples, ReplayStore

    robot = load_robot(ROBOT)
    store = ReplayStore(root / "demo_store")
    store.ingest([root / "demos"], robot)
    replay = StoreReplay(ChunkSamples(store, 50))
    torch.manual_seed(seed)
    spec = PolicySpec.of(robot, 50, object_dim=store.spec.object_size)
    policy = FlowPolicy(spec, FlowConfig(width=256), Normalisation(replay.statistics()))
    config = LearnerConfig(actor_steps=budget.cloning_steps, actor_batch_size=budget.actor_batch_size, seed=seed)
    method = make_method("filtered_bc", replay.critic_config())
    trained = Learner(method, policy, replay, config, root / "bc_run").run()
    return {"sha256": trained.save(root / "bc", "bc-0")}


def chain(root: Path, seed: int, name: str, budget: Budget) -> None:
    """All iterations of one variant from one seed's demonstrations."""
    import torch

    from aloe_core.robot import load_robot
    from aloe_critic import improvement
    from aloe_critic.learner import LearnerConfig

    torch.set_num_threads(1)
    base, robot, variant = root / f"seed_{seed:02d}", load_robot(ROBOT), VARIANTS[name]
    run = base / name
    steps = {key: getattr(budget, key) for key in ("critic_steps", "actor_steps", "actor_batch_size")}
    learner = LearnerConfig(**{**steps, "seed": seed, **variant.learner})
    config = improvement.ImproveConfig(
        method=variant.method,
        options=variant.options,
        critic=variant.critic,
        learner=learner,
        **{"critic_horizon": budget.critic_horizon, **variant.config},
    )
    policy: Path = base / "bc"
    for number in range(1, budget.iterations + 1):
        first = 20_000 + 1000 * seed + 100 * number
        shared = base if number == 1 else run  # the cloned policy's episodes are everybody's
        bags = shared / f"bags_{number}"
        file = shared / f"rollouts_{number}.json"
        seeds = range(first, first + budget.episodes)
        once(file, lambda p=policy, s=seeds, b=bags, n=number: roll_out(p, s, b, budget, human=True, iteration=n))
        made = run / f"{number:03d}" / improvement.RESULT_FILE
        if not made.exists():
            store, _ = improvement.ingest(
                run, [base / "demos", base / "bags_1", *sorted(run.glob("bags_*"))], policy, robot
            )
            improvement.improve(run, store, policy, robot, config)
        policy = run / f"{number:03d}" / improvement.POLICY
    evaluate(run / "evaluation.json", policy, budget)
    if variant.best_of:
        made = improvement.read_result(policy.parent)
        best = policy.parent / "best_of_n"
        if not best.exists():
            improvement.write_best_of_n(made, variant.best_of, robot)
        evaluate(run / "evaluation_best.json", best, budget)


def evaluate(file: Path, policy: Path, budget: Budget) -> None:
    """The same episodes for everybody, without a human."""
    once(file, lambda: roll_out(policy, range(50_000, 50_000 + budget.evaluation_episodes), None, budget))


def prepare_cloned(root: Path, seed: int, budget: Budget) -> Path:
    """Folder of a seed with its demonstrations, the cloned policy and its evaluation."""
    base = root / f"seed_{seed:02d}"
    first = 10_000 + 100 * seed
    seeds = range(first, first + budget.demonstrations)
    once(base / "demos.json", lambda: roll_out("scripted", seeds, base / "demos", budget))
    once(base / "bc.json", lambda: clone(base, seed, budget))
    evaluate(base / "bc_evaluation.json", base / "bc", budget)
    return base


def adopt(base: Path, other: Path) -> None:
    """What `prepare_cloned` made in `other`, for a run that differs in its human only: linked, not made again."""
    for name in ("demos", "bc"):
        if not (base / name).exists():
            shutil.rmtree(base / f"{name}.new", ignore_errors=True)
            shutil.copytree(other / name, base / f"{name}.new", copy_function=os.link)
            os.replace(base / f"{name}.new", base / name)
    for name in ("demos.json", "bc.json", "bc_evaluation.json"):
        shutil.copyfile(other / name, base / name)


def prepare(root: Path, seed: int, budget: Budget, main_root: Path | None = None) -> None:
    """What all variants of a seed share: demonstrations, the cloned policy, its evaluation and its first episodes with the human.

    `main_root`: folder of the main table, if the cloned policy is the same there.
    """
    import torch

    torch.set_num_threads(1)
    base = root / f"seed_{seed:02d}"
    if main_root is None:
        prepare_cloned(root, seed, budget)
    elif not (base / "bc_evaluation.json").exists():
        adopt(base, prepare_cloned(main_root, seed, Budget()))
    first = 20_000 + 1000 * seed + 100
    seeds = range(first, first + budget.episodes)
    once(
        base / "rollouts_1.json", lambda: roll_out(base / "bc", seeds, base / "bags_1", budget, human=True, iteration=1)
    )


def main(
    out: Path = Path("runs/evidence"),
    seeds: int = 8,
    variants: tuple[str, ...] = MAIN,
    jobs: int = 2,
    setting: str = "",
    first: int = 0,
) -> None:
    """Does whatever of the work is not done yet.

    Args:
        out: folder for bags, policies and results; about 1 GB per seed.
        seeds: number of seeds.
        variants: rows of the table, see `VARIANTS`.
        jobs: processes.
        setting: what is varied of the budget, see `SETTINGS`; its results are in the folder of that name within `out`.
        first: number of the first seed.
    """
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown:
        raise SystemExit(f"evidence: no variant '{unknown[0]}'; there are: {', '.join(VARIANTS)}")
    if setting and setting not in SETTINGS:
        raise SystemExit(f"evidence: no setting '{setting}'; there are: {', '.join(SETTINGS)}")
    changes = SETTINGS.get(setting, {})
    budget = replace(Budget(), **changes)
    main_root = out if changes and changes.keys() <= OF_THE_HUMAN else None
    out = out / setting
    out.mkdir(parents=True, exist_ok=True)
    if once(out / "budget.json", lambda: {"budget": asdict(budget)})["budget"] != asdict(budget):
        raise SystemExit(f"evidence: {out} holds runs of another budget, see budget.json there; choose another folder")
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        prepared = [pool.submit(prepare, out, first + number, budget, main_root) for number in range(min(seeds, jobs))]
        chains: list[Future[None]] = []
        for number in range(seeds):  # seed after seed, so that an interruption leaves whole pairs
            seed = first + number
            prepared[number].result()
            print(f"seed {seed}: demonstrations and cloned policy", flush=True)
            for name in variants:
                chains.append(pool.submit(chain, out, seed, name, budget))
                chains[-1].add_done_callback(partial(tell, out, seed, name))
            if len(prepared) < seeds:
                prepared.append(pool.submit(prepare, out, first + len(prepared), budget, main_root))
    failed = sum(future.exception() is not None for future in chains)
    if failed:
        raise SystemExit(f"evidence: {failed} of {len(chains)} chains failed, see above")


def tell(out: Path, seed: int, name: str, future: Future[None]) -> None:
    """Says at once what a chain came to."""
    if error := future.exception():
        print(f"seed {seed}: {name} FAILED: {error}", flush=True)
        return
    rate = json.loads((out / f"seed_{seed:02d}" / name / "evaluation.json").read_text())["rollouts"]["success"]
    print(f"seed {seed}: {name} {100 * rate:.0f} %", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
