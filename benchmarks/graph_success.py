"""How often does a policy succeed through the ROS graph, and is that what it does in lockstep without ROS?

    python benchmarks/graph_success.py
    python benchmarks/graph_success.py --policy runs/bc/policy --tasks transfer_cube --seeds 100 --first 10000

For each task the graph of `sim_robot.launch.yaml` is started (separate processes: chunks in, commands out; simulated time, as fast as it goes, no
cameras) and runs one episode per seed, without a human. Then `aloe rollout` runs the same seeds with the same `execute_steps`. The results do not depend on
the machine's load; with two cores it takes a few minutes. Prints a Markdown table, and the seeds on which the two do not agree on outcome and length.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from aloe_core.errors import AloeError
from aloe_core.statistics import success_text
from aloe_critic.demo import end_session
from aloe_robot.control.config import ControlConfig
from aloe_robot.sim.tasks import TASKS

ALOE = [sys.executable, "-m", "aloe_core.cli"]
LAUNCH = Path(__file__).resolve().parents[1] / "launch" / "sim_robot.launch.yaml"


def main(
    out: Path = Path("runs/graph_success"),
    policy: str = "scripted",
    tasks: tuple[str, ...] = tuple(TASKS),
    seeds: int = 20,
    first: int = 0,
) -> None:
    """Runs both for every task and prints the table.

    Args:
        policy: the scripted expert, or a checkpoint.
        tasks: names of tasks.
        out: folder for the results and the graph's output.
        seeds: episodes per task.
        first: seed of the first one; the others count up from it.
    """
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",  # nobody else on the network sees this robot
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "OMP_NUM_THREADS": "1",
    }
    rows, differences = (
        ["| task | through the graph | in lockstep | same outcome and length |", "|---|---|---|---|"],
        [],
    )
    for task in tasks:
        same = ("--task", task, "--seed", first)
        with graph(task, policy, out / f"{task}-graph.log", environment):
            ran = aloe(out / f"{task}-graph.json", environment, "episodes", "--count", seeds, "--no-record", *same)
        steps = ("--execute-steps", ControlConfig.execute_steps, "--policy", policy)
        expected = aloe(out / f"{task}-lockstep.json", environment, "rollout", "--episodes", seeds, *steps, *same)
        unlike = [seed for seed in expected if ran[seed] != expected[seed]]
        differences += [f"{task} {seed}: graph {ran[seed]}, lockstep {expected[seed]}" for seed in unlike]
        rows.append(f"| {task} | {success(ran)} | {success(expected)} | {seeds - len(unlike)} of {seeds} |")
    print("\n".join(["", *rows, *differences]))


@contextmanager
def graph(task: str, policy: str, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The launched robot with the policy; its output goes to `log`."""
    arguments = (
        *(f"task:={task}", f"policy:={policy}", "operator:=none", "cameras:=false"),
        *("record:=false", "real_time_factor:=0"),
    )
    with open(log, "wb") as file:
        command = [*ALOE, "up", str(LAUNCH), *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        yield
        if process.poll() is not None:
            raise AloeError(f"the graph ended by itself; see {log}")
    finally:
        end_session(process)


def aloe(file: Path, environment: Mapping[str, str], *arguments: object) -> dict[int, tuple[str, int]]:
    """Runs a command that writes its episodes to `file`. Returns outcome and number of steps by seed."""
    command = [*ALOE, *map(str, arguments), "--json", str(file)]
    subprocess.run(command, env=environment, check=True)
    episodes: list[dict[str, Any]] = json.loads(file.read_text())["episodes"]
    return {e["seed"]: (e["outcome"], e["steps"]) for e in episodes}


def success(episodes: Mapping[int, tuple[str, int]]) -> str:
    """Rate with its 95 % interval."""
    return success_text(sum(outcome == "success" for outcome, _ in episodes.values()), len(episodes))


if __name__ == "__main__":
    tyro.cli(main)
