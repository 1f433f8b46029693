"""What a larger replay and a second process do to the critic's updates, with the whole learner.

- Replay: time of an update and memory at 4,000 and at 40,000 recorded steps, with the policy's chunks drawn once for all states (the default, a table) and
  drawn at every step. The value is that of the larger replay, the baseline that of the smaller one.
- Processes: samples per second of two processes through accelerate (gloo on this machine), each with its own batch, against one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from result import Result

from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_policy.replay import ReplayStore

EPISODE, FEW, TIMES = 200, 20, 10  # steps, episodes, factor
STEPS, WARM = 40, 10  # updates of a run, of which so many do not count
HERE = Path(__file__).resolve().parent

WORKER = """
import json, re, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from bench_critic import policy
from aloe_critic.learner import Learner, LearnerConfig
from aloe_critic.methods import make_method
from aloe_critic.replay import StoreReplay, fit_to
from aloe_policy.replay import ChunkSamples, ReplayStore

store, steps, warm, presample = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "table"
replay = StoreReplay(ChunkSamples(ReplayStore(store), 50))
torch.manual_seed(0)
method = make_method("aloe", replay.critic_config(steps_per_token=10), None, replay.return_range)
fit_to(method, replay)
seen = []
config = LearnerConfig(critic_steps=steps, presample=presample, checkpoint_every=10**9)
learner = Learner(method, policy(), replay, config, Path(sys.argv[6]), on_progress=lambda p: seen.append((p.stage, time.perf_counter())))
learner.learn_critic()
times = [t for stage, t in seen if stage == "critic"]
memory = int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024
if learner.accelerator.is_main_process:
    gaps = sorted(b - a for a, b in zip(times[warm:], times[warm + 1:]))
    print(json.dumps({"update_s": gaps[len(gaps) // 2], "mib": memory, "processes": learner.accelerator.num_processes}))
"""


def run() -> list[Result]:
    """See the module."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "worker.py"
        script.write_text(WORKER)
        small, large = (make_store(folder / f"replay_{n}", FEW * n) for n in (1, TIMES))
        for title, way in (("chunks of a table", "table"), ("chunks drawn at every step", "fresh")):
            few, many = (measure(script, store, way, folder / f"{way}_{n}") for n, store in ((1, small), (2, large)))
            results.append(Result(f"critic update at 10 times the replay, {title}", 1e3 * many[0], "ms", 1e3 * few[0]))
            results.append(Result(f"memory at 10 times the replay, {title}", many[1], "MiB", few[1]))
        one = measure(script, small, "table", folder / "one")
        two = measure(script, small, "table", folder / "two", processes=2)
        results.append(Result("critic samples, 2 processes (baseline: 1)", 2 * 256 / two[0], "1/s", 256 / one[0]))
    return results


def make_store(folder: Path, episodes: int) -> Path:
    """A replay of states only."""
    robot = load_robot("aloha_sim")
    for seed in range(episodes):
        SyntheticEpisode(robot, steps=EPISODE, seed=seed).write(folder / "bags" / f"e{seed}")
    ReplayStore(folder / "store").ingest([folder / "bags"], robot)
    return folder / "store"


def measure(script: Path, store: Path, way: str, out: Path, processes: int = 1) -> tuple[float, float]:
    """Median seconds of an update and anonymous memory [MiB] of the (main) process."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(launch if processes > 1 else []),
        str(script),
        str(HERE),
        str(store),
        str(STEPS),
        str(WARM),
        way,
        str(out),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise RuntimeError(f"{script.name} failed:\n{run.stderr[-2000:]}")
    (line,) = [text for text in run.stdout.splitlines() if text.startswith("{")]
    found = json.loads(line)
    assert found["processes"] == processes
    return found["update_s"], found["mib"]
