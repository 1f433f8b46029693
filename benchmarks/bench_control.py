"""The control loop: what a tick costs, and how much later than a bare rclpy timer it comes.

Jitter: |time between two ticks - period| at 50 Hz of control_node driving two arms in an episode (joint states in, chunks asked for and executed,
commands, state and transitions out), against a process with a bare timer of the same period, side by side in the same run. Goal: less than 1 ms more at
the 99th percentile. Edges: the largest change of velocity, acceleration and jerk around take-over and release, as a share of the limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from result import Result

from aloe_core.chunk import NANOSECONDS, ActionChunk
from aloe_core.robot import load_robot
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.loop import ControlLoop
from aloe_robot.control.records import TeleopInput

SECONDS = 20.0
WARM_UP = 50  # ticks left out
TICKS = 3000


def run() -> list[Result]:
    """Cost of a tick [us], edges of take-overs, jitter of control_node's ticks and their processor time with all messages [ms]."""
    results = []
    for name in ("aloha_sim", "bimanual_ur5e"):
        period_us = load_robot(name).control_dt_ns / 1e3
        for mode in ("latest", "temporal_ensemble"):
            results.append(Result(f"control/tick_{name}_{mode}", tick_cost(name, mode), "us", period_us))
    results += edges("bimanual_ur5e")
    control, bare = jitter()
    for key in ("p50", "p99", "max"):
        results.append(Result(f"control/jitter_{key}", control[key], "ms", bare[key]))
    results.append(Result("control/jitter_p99_added", control["p99"] - bare["p99"], "ms", 1.0))
    results.append(Result("control/node_tick_p50", control["cost_p50"], "ms"))
    return results


def tick_cost(name: str, mode: str) -> float:
    """Processor time [us] of `ControlLoop.observe` and `act`, a new chunk every 25 ticks, targets near the limits of the robot."""
    robot = load_robot(name)
    loop = ControlLoop(robot, ControlConfig(execution_mode=mode))
    loop.start_episode("benchmark")
    period, measured, chunks, spent = robot.control_dt_ns, robot.home, 0, 0.0
    for tick in range(TICKS):
        now = tick * period
        start = time.thread_time()
        requests = loop.observe(now, now, measured)
        spent += time.thread_time() - start
        for request in requests:
            chunks += 1
            ticks = tick + np.arange(50)[:, None]
            rows = robot.home + 0.5 * np.sin(ticks / 15) * ~robot.gripper_mask
            loop.add_chunk(
                ActionChunk(
                    now, rows.astype(np.float32), period, chunks, request.request_id, episode_id=request.episode_id
                ),
                now,
            )
        start = time.thread_time()
        measured = loop.act().commanded
        spent += time.thread_time() - start
    return spent / TICKS * 1e6


def edges(name: str) -> list[Result]:
    """Largest velocity, acceleration and jerk within 0.1 s of 200 take-overs and releases of one arm whose human starts 0.2 rad off, per limit."""
    robot = load_robot(name)
    loop = ControlLoop(robot)
    loop.start_episode("benchmark")
    period, span = robot.control_dt_ns, robot.arm_slices[0]
    rng, chunks, target = np.random.default_rng(0), 0, robot.home[span]
    commands, near = [robot.home] * 3, [False] * 3
    for tick in range(200 * 60):
        now, phase = tick * period, tick % 60
        engaged = 30 <= phase < 55
        if phase == 30:
            target = commands[-1][span] + rng.uniform(-0.2, 0.2, span.stop)
        teleop = {robot.arm_names[0]: TeleopInput(now, engaged, target if engaged else None)}
        for request in loop.observe(now, now, commands[-1], teleop):
            chunks += 1
            ticks = tick + np.arange(50)[:, None]
            rows = robot.home + 0.3 * np.sin(ticks / 60) * ~robot.gripper_mask
            loop.add_chunk(
                ActionChunk(now, rows.astype(np.float32), period, chunks, request.request_id, episode_id="benchmark"),
                now,
            )
        commands.append(loop.act().commanded)
        near.append(min(abs(phase - 31), abs(phase - 55), abs(phase + 5)) <= 5)
    results = []
    limits = {"velocity": robot.max_velocity, "acceleration": robot.max_acceleration, "jerk": robot.max_jerk}
    for order, (what, limit) in enumerate(limits.items(), start=1):
        change = np.abs(np.diff(np.array(commands)[:, span], order, axis=0))[np.array(near)[order:]]
        share = change / (limit[span] * (period / NANOSECONDS) ** order)
        results.append(Result(f"control/edge_{what}", float(share.max()), "of limit", 1.0))
    return results


def jitter() -> tuple[dict[str, float], dict[str, float]]:
    """Statistics [ms] of control_node's ticks and of the bare timer's."""
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": "94",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }
    processes = {
        role: subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), role], env=environment, stdout=subprocess.PIPE, text=True
        )
        for role in ("control", "bare", "robot")
    }
    try:
        output = {
            role: json.loads(processes[role].communicate(timeout=120)[0].splitlines()[-1])
            for role in ("control", "bare")
        }
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return statistics(output["control"]), statistics(output["bare"])


def statistics(measured: dict[str, list[float]]) -> dict[str, float]:
    """Percentiles [ms] out of the start times and processor times [s] of ticks."""
    starts = np.array(measured["starts"])[WARM_UP:]
    period = load_robot("aloha_sim").control_dt_ns / NANOSECONDS
    error = np.abs(np.diff(starts) - period) * 1e3
    return {
        "p50": float(np.percentile(error, 50)),
        "p99": float(np.percentile(error, 99)),
        "max": float(error.max()),
        "cost_p50": float(np.percentile(np.array(measured["costs"])[WARM_UP:], 50)) * 1e3,
    }


class Clocked:
    """A callback that notes when it was called and its processor time; `full` after SECONDS of calls."""

    def __init__(self, work: Callable[[], None], period: float) -> None:
        self._work, self._wanted = work, round(SECONDS / period)
        self.starts: list[float] = []
        self.costs: list[float] = []

    def __call__(self) -> None:
        self.starts.append(time.perf_counter())
        before = time.thread_time()
        self._work()
        self.costs.append(time.thread_time() - before)

    @property
    def full(self) -> bool:
        return len(self.starts) >= self._wanted

    def report(self) -> None:
        """Prints what was measured, for the parent process."""
        print(json.dumps({"starts": self.starts, "costs": self.costs}), flush=True)


def bare(period: float) -> None:
    """A process with nothing but a timer."""
    import rclpy

    rclpy.init()
    node = rclpy.create_node("bare_timer")
    tick = Clocked(lambda: None, period)
    node.create_timer(period, tick)
    while not tick.full:
        rclpy.spin_once(node)
    tick.report()


def control(period: float) -> None:
    """control_node itself; only ticks of the episode are counted."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    from aloe_robot.nodes.control_node import ControlNode

    rclpy.init()
    node = ControlNode()
    tick = Clocked(node._tick_now, period)
    node._tick_now = lambda: tick() if node._loop.episode_id else None  # type: ignore[method-assign]
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.trigger_configure()
    node.trigger_activate()
    while not tick.full:
        executor.spin_once()
    if node._loop.state.starved_ticks > len(tick.starts) / 10:
        raise SystemExit(f"the policy of the benchmark did not answer in time: {node._loop.state}")
    tick.report()


def robot(period: float) -> None:
    """The robot and its policy: joint states at the control rate that follow the commands, and a chunk for every request."""
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import JointState

    from aloe_core import topics
    from aloe_core.messages import chunk_msg, header_msg, joint_state_msg, ros_make, stamp_to_ns
    from aloe_msgs.msg import ActionChunk as ChunkMsg
    from aloe_msgs.msg import ChunkRequest, ControlState, EpisodeEvent

    description = load_robot("aloha_sim")
    rclpy.init()
    node = rclpy.create_node("robot")
    joints = node.create_publisher(JointState, description.joint_states_topic, 10)
    chunks = node.create_publisher(ChunkMsg, topics.CHUNK, 10)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    event = EpisodeEvent(event=EpisodeEvent.STARTED, episode_id="benchmark")
    event.header = header_msg(ros_make, node.get_clock().now().nanoseconds)
    events = node.create_publisher(EpisodeEvent, topics.EPISODE_EVENT, latched)
    events.publish(event)
    position = description.home.copy()

    def follow(state: ControlState) -> None:
        position[:] = state.commanded

    def answer(request: ChunkRequest) -> None:
        stamp = stamp_to_ns(request.header.stamp)
        ticks = stamp // description.control_dt_ns + np.arange(50)[:, None]
        rows = description.home + 0.2 * np.sin(ticks / 40) * ~description.gripper_mask
        chunk = ActionChunk(
            stamp,
            rows.astype(np.float32),
            description.control_dt_ns,
            request.request_id,
            request.request_id,
            "benchmark",
            request.episode_id,
        )
        chunks.publish(chunk_msg(ros_make, chunk, description))

    def publish() -> None:
        now = node.get_clock().now().nanoseconds
        joints.publish(
            joint_state_msg(ros_make, now, description.action_names, description.to_device(position), np.zeros(14))
        )

    node.create_subscription(ControlState, topics.CONTROL_STATE, follow, 10)
    node.create_subscription(ChunkRequest, topics.CHUNK_REQUEST, answer, 10)
    node.create_timer(period, publish)
    rclpy.spin(node)


if __name__ == "__main__":
    {"bare": bare, "control": control, "robot": robot}[sys.argv[1]](load_robot("aloha_sim").control_dt_ns / NANOSECONDS)
