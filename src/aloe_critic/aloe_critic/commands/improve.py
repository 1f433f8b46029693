"""`aloe improve`: one improvement of a policy from recorded bags."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from aloe_core.errors import AloeError


def improve(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    bags: tuple[Path, ...] = (),
    policy: Path | None = None,
    robot: str = "aloha_sim",
    method: str = "",
    critic_steps: int = -1,
    actor_steps: int = -1,
    seed: int = -1,
    protocol: Literal["aloe", "hil_serl", "hg_dagger", ""] = "",
    options: tuple[str, ...] = (),
    config: Path | None = None,
    best_of: int = 0,
    threads: int = 0,
    workers: int = 1,
    json: Path | None = None,
) -> None:
    """Improve a policy from recorded bags: the critic learns which chunks were better than the policy's own, the policy learns from those.

    Each call does one iteration in the run's folder (001, 002, ...) and starts from the one before; an interrupted call is continued, bit for bit.
    Several GPUs or machines: `accelerate launch -m aloe_core.cli improve ...`.

    Args:
        run: folder of the run.
        bags: folders that hold episodes, at any depth; those seen before are not read again.
        policy: checkpoint to improve: a folder, or `lerobot:<folder>` as LeRobot writes it; by default the run's newest.
        robot: name or file of the robot description.
        method: aloe, iql, bee, uwac, pessorl, vlearn, ota, state_td, monte_carlo_q, awr, recap, filtered_bc, hg_dagger; by default that of the configuration.
        critic_steps: N_Q; by default that of the configuration.
        actor_steps: N_pi; by default that of the configuration.
        seed: by default that of the configuration.
        protocol: how interventions are read; by default that of the configuration, else aloe.
        options: of the method, as key=value, for example beta=0.5.
        config: YAML file of `ImproveConfig` keys.
        best_of: also write a checkpoint `best_of_n` that acts with the best of so many chunks; 0: none.
        threads: CPU threads; 0: as many as torch chooses.
        workers: processes that read bags.
        json: write the result to this file.
    """
    import torch
    from tqdm import tqdm  # type: ignore[import-untyped]

    from aloe_core.robot import load_robot
    from aloe_critic import improvement
    from aloe_critic.improve_config import load_config, overridden
    from aloe_critic.learner import Progress
    from aloe_policy.replay import ReplayStore, replay_report
    from aloe_policy.train_bc import launched_processes

    if threads:
        torch.set_num_threads(threads)
    chosen = overridden(
        load_config(config) if config else improvement.ImproveConfig(),
        method=method or None,
        protocol=protocol or None,
        options=options,
        critic_steps=critic_steps if critic_steps >= 0 else None,
        actor_steps=actor_steps if actor_steps >= 0 else None,
        seed=seed if seed >= 0 else None,
    )
    described = load_robot(robot)
    accelerator = launched_processes()
    main = accelerator.is_main_process
    if bags:
        with tqdm(desc="reading bags", unit="bag", disable=None if main else True) as bar:

            def read(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            with accelerator.main_process_first():
                store, report = improvement.ingest(run, bags, policy, described, read, workers)
        if main:
            print(report.text())
    else:
        store = ReplayStore(run / improvement.STORE)
    if not store.episodes:
        raise AloeError(f"{run} holds no episodes yet: name folders with bags by --bags")
    if main:
        print(replay_report(store).text())
    bar = tqdm(disable=None if main else True)
    stage = ""

    def show(progress: Progress) -> None:
        nonlocal stage
        if progress.stage != stage:
            stage = progress.stage
            bar.reset(progress.total)
            bar.set_description(stage)
        bar.update(progress.step - bar.n)
        if progress.loss == progress.loss:
            bar.set_postfix_str(f"loss {progress.loss:.4g}", refresh=False)

    result = improvement.improve(run, store, policy, described, chosen, show, accelerator)
    bar.close()
    if not main:
        return
    facts = asdict(result)
    if best_of:
        facts["best_of_n"] = improvement.write_best_of_n(result, best_of, described)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(jsonlib.dumps(facts, indent=2) + "\n")
    print(
        f"{result.version} from {result.parent_version} by {result.method}: {result.transitions} chunks of {result.episodes} episodes "
        f"({result.successes} successes), {100 * result.used_share:.0f} % used, worth {100 * result.effective_share:.0f} % of them after weighting"
    )
    print(f"policy: {result.policy}")
