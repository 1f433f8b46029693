"""`aloe ope`: what policies are worth, judged from recorded bags."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from aloe_core.errors import AloeError

if TYPE_CHECKING:
    from aloe_critic.evaluation import Evaluation


def ope(
    bags: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    policy: tuple[Path, ...],
    work: Path,
    critic: Path | None = None,
    truth: str = "",
    robot: str = "aloha_sim",
    config: Path | None = None,
    critic_steps: int = -1,
    estimators: tuple[Literal["fqe", "monte_carlo", "va_ope", "dpe"], ...] = ("fqe", "monte_carlo", "va_ope", "dpe"),
    min_effective: float = 10.0,
    threads: int = 0,
    json: Path | None = None,
) -> None:
    """Estimate the value of policies from bags that others collected, by up to four estimators side by side.

    Values are discounted returns from the first observation, in units of the scaled reward: 0 is best, -1 a success that never comes.
    Intervals are over episodes; that of `fqe` does not know the critic's own error: compare its V with the return of the policy's own episodes.
    An estimator that the data do not carry refuses and says why.

    Args:
        bags: folders that hold episodes, at any depth.
        policy: checkpoints to judge; results are named by the folder, or, where that is `policy`, by the one above, and by as many above that as make the
            names differ.
        work: folder for the store and the critics, one for every version of a policy and choice of bags; continued when interrupted.
        critic: use this critic as it is, instead of training one for every policy.
        truth: known values or success rates of two of the policies or more, as name=number,name=number; adds rank correlation, regret, error and calibration.
        robot: name or file of the robot description.
        config: YAML file of `ImproveConfig` keys.
        estimators: `fqe` fitted-Q evaluation with chunks; `monte_carlo` mean return where a bag is the policy's own; `va_ope` linear, variance-aware, on the
            critic's features; `dpe` returns weighted by estimated ratios of chunk densities.
        min_effective: effective sample size below which `va_ope` (chunks) and `dpe` (episodes) refuse.
        critic_steps: by default that of the configuration.
        threads: CPU threads; 0: as many as torch chooses.
        json: write the results to this file.
    """
    import torch

    from aloe_core.robot import load_robot
    from aloe_critic import improvement
    from aloe_critic.evaluation import evaluate_policy, known_success
    from aloe_critic.improve_config import load_config
    from aloe_critic.ope import compare

    if threads:
        torch.set_num_threads(threads)
    described = load_robot(robot)
    chosen = load_config(config) if config else improvement.ImproveConfig()
    if critic_steps >= 0:
        chosen = replace(chosen, learner=replace(chosen.learner, critic_steps=critic_steps))
    named = policy_names(policy)
    known = known_success(truth) if truth else {}
    if unknown := set(known) - set(named):
        raise AloeError(f"--truth names {', '.join(sorted(unknown))}; the policies are {', '.join(named)}")
    if known and len(known) < 2:
        raise AloeError(f"--truth needs two of the policies or more: {', '.join(named)}; it names {', '.join(known)}")
    results: dict[str, Evaluation] = {}
    for name, folder in named.items():
        store, report = improvement.ingest(work, bags, folder, described)
        if not results:
            print(report.text())
        found = evaluate_policy(
            store,
            folder,
            described,
            chosen,
            work,
            critic,
            estimators=estimators,
            least_effective=min_effective,
            episodes=report.episodes,
        )
        results[name] = found
        for line in lines(found, estimators):
            print(f"{name}: {line}")
    out: dict[str, Any] = {"policies": {name: r.as_dict() for name, r in results.items()}}
    if known:
        out["comparison"] = {}
        for estimator in estimators:
            values = {name: e.value for name, r in results.items() if (e := r.estimate(estimator)) is not None}
            if len(set(values) & set(known)) < 2:
                print(f"{estimator} against the truth: fewer than two policies have both")
                continue
            scores = out["comparison"][estimator] = compare(values, known)
            numbers = ", ".join(f"{key} {v:.3g}" for key, v in scores.items() if key != "calibration")
            print(f"{estimator} against the truth: {numbers}")
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(jsonlib.dumps(out, indent=2) + "\n")


def policy_names(folders: Sequence[Path]) -> dict[str, Path]:
    """A name for each policy -> its folder: the folder's name, or, where that is `policy`, the one above; where several share it, the end of the path that they
    do not share. A folder that is given twice is there once."""
    given = {folder.resolve(): folder for folder in folders}
    parts = {path: (path.parent if path.name == "policy" else path).parts for path in given}
    named = {}
    for path, own in parts.items():
        others = [other for p, other in parts.items() if p != path]
        depths = (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        depth = next(depths, None)
        named[str(path if depth is None else Path(*own[-depth:]))] = given[path]
    return named


LABELS = {
    "fqe": "fitted Q",
    "monte_carlo": "own episodes",
    "va_ope": "linear, variance-aware",
    "dpe": "estimated ratios",
}


def lines(found: Evaluation, estimators: Sequence[str]) -> Iterator[str]:
    """What each estimator says."""
    for name in estimators:
        extra = ""
        if name == "fqe":
            extra = f", head spread {found.head_std:.3f}"
        if name == "monte_carlo" and found.on_policy_success is not None:
            extra = f", success {100 * found.on_policy_success:.0f} %"
            if found.on_policy_unknown:
                extra += f"; the value is without {found.on_policy_unknown} episodes whose return is not known"
        if name in found.refused:
            yield f"{LABELS[name]}: refused, {found.refused[name]}{extra}"
            continue
        yield f"{LABELS[name]} {found.estimate(name)}{extra}"
        if name == "fqe" and found.calibration:
            points = ", ".join(f"{v:.3f} {followed:.3f} ({count})" for v, followed, count in found.calibration)
            yield f"{LABELS[name]} against own episodes, V, return (episodes): {points}"
