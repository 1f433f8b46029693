"""Hours of simulated operation of the real graph: does any process grow, is anything lost, is every new policy taken?

    make soak HOURS=8

The graph is the demonstration's: simulator as fast as it goes, control loop, teleoperation with a simulated operator, policy, episodes, recorder,
learner. Rounds of episodes and an improvement follow each other until HOURS of robot time are recorded, or the wall time is over. Meanwhile the
memory, threads and open files of every node are read from /proc. At the end it is an error (exit code 1) if

- the anonymous memory that a node holds (what can leak: heap and stacks, not mapped files such as the replay store) is at the end more than 5 % above that at
  the end of the first quarter. Held is the least in a stretch of samples: while the learner improves it needs more, and the more the longer the replay is,
- the recorder counts a lost message, or a bag does not pass `aloe bags verify`,
- an announced policy was not loaded, or a node ended.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aloe_core.bag_audit import verify
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_critic.demo import Demo, DemoConfig

LAUNCH = Path(__file__).resolve().parents[1] / "launch" / "sim_robot.launch.yaml"
GROWTH = 0.05  # of anonymous memory, from the first quarter to the end
FIELDS = {"VmRSS": "rss_mb", "RssAnon": "anonymous_mb", "RssFile": "file_mb", "Threads": "threads"}
NODE = re.compile(r"from aloe_\w+\.nodes\.(\w+) import main")


class Sampler:
    """Reads every node below a process from /proc, in a thread. `samples[node]`: one dictionary per look."""

    def __init__(self, root: int, every_s: float) -> None:
        self.root, self.every_s = root, every_s
        self.samples: dict[str, list[dict[str, float]]] = defaultdict(list)
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            for pid in _below(self.root):
                try:
                    self._look(pid)
                except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    continue

    def _look(self, pid: int) -> None:
        process = Path(f"/proc/{pid}")
        name = NODE.search((process / "cmdline").read_text().replace("\0", " "))
        if name is None:
            return
        found = {"time_s": round(time.monotonic() - self._began, 1), "pid": float(pid)}
        for line in (process / "status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in FIELDS:
                number = int(value.split()[0])
                found[FIELDS[key]] = round(number / 1024, 2) if value.endswith("kB") else number
        found["files"] = len(os.listdir(process / "fd"))
        self.samples[name[1]].append(found)


def _below(pid: int) -> list[int]:
    """Processes started by a process, and by those."""
    try:
        children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return children + [grandchild for child in children for grandchild in _below(child)]


class Soak(Demo):
    """One run in `folder`, which must not exist."""

    def __init__(self, folder: Path, hours: float, wall_minutes: float, episodes: int, config: DemoConfig) -> None:
        expected = {"preparation": [30.0], "operation": [3600 * hours], "verification": [60.0]}  # rough
        super().__init__(folder, config, LAUNCH, expected)
        self.hours, self.wall_minutes, self.per_round = hours, wall_minutes, episodes
        self.sampler: Sampler | None = None

    def run(self) -> dict[str, Any]:
        """Everything; returns the report that is also written to `soak.json`."""
        c, folder = self.config, self.folder
        bags, policy, run = folder / "bags", folder / "bc" / "policy", folder / "learner"
        folder.mkdir(parents=True)
        with self._stage_of(
            "preparation", f"{c.demonstrations} demonstrations, {c.bc_steps} steps of behaviour cloning"
        ):
            self._aloe(
                "rollout", "--policy", "scripted", "--episodes", c.demonstrations, "--bags", folder / "demonstrations"
            )
            (folder / "bc.yaml").write_text(f"steps: {c.bc_steps}\npolicy: {{width: 128, layers: 2}}\n")
            self._aloe(
                "train", "bc", folder / "demonstrations", "--config", folder / "bc.yaml", "--output", folder / "bc"
            )
        learner = folder / "learner.yaml"
        learner.write_text(
            f"learner: {{critic_steps: {c.critic_steps}, actor_steps: {c.actor_steps}, batch_size: 64}}\n"
        )
        parameters = folder / "parameters.yaml"
        parameters.write_text(f"/**/learner_node:\n  ros__parameters: {{config: {learner}}}\n")
        began = time.monotonic()
        rounds: list[dict[str, Any]] = []
        what = f"{self.hours:g} h of robot time, or {self.wall_minutes:g} min of wall time"
        with (
            self._stage_of("operation", what),
            self._graph(policy, bags, run, parameters),
            self._watched(),
        ):
            while self._robot_s(rounds) < 3600 * self.hours and time.monotonic() - began < 60 * self.wall_minutes:
                rounds.append(self._round(len(rounds)))
        wall_s = time.monotonic() - began
        with self._stage_of("verification", "every bag, every policy, every process"):
            report = self._report(rounds, wall_s)
        (folder / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
        return report

    def _round(self, number: int) -> dict[str, Any]:
        episodes = self._episodes(f"episodes-{number:04d}", self.per_round, 1000 + number * self.per_round)["episodes"]
        file = self.folder / f"learned-{number:04d}.json"
        self._aloe("learn", "--json", file)
        return {"episodes": episodes, "learned": json.loads(file.read_text())}

    @staticmethod
    def _robot_s(rounds: list[dict[str, Any]]) -> float:
        return sum(e["duration_s"] for r in rounds for e in r["episodes"])

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Samples the nodes of the launched graph, which is the only process that we have started meanwhile."""
        deadline = time.monotonic() + 30
        while not (
            graphs := [p for p in _below(os.getpid()) if "aloe_core.cli" in Path(f"/proc/{p}/cmdline").read_text()]
        ):
            if time.monotonic() > deadline:
                raise AloeError("the graph's process was not found in /proc")
            time.sleep(0.1)  # it has been forked, but is not yet what it will be
        self.sampler = Sampler(graphs[0], every_s=5.0 if self.hours <= 2 else 30.0)
        try:
            yield
        finally:
            self.sampler.close()

    def _report(self, rounds: list[dict[str, Any]], wall_s: float) -> dict[str, Any]:
        assert self.sampler is not None
        robot, log = load_robot("aloha_sim"), (self.folder / "graph.log").read_text()
        episodes = [e for r in rounds for e in r["episodes"]]
        versions = [r["learned"]["version"] for r in rounds]
        checks = [verify(Path(e["bag"]), robot) for e in episodes]
        audits = [json.loads((Path(e["bag"]) / "audit.json").read_text()) for e in episodes]
        processes = {name: growth(samples) for name, samples in sorted(self.sampler.samples.items())}
        dropped = sum(topic["dropped"] for audit in audits for topic in audit["topics"])
        problems = [f"{Path(check.folder).name}: {problem}" for check in checks for problem in check.problems]
        problems += [f"the recorder lost {dropped} messages"] * bool(dropped)
        problems += [f"policy {version} was not loaded" for version in versions if f"{version} answers" not in log]
        problems += [
            f"{name}: {p['growth']:+.1%} of anonymous memory" for name, p in processes.items() if p["growth"] > GROWTH
        ]
        problems += [
            f"{name} was started {p['processes']} times" for name, p in processes.items() if p["processes"] > 1
        ]
        problems += re.findall(r"^\[aloe\] .*(?:died with|was killed by).*$", log, re.MULTILINE)
        return {
            "robot_hours": self._robot_s(rounds) / 3600,
            "wall_hours": wall_s / 3600,
            "episodes": len(episodes),
            "interventions": sum(e["interventions"] for e in episodes),
            "messages": sum(check.messages for check in checks),
            "dropped": dropped,
            "improvements": len(versions),
            "processes": processes,
            "problems": problems,
            "samples": self.sampler.samples,
        }


def growth(samples: list[dict[str, float]]) -> dict[str, Any]:
    """What one node holds in the tenth of its samples before the end of the first quarter, and in the last tenth."""
    count = len(samples)
    width = max(count // 10, 1)
    early, late = samples[max(count // 4 - width, 0) : max(count // 4, 1)], samples[-width:]
    held = {
        key: [min(s[key] for s in part) for part in (early, late)]
        for key in ("anonymous_mb", "rss_mb", "threads", "files")
    }
    return {
        "samples": count,
        "processes": len({s["pid"] for s in samples}),
        **held,
        "peak_mb": max(s["anonymous_mb"] for s in samples),
        "growth": held["anonymous_mb"][1] / held["anonymous_mb"][0] - 1,
    }


def table(report: dict[str, Any]) -> str:
    """For people and for docs/soak.md."""
    header = (
        "node",
        "anonymous memory held, first quarter -> end [MB]",
        "growth",
        "at most [MB]",
        "resident [MB]",
        "threads",
        "open files",
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, p in report["processes"].items():
        numbers = ["{:.0f} -> {:.0f}".format(*p[key]) for key in ("rss_mb", "threads", "files")]
        first, last = p["anonymous_mb"]
        lines.append(
            f"| `{name}` | {first:.1f} -> {last:.1f} | {p['growth']:+.1%} | {p['peak_mb']:.0f} | {' | '.join(numbers)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs it and prints what came of it; 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=2.0, help="robot time [h]")
    parser.add_argument("--wall-minutes", type=float, default=1e9, help="end after this even if the hours are not full")
    parser.add_argument("--episodes", type=int, default=10, help="between two improvements")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"))
    arguments = parser.parse_args()
    config = DemoConfig(demonstrations=4, bc_steps=300, critic_steps=100, actor_steps=100, time_limit=10.0)
    report = Soak(arguments.output, arguments.hours, arguments.wall_minutes, arguments.episodes, config).run()
    print(f"\n{table(report)}\n")
    print(
        f"{report['robot_hours']:.2f} h of robot time in {report['wall_hours']:.2f} h: {report['episodes']} episodes, {report['interventions']} take-overs, "
        f"{report['messages']} messages, {report['dropped']} lost, {report['improvements']} improvements"
    )
    for problem in report["problems"]:
        print(f"PROBLEM {problem}")
    return int(bool(report["problems"]))


if __name__ == "__main__":
    raise SystemExit(main())
