"""The whole loop on a simulated robot, as a sequence of the commands a person would type.

demonstrations -> behaviour cloning -> the ROS 2 graph with a simulated operator who takes over -> bags -> critic and improved policy -> hot reload ->
evaluation before and after -> report. Every number in the summary is read from what these commands wrote.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aloe_core.errors import AloeError
from aloe_core.statistics import success_text

ALOE = [sys.executable, "-m", "aloe_core.cli"]
EVALUATION_SEED = 10_000  # resets the policy is judged on; never collected from
DEMONSTRATION_SEED = 100_000


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demonstration; the defaults take some ten minutes on two cores."""

    task: str = "transfer_cube"
    demonstrations: int = 6  # few, so that cloning alone is mediocre
    rounds: int = 2  # of episodes under ROS 2 and an improvement
    episodes: int = 20  # per round, with the operator
    new_episodes: int = 4  # with the improved policy, in the same running graph
    evaluation_episodes: int = 100
    time_limit: float = 16.0  # [s] of an episode with the operator, who needs time to see and mend
    operator: str = "practised"
    method: str = "aloe"
    bc_steps: int = 1500
    critic_steps: int = 1000
    actor_steps: int = 1000
    actor_batch_size: int = 128  # also of cloning
    critic_horizon: int = 25  # the steps of a chunk that the control loop executes
    seed: int = 0
    jobs: int = 2  # processes for lockstep evaluation


class Demo:
    """One run in `folder`, which must not exist."""

    def __init__(self, folder: Path, config: DemoConfig, launch: Path) -> None:
        self.folder, self.config, self.launch = folder, config, launch
        self.seconds: dict[str, float] = {}
        self._stage, self._stages = 0, 6 + 2 * config.rounds
        self._env = {
            **os.environ,
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",  # nobody else on the network sees this robot
            "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def run(self) -> dict[str, Any]:
        """Everything; returns the summary that is also written to `summary.json`.

        Raises:
            AloeError: a command failed; the message names it.
        """
        c, folder = self.config, self.folder
        bags, policy, run = folder / "bags", folder / "bc" / "policy", folder / "learner"
        folder.mkdir(parents=True)
        with self._stage_of("demonstrations", f"{c.demonstrations} episodes of the scripted expert"):
            self._aloe(
                *("rollout", "--policy", "scripted", "--task", c.task, "--episodes", c.demonstrations),
                *("--seed", DEMONSTRATION_SEED + 1000 * c.seed, "--bags", bags / "demonstrations"),
            )
        with self._stage_of("cloning", f"{c.bc_steps} steps of behaviour cloning"):
            settings = folder / "bc.yaml"
            settings.write_text(
                f"steps: {c.bc_steps}\nbatch_size: {c.actor_batch_size}\nseed: {c.seed}\npolicy: {{width: 256, layers: 3}}\n"
            )
            self._aloe("train", "bc", bags / "demonstrations", "--config", settings, "--output", folder / "bc")
        before = self._evaluate("before", policy)
        learner = folder / "learner.yaml"
        steps = f"{{critic_steps: {c.critic_steps}, actor_steps: {c.actor_steps}, actor_batch_size: {c.actor_batch_size}, seed: {c.seed}}}"
        learner.write_text(f"method: {c.method}\ncritic_horizon: {c.critic_horizon}\nlearner: {steps}\n")
        parameters = folder / "parameters.yaml"
        parameters.write_text(f"/**/learner_node:\n  ros__parameters: {{config: {learner}}}\n")
        with self._graph(policy, bags, run, parameters):
            collected, versions = [], [before["policy_version"]]
            for number in range(c.rounds):
                of = f"round {number + 1} of {c.rounds}: "
                first = 1000 * c.seed + number * c.episodes
                with self._stage_of("episodes", f"{of}{c.episodes} under ROS 2; the operator takes over when needed"):
                    collected.append(self._episodes(f"collected-{number + 1}", c.episodes, first))
                what = f"{of}{c.critic_steps} critic and {c.actor_steps} actor steps; then the robot reloads"
                with self._stage_of("learning", what):
                    file = folder / f"learned-{number + 1}.json"
                    self._aloe("learn", "--json", file)
                    learned = json.loads(file.read_text())
                    versions.append(learned["version"])
            with self._stage_of("renewed", f"{c.new_episodes} episodes of the running robot with its newest policy"):
                renewed = self._episodes("renewed", c.new_episodes, 1000 * c.seed + c.rounds * c.episodes)
        after = self._evaluate("after", Path(learned["checkpoint"]))
        with self._stage_of("report", "figures and pages"):
            self._aloe("report", run)
        report = next(run.rglob("*.html"))
        rounds = [*collected, renewed]
        episodes = [episode for done in rounds for episode in done["episodes"]]
        summary = {
            "success_before": before,
            "success_after": after,
            "takeover_rate": sum(e["interventions"] > 0 for e in episodes) / len(episodes),
            "takeover_rates": [done["takeover_rate"] for done in rounds],  # before, between and after improvements
            "episodes": len(episodes),
            "interventions": sum(e["interventions"] for e in episodes),
            "bags": str(bags),
            "policy_versions": versions,
            "report": str(report),
            "config": c.__dict__,
            "wall_seconds": {name: round(s, 1) for name, s in self.seconds.items()},
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        return summary

    def _evaluate(self, name: str, policy: Path) -> dict[str, Any]:
        n = self.config.evaluation_episodes
        file = self.folder / f"{name}.json"
        with self._stage_of(f"evaluation_{name}", f"{n} episodes of the policy alone, without ROS"):
            self._aloe(
                *("rollout", "--policy", policy, "--task", self.config.task, "--episodes", n),
                *("--seed", EVALUATION_SEED, "--jobs", self.config.jobs, "--json", file),
                quiet=True,
            )
        result = json.loads(file.read_text())
        version = json.loads((policy / "policy.json").read_text())
        return {
            "success": result["success"],
            "n": result["n"],
            "interval": result["interval"],
            "successes_per_hour": result["successes_per_hour"],
            "policy_version": f"{version['name']}-{version['sha256'][:8]}",
        }

    def _episodes(self, name: str, count: int, seed: int) -> dict[str, Any]:
        file = self.folder / f"{name}.json"
        self._aloe(
            *("episodes", "--task", self.config.task, "--count", count, "--seed", seed),
            *("--time-limit", self.config.time_limit, "--name", name, "--json", file),
        )
        return dict(json.loads(file.read_text()))

    @contextmanager
    def _graph(self, policy: Path, bags: Path, run: Path, parameters: Path) -> Iterator[None]:
        """The launched robot; its output goes to `graph.log`."""
        c = self.config
        arguments = (
            *(f"policy:={policy}", f"task:={c.task}", f"operator:={c.operator}", "cameras:=false"),
            *("real_time_factor:=0", f"bags:={bags}", "learner:=true", f"run:={run}", f"params_file:={parameters}"),
        )
        command = [*ALOE, "up", str(self.launch), *arguments]
        print(f"\n$ {shown(command)} > {self.folder / 'graph.log'} &", flush=True)
        with open(self.folder / "graph.log", "wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._env, start_new_session=True
            )
        try:
            yield
            if process.poll() is not None:
                raise AloeError(f"the graph ended by itself; see {self.folder / 'graph.log'}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    @contextmanager
    def _stage_of(self, name: str, what: str) -> Iterator[None]:
        self._stage += 1
        print(f"\n[{self._stage}/{self._stages}] {name.replace('_', ' ')}: {what}", flush=True)
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        print(f"    {seconds:.0f} s", flush=True)

    def _aloe(self, *arguments: object, quiet: bool = False) -> None:
        """Runs one command, its output indented below it; `quiet` shows the last line only."""
        command = [*ALOE, *map(str, arguments)]
        print(f"$ {shown(command)}", flush=True)
        last = ""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._env, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.rstrip()
                if not quiet:
                    print(f"    {last}", flush=True)
        if quiet or process.returncode:
            print(f"    {last}", flush=True)
        if process.returncode:
            raise AloeError(f"the command above failed with exit code {process.returncode}")


def shown(command: list[str]) -> str:
    """A command as a person would type it."""
    return shlex.join(["aloe", *command[len(ALOE) :]])


def closing_lines(summary: dict[str, Any]) -> list[str]:
    """What a person wants to know at the end."""
    lines = []
    for name in ("before", "after"):
        result = summary[f"success_{name}"]
        lines.append(f"success {name:<6} {success_text(round(result['success'] * result['n']), result['n'])}")
    config = summary["config"]
    episodes = [config["episodes"]] * config["rounds"] + [config["new_episodes"]]
    counts = [f"{round(rate * n)} of {n}" for rate, n in zip(summary["takeover_rates"], episodes, strict=True)]
    lines.append(f"take-overs     in {', '.join(counts)} episodes, round by round; {summary['interventions']} in all")
    lines.append(f"report         {summary['report']}")
    return lines
