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
import threading
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
# [s] on two cores, as the run of the defaults in README.md took them: a guess for the person who waits, nothing depends on it.
SECONDS_PER_DEMONSTRATION = 0.5
SECONDS_PER_CLONING_STEP = 0.024  # of 128 chunks
SECONDS_PER_EVALUATION = 0.14  # of one episode, two at a time
SECONDS_PER_EPISODE = 4.5  # under ROS 2, with the operator
SECONDS_PER_LEARNING_STEP = 0.031  # of critic or actor
SECONDS_PER_REPORT = 12.0


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


def expected_seconds(c: DemoConfig) -> dict[str, list[float]]:
    """About how long each stage takes [s] on two cores, by name; a stage that is repeated has as many entries."""
    learning = SECONDS_PER_LEARNING_STEP * (c.critic_steps + c.actor_steps)
    return {
        "demonstrations": [SECONDS_PER_DEMONSTRATION * c.demonstrations],
        "cloning": [SECONDS_PER_CLONING_STEP * c.bc_steps],
        "evaluation_before": [SECONDS_PER_EVALUATION * c.evaluation_episodes],
        "episodes": [SECONDS_PER_EPISODE * c.episodes] * c.rounds,
        "learning": [learning] * c.rounds,
        "renewed": [SECONDS_PER_EPISODE * c.new_episodes],
        "evaluation_after": [SECONDS_PER_EVALUATION * c.evaluation_episodes],
        "report": [SECONDS_PER_REPORT],
    }


def about(seconds: float) -> str:
    """A length of time as one says it."""
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1.0, seconds):.0f} s"


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a process that leads a session of its own, if it still runs; kills all of the session after a minute."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


class Demo:
    """One run in `folder`, which must not exist. `expected`: as of `expected_seconds`, for another sequence of stages."""

    def __init__(
        self, folder: Path, config: DemoConfig, launch: Path, expected: dict[str, list[float]] | None = None
    ) -> None:
        self.folder, self.config, self.launch = folder, config, launch
        self.seconds: dict[str, float] = {}
        self._expected = expected or expected_seconds(config)
        self._left = sum(sum(stages) for stages in self._expected.values())  # [s] of the stages to come
        self._stage, self._stages = 0, sum(map(len, self._expected.values()))
        self._graph_process: subprocess.Popen[bytes] | None = None
        self._command: subprocess.Popen[str] | None = None  # that runs now
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
        print(f"{self._stages} stages, {about(self._left)} on two cores; results go to {folder}", flush=True)
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
            "report": "",
            "config": c.__dict__,
            "wall_seconds": {name: round(s, 1) for name, s in self.seconds.items()},
        }
        return self._report(summary, run, Path(learned["checkpoint"]).parent)

    def _report(self, summary: dict[str, Any], run: Path, iteration: Path) -> dict[str, Any]:
        """Writes the summary, then the critic's report, and the summary again with its page; without a critic there is none."""
        file = self.folder / "summary.json"
        file.write_text(json.dumps(summary, indent=2) + "\n")
        with self._stage_of("report", "figures and pages"):
            if not json.loads((iteration / "result.json").read_text())["critic"]:
                print(f"    none: the method '{summary['config']['method']}' has no critic to report on", flush=True)
                return summary
            self._aloe("report", run)
        took = {name: round(s, 1) for name, s in self.seconds.items()}
        summary = summary | {"report": str(next(run.rglob("*.html"))), "wall_seconds": took}
        file.write_text(json.dumps(summary, indent=2) + "\n")
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
        command, file = [*ALOE, "up", str(self.launch), *arguments], self.folder / "graph.log"
        print(f"\n$ {shown(command)} > {file} &", flush=True)
        with open(file, "wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._env, start_new_session=True
            )
        self._graph_process = process
        threading.Thread(target=self._give_up_with, args=(process,), daemon=True).start()
        try:
            yield
            if process.poll() is not None:
                raise AloeError(f"the launched robot ended by itself; see {file}")
        except AloeError as error:
            if str(file) in str(error):
                raise
            reason = "the launched robot ended by itself; see" if process.poll() is not None else "its nodes write to"
            raise AloeError(f"{error}; {reason} {file}") from error
        finally:
            self._graph_process = None
            end_session(process)

    def _give_up_with(self, graph: subprocess.Popen[bytes]) -> None:
        """A command that talks to a graph which has ended would wait for ever."""
        graph.wait()
        command = self._command
        if command is not None and command.poll() is None:
            command.terminate()

    @contextmanager
    def _stage_of(self, name: str, what: str) -> Iterator[None]:
        self._stage += 1
        expected = self._expected[name].pop()
        title = f"[{self._stage}/{self._stages}] {name.replace('_', ' ')}"
        print(f"\n{title}: {what}; {about(expected)}", flush=True)
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._left -= expected
        to_come = self._stages - self._stage
        left = f"; {to_come} {'stages' if to_come > 1 else 'stage'} left, {about(self._left)}" if to_come else ""
        print(f"    {seconds:.0f} s{left}", flush=True)

    def _aloe(self, *arguments: object, quiet: bool = False) -> None:
        """Runs one command, its output indented below it; `quiet` shows the last line only."""
        command = [*ALOE, *map(str, arguments)]
        print(f"$ {shown(command)}", flush=True)
        last = ""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._env, text=True
        ) as process:
            self._command = process
            if self._graph_process is not None and self._graph_process.poll() is not None:
                process.terminate()
            assert process.stdout is not None
            for line in process.stdout:
                last = line.rstrip()
                if not quiet:
                    print(f"    {last}", flush=True)
        self._command = None
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
    lines.append(f"report         {summary['report'] or 'none, for the method has no critic'}")
    return lines
