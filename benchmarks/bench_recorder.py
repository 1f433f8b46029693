"""The recorder under load: three 640x480 cameras at 30 Hz, joint states, control state, transitions and commands at 50 Hz, all in other processes.

For JPEG and raw images: what reached the bag [MB/s] (baseline: what was published), messages that did not, and the processor time of the recorder.
Goal: none missing. Raw images need config/fastdds_large_images.xml, which is used for both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from result import Result

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "config" / "fastdds_large_images.xml"
LOAD = ROOT / "src" / "aloe_intervention" / "test" / "recorder_load.py"
SECONDS = 10.0
ARM = "{name: %s, joints: [{name: %s_waist, min: -1, max: 1, max_velocity: 1, max_acceleration: 10, max_jerk: 100}], output: {topic: /%s/commands}}"
CAMERA = "{name: %s, topic: /%s, width: 640, height: 480, rate_hz: 30, source: mock}"


def run() -> list[Result]:
    """One recorded episode per transport."""
    results = []
    for transport in ("jpeg", "raw"):
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(transport, Path(folder))
        name = f"recorder_{transport}_3_cameras"
        results += [
            Result(
                f"{name}_rate",
                measured["recorded_bytes"] / SECONDS / 1e6,
                "MB/s",
                measured["published_bytes"] / SECONDS / 1e6,
            ),
            Result(f"{name}_missing", measured["missing"], "messages"),
            Result(f"{name}_processor", measured["processor"], "cores"),
        ]
    return results


def robot_description(folder: Path) -> Path:
    """Two arms of one joint, three cameras."""
    lines = ["name: loaded", "arms:", *(f"  - {ARM % (a, a, a)}" for a in ("left", "right"))]
    lines += ["cameras:", *(f"  - {CAMERA % (c, c)}" for c in ("overhead", "left_wrist", "right_wrist"))]
    path = folder / "loaded.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def measure(transport: str, folder: Path) -> dict[str, float]:
    """Counts of the processes that publish against those of the bag's audit."""
    from aloe_core.supervisor import node_command, ros_arguments

    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": "95",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }
    for name in (
        "FASTRTPS_DEFAULT_PROFILES_FILE",
        "FASTDDS_DEFAULT_PROFILES_FILE",
    ):  # Jazzy's name, and that of later versions
        environment[name] = str(PROFILE)
    robot = robot_description(folder)
    images = "raw" if transport == "raw" else "compressed"
    parameters = {"robot": str(robot), "bags": str(folder / "bags"), "images": images}
    recorder = [*node_command("aloe_intervention", "recorder_node"), *ros_arguments(parameters=[parameters])]
    processes = [subprocess.Popen(recorder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    try:
        for role in ("cameras", "control"):
            command = [sys.executable, str(LOAD), role, str(robot), str(SECONDS), transport]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        said = [json.loads(p.communicate(timeout=180)[0].splitlines()[-1]) for p in processes[1:]]
        times = psutil.Process(processes[0].pid).cpu_times()
        age = time.time() - psutil.Process(processes[0].pid).create_time()
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)
    audit = json.loads((folder / "bags" / "load" / "audit.json").read_text())
    recorded = {t["topic"]: t for t in audit["topics"]}
    counts = said[0]["counts"] | said[1]["counts"]
    missing = sum(count - recorded[topic]["count"] for topic, count in counts.items())
    sizes = {topic: recorded[topic]["bytes"] / max(1, recorded[topic]["count"]) for topic in counts}
    return {
        "recorded_bytes": sum(t["bytes"] for t in audit["topics"]),
        "published_bytes": sum(sizes[topic] * count for topic, count in counts.items()),
        "missing": float(missing),
        "processor": (times.user + times.system) / age,
    }
