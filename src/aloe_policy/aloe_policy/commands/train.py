"""`aloe train bc`: behaviour cloning from bags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm  # type: ignore[import-untyped]

from aloe_core.errors import AloeError


def bc(
    bags: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    output: Path,
    policy: str = "",
    config: Path | None = None,
    resume: bool = False,
    store: Path | None = None,
    workers: int = 1,
    threads: int = 0,
) -> None:
    """Train a policy on the good episodes of bags: a fresh flow-matching policy, or any that is there already.

    Several GPUs or processes: `accelerate launch -m aloe_core.cli train bc ...`.

    Args:
        bags: folders that hold episodes, at any depth.
        output: folder of the run; the policy is written to its sub-folder `policy`.
        policy: checkpoint to go on from (fine-tuning): a folder, or `lerobot:<folder>` as LeRobot writes it; it keeps its own cameras, chunks and network.
        config: YAML file of `BcConfig` keys; without one the defaults: state observations.
        resume: continue the run that is in `output`.
        store: folder of the replay store, to share it between runs; without one `output`/replay.
        workers: processes that read bags.
        threads: CPU threads; 0: as many as torch chooses.
    """
    from aloe_policy.bc_config import BcConfig, load_config
    from aloe_policy.train_bc import POLICY_FOLDER, STATE_FILE

    chosen = load_config(config) if config else BcConfig()
    if (output / STATE_FILE).exists() != resume:
        what = (
            "holds no run to resume"
            if resume
            else "holds a run already: continue it with --resume, or choose another folder"
        )
        raise AloeError(f"{output} {what}")
    if not resume and (output / POLICY_FOLDER).exists():
        raise AloeError(f"{output / POLICY_FOLDER} exists already; choose another folder as output")

    import torch

    from aloe_core.robot import load_robot
    from aloe_policy.demonstrations import open_demonstrations
    from aloe_policy.train_bc import BcTrainer, check_run, launched_processes, make_policy
    from aloe_policy.trainable import load_trainable

    processes = launched_processes()
    main = processes.is_main_process
    if threads:
        torch.set_num_threads(threads)
    robot = load_robot(chosen.robot)
    start, parent = None, ""
    if policy:
        start, parent = load_trainable(policy, robot)
        start.check_trainable()
        chosen.check_continues(start.spec, policy)
    check_run(chosen, robot, processes.num_processes, start)
    folder = store or output / "replay"
    with (
        processes.main_process_first(),
        processes.local_main_process_first(),  # each machine may have a disk of its own
        _bar("reading bags", "bag", main) as bags_bar,
        _bar("encoding images", "image", main) as images_bar,
    ):
        shown = _shown(bags_bar), _shown(images_bar), tqdm.write if main else lambda text: None
        data = open_demonstrations(folder, bags, robot, chosen, workers, *shown, policy=start)
    trainer = BcTrainer(start or make_policy(chosen, robot, data), data, chosen, output, parent, processes)
    if resume:
        trainer.resume()
    if main:
        trained, frozen = (
            sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad == wanted) / 1e6
            for wanted in (True, False)
        )
        still = f" and {frozen:.2f} M frozen" if frozen else ""
        print(f"{len(data)} samples; {trained:.2f} M weights{still}; {trainer.accelerator.device}")
    with tqdm(
        total=chosen.steps, initial=trainer.step, desc="training", unit="step", disable=None if main else True
    ) as bar:

        def log(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}")
            bar.update(step - bar.n)
            if bar.disable and step % chosen.save_every == 0:
                print(f"step {step}: loss {loss:.4f}", flush=True)

        trainer.run(log)
    if main:
        print(f"policy: {output / POLICY_FOLDER}")


def _bar(title: str, unit: str, wanted: bool) -> tqdm:
    """A progress bar that appears with its first progress, if `wanted` and on a terminal."""
    return tqdm(desc=title, unit=unit, disable=None if wanted else True, delay=0.5)


def _shown(bar: tqdm) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show
