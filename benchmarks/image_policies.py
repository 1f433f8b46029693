"""How many demonstrations does a policy with cameras need, and what limits it? A table for docs/policy.md.

    python benchmarks/image_policies.py                # records, trains, judges; resumes
    python benchmarks/image_policies.py --report-only  # the table of whatever is finished

Every number of demonstrations gives two policies, one that looks through the cameras and one that is told where the object is: what lies between them is
the price of seeing. The one with cameras is also judged on the resets of its own demonstrations: what lies between those and new ones is memory. The frozen
encoder is asked apart from any policy where the object is at the start of an episode, by ridge regression from its features, on episodes it was not fitted to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from evidence import once

from aloe_core.vocabulary import Outcome

ROOT = Path(__file__).resolve().parent.parent
FIRST = 200_000  # seed of the first demonstration; the policies are judged on seeds from 0
COUNTS = (50, 100, 200)  # demonstrations
APART = 40  # demonstrations after those, for the encoder's test
BATCH = 20  # demonstrations recorded at a time; an interruption costs one batch
RIDGE = tuple(10.0**k for k in range(-2, 7))  # chosen by five-fold cross-validation among the episodes that are fitted


def aloe(*arguments: object) -> None:
    """A command as a user gives it."""
    subprocess.run([sys.executable, "-m", "aloe_core.cli", *map(str, arguments)], check=True, cwd=ROOT)


def record(out: Path, jobs: int) -> list[Path]:
    """Bags of all demonstrations, in the order of their seeds."""
    for number in range((max(COUNTS) + APART) // BATCH):
        bags = out / "bags" / f"{number:02d}"
        spec = ("--policy", "scripted", "--episodes", BATCH, "--seed", FIRST + number * BATCH, "--cameras")
        once(out / f"bags_{number:02d}.json", lambda b=bags, s=spec: _record(b, s, jobs))
    return sorted((out / "bags").glob("*/*"), key=lambda bag: bag.name)


def _record(bags: Path, spec: tuple[object, ...], jobs: int) -> dict[str, Any]:
    shutil.rmtree(bags, ignore_errors=True)
    aloe("rollout", *spec, "--bags", bags, "--jobs", jobs)
    return {}


def read(out: Path, bags: list[Path], kind: str, workers: int) -> dict[str, Any]:
    """Brings the store of `kind` up to date: with cameras, images are read and encoded."""
    from aloe_core.robot import load_robot
    from aloe_policy.bc_config import load_config
    from aloe_policy.demonstrations import open_demonstrations

    config = load_config(ROOT / f"config/train/bc_{kind}.yaml")
    data = open_demonstrations(out / f"store_{kind}", bags, load_robot(config.robot), config, workers)
    return {"samples": len(data)}


def train(out: Path, bags: list[Path], kind: str, threads: int) -> dict[str, Any]:
    """Behaviour cloning; the policy is at `out/policy`."""
    resume = ("--resume",) if (out / "training.safetensors").exists() else ()
    config, store = ROOT / f"config/train/bc_{kind}.yaml", out.parent / f"store_{kind}"
    aloe("train", "bc", *bags, "--output", out, "--config", config, "--store", store, "--threads", threads, *resume)
    return {"threads": threads}


def judge(policy: Path, first: int, episodes: int, file: Path, jobs: int) -> dict[str, Any]:
    """Episodes in lockstep from resets `first` on."""
    aloe("rollout", "--policy", policy, "--episodes", episodes, "--seed", first, "--jobs", jobs, "--json", file)
    return {"rollouts": json.loads(file.read_text())}


def locate(out: Path, bags: list[Path], count: int) -> dict[str, Any]:
    """Error of the object's place on the table, read out of the encoder's features of the first observation: median and 90 % [mm]."""
    from aloe_policy.bc_config import load_config
    from aloe_policy.replay import ReplayStore

    encoder = load_config(ROOT / "config/train/bc_image.yaml").policy.encoder
    seen, known = ReplayStore(out / "store_image"), ReplayStore(out / "store_state")
    place = {Path(e.bag).name: known.arrays["object_state"][e.start, :2] for e in known.episodes}
    feature = {}
    for episode in seen.episodes:
        views = seen.observe(np.array([episode.start]), encoder)["features"]
        feature[Path(episode.bag).name] = np.concatenate([views[c].astype(np.float64).ravel() for c in sorted(views)])
    names = [bag.name for bag in bags]
    fitted, apart = names[:count], names[max(COUNTS) : max(COUNTS) + APART]
    x, y = np.stack([feature[n] for n in fitted]), np.stack([place[n] for n in fitted]).astype(np.float64)
    folds = np.arange(count) % 5

    def missed(amount: float) -> float:
        wrong = [_ridge(x[folds != f], y[folds != f], x[folds == f], amount) - y[folds == f] for f in range(5)]
        return float(np.square(np.concatenate(wrong)).sum())

    best = min(RIDGE, key=missed)
    there = np.stack([place[n] for n in apart])
    errors = 1e3 * np.linalg.norm(_ridge(x, y, np.stack([feature[n] for n in apart]), best) - there, axis=1)
    blind = 1e3 * np.linalg.norm(y.mean(axis=0) - there, axis=1)
    return {
        "median_mm": float(np.median(errors)),
        "p90_mm": float(np.quantile(errors, 0.9)),
        "blind_median_mm": float(np.median(blind)),
        "ridge": best,
    }


def _ridge(x_ND: np.ndarray, y_NK: np.ndarray, new_MD: np.ndarray, amount: float) -> np.ndarray:
    """Predictions `[M, K]` of a linear regression with a penalty, in its dual: there are more features than episodes."""
    mean_D, mean_K = x_ND.mean(axis=0), y_NK.mean(axis=0)
    centred = x_ND - mean_D
    dual = np.linalg.solve(centred @ centred.T + amount * np.eye(len(x_ND)), y_NK - mean_K)
    return (new_MD - mean_D) @ (centred.T @ dual) + mean_K


def report(out: Path) -> str:
    """The table, as Markdown."""
    head = (
        *(
            "demonstrations",
            "cameras: new resets [%]",
            "resets of the demonstrations [%]",
            "told where: new resets [%]",
            "resets on which both fail",
        ),
        *(
            "place out of the features, median and 90 % (median without looking) [mm]",
            "training with cameras [min]",
            "when told",
        ),
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    reading, other = 0.0, 0
    for count in COUNTS:
        files = {
            name: out / f"{name}_{count}.json" for name in ("image_new", "image_own", "state_new", "place", "read")
        }
        trained = [out / f"{kind}_{count}.json" for kind in ("image", "state")]
        if not all(f.exists() for f in (*files.values(), *trained)):
            continue
        found = {name: json.loads(f.read_text()) for name, f in files.items()}
        reading += found["read"]["wall_s"]
        seeing, told = (json.loads(f.read_text())["wall_s"] / 60 for f in trained)
        rates = [share(found[n]["rollouts"]) for n in ("image_new", "image_own", "state_new")]
        missed = [failures(found[n]["rollouts"]) for n in ("image_new", "state_new")]
        judged = [found[n]["rollouts"] for n in ("image_new", "image_own", "state_new")]
        other += sum(
            n for r in judged for outcome, n in r["failures"].items() if outcome != Outcome.TIMEOUT.name.lower()
        )
        place = "{median_mm:.1f}, {p90_mm:.1f} ({blind_median_mm:.0f})".format(**found["place"])
        lines.append(
            f"| {count} | {' | '.join(rates)} | {len(missed[0] & missed[1])} | {place} | {seeing:.1f}, after {reading / 60:.1f} of reading | {told:.1f} |"
        )
    return "\n".join([*lines, "", f"Failed episodes that did not run out of time: {other}."])


def share(rollouts: dict[str, Any]) -> str:
    """Successes with their 95 % interval."""
    low, high = rollouts["interval"]
    return f"{round(rollouts['success'] * rollouts['n'])}/{rollouts['n']} ({100 * low:.0f}-{100 * high:.0f} %)"


def failures(rollouts: dict[str, Any]) -> set[int]:
    """Seeds of the resets that were failed."""
    return {episode["seed"] for episode in rollouts["episodes"] if episode["outcome"] != Outcome.SUCCESS.name.lower()}


def main(out: Path = Path("runs/image_policies"), jobs: int = 2, report_only: bool = False) -> None:
    """Does whatever of the work is not done yet, and prints the table.

    Args:
        out: folder for bags, stores, policies and results; about 10 GB.
        jobs: processes, or threads of one process.
        report_only: only print the table.
    """
    out = out.resolve()
    if not report_only:
        out.mkdir(parents=True, exist_ok=True)
        bags = record(out, jobs)
        for count in COUNTS:
            used = bags[:count]
            for kind in ("image", "state"):
                name = f"read_{count}.json" if kind == "image" else f"read_state_{count}.json"
                once(out / name, lambda u=used, k=kind: read(out, u, k, jobs))
                once(out / f"{kind}_{count}.json", lambda u=used, k=kind, c=count: train(out / f"{k}_{c}", u, k, jobs))
                work = {"new": (0, 100), "own": (FIRST, 50)} if kind == "image" else {"new": (0, 100)}
                for where, (first, episodes) in work.items():
                    file, policy = out / f"{kind}_{where}_{count}.json", out / f"{kind}_{count}" / "policy"
                    made = out / f"rollouts_{kind}_{where}_{count}.json"
                    once(file, lambda p=policy, f=first, e=episodes, m=made: judge(p, f, e, m, jobs))
        read(out, bags, "image", jobs)
        read(out, bags, "state", jobs)
        for count in COUNTS:
            once(out / f"place_{count}.json", lambda c=count: locate(out, bags, c))
    print(report(out))


if __name__ == "__main__":
    began = time.monotonic()
    tyro.cli(main)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")
