"""Human takeover: from a SpaceMouse's report to the arm's command, the step at the take-over edge, and how often the simulated operator saves the task.

Latency: a report written to the device file (a named pipe in its place) until the command that follows it has arrived, with spacemouse_node,
teleop_node, control_node at 50 Hz and mock arms as real processes. No ROS 2 stack publishes this figure; the baseline is two control periods, one to
be noticed in and one to be acted on. Edge: the largest change of a joint command in the ten ticks around a take-over, as a share of what the limits
of velocity, acceleration and jerk allow. Operator: share of 30 seeds, each with a policy that fails, in which teleoperation finishes the task;
the goal is 0.8.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from result import Result

from aloe_core.chunk import NANOSECONDS, ActionChunk
from aloe_core.robot import load_robot
from aloe_core.supervisor import node_command, ros_arguments
from aloe_core.vocabulary import EventType, Mode, Source
from aloe_intervention.lockstep import LockstepOperator
from aloe_intervention.operator_sim import OperatorConfig
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.loop import ControlLoop
from aloe_robot.expert.expert import Expert, ExpertConfig
from aloe_robot.sim.env import SimEnv

ROBOT = load_robot("aloha_sim")
PERIOD = ROBOT.control_dt_ns / NANOSECONDS
JOINTS = ~ROBOT.gripper_mask
EVENTS = 200
SEEDS = 30


def run() -> list[Result]:
    """Latency [ms], edges [share of the limit], the operator's successes [share], and what a step of teleoperation costs [us]."""
    latency = np.array(device_to_command()) * 1e3
    results = [
        Result(f"teleop/event_to_command_{name}", float(np.percentile(latency, q)), "ms", 2 * PERIOD * 1e3)
        for name, q in (("p50", 50), ("p99", 99))
    ]
    saved, edges, cost_us = operated()
    results.append(Result("teleop/operator_finishes", saved, "share", 0.8))
    results += [Result(f"teleop/edge_{what}", share, "of limit", 1.0) for what, share in edges.items()]
    results.append(Result("teleop/step_two_arms", cost_us, "us", PERIOD * 1e6))
    return results


def device_to_command() -> list[float]:
    """Times [s] from a report at the device file to the first command that moves."""
    os.environ |= {"ROS_DOMAIN_ID": "95", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_NUM_THREADS": "1"}
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Float64MultiArray

    from aloe_msgs.msg import ControlState, EpisodeEvent, TeleopCommand

    with tempfile.TemporaryDirectory() as folder:
        device = Path(folder) / "hidraw0"
        os.mkfifo(device)
        mouse = os.open(device, os.O_RDWR)
        nodes = {
            ("aloe_intervention", "spacemouse_node"): {"arms": ["left"], "left.device": str(device), "rate": 200.0},
            ("aloe_intervention", "teleop_node"): {"linear_speed": 0.02},
            ("aloe_robot", "mock_robot_node"): {"robot": "aloha_sim"},
            ("aloe_robot", "control_node"): {"tick_source": "timer"},
        }
        processes = [
            subprocess.Popen(
                [
                    *node_command(*node),
                    *ros_arguments(name=None, namespace=None, parameters=[values], remappings=[]),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for node, values in nodes.items()
        ]
        rclpy.init()
        node = rclpy.create_node("bench_teleop")
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        start = node.create_publisher(EpisodeEvent, "episode/event", latched)
        state: list[ControlState] = []
        commands: list[tuple[float, np.ndarray]] = []
        wishes: list[TeleopCommand] = []
        node.create_subscription(ControlState, "control/state", state.append, 10)
        node.create_subscription(TeleopCommand, "left/teleop/command", wishes.append, 10)
        topic = ROBOT.arms[0].output.topic
        node.create_subscription(
            Float64MultiArray, topic, lambda m: commands.append((time.perf_counter(), np.array(m.data))), 10
        )

        def spin_until(condition, what: str, limit_s: float = 60.0) -> None:
            end = time.perf_counter() + limit_s
            while not condition():
                if time.perf_counter() > end:
                    raise RuntimeError(f"never: {what}")
                rclpy.spin_once(node, timeout_sec=0.05)

        def send(*report: int) -> None:
            os.write(mouse, struct.pack("<B6h", 1, *report))

        try:
            spin_until(lambda: state and wishes and wishes[-1].healthy, "the nodes are up")
            now = node.get_clock().now()
            start.publish(EpisodeEvent(event=EventType.STARTED, episode_id="bench", header=_header(now)))
            spin_until(lambda: state[-1].episode_id == "bench", "the episode has started")
            os.write(mouse, b"\x03\x03\x00")
            spin_until(lambda: state[-1].mode[0] == Mode.HUMAN, "the take-over")
            os.write(mouse, b"\x03\x00\x00")
            times, rng = [], np.random.default_rng(0)
            for k in range(EVENTS):
                _rest(send, spin_until, commands)
                still = commands[-1][1]
                pause = time.perf_counter() + rng.uniform(0.0, 2 * PERIOD)  # any phase of the control period
                spin_until(lambda until=pause: time.perf_counter() >= until, "a pause")
                commands.clear()
                sent = time.perf_counter()
                send(0, 350 * (-1) ** k, 0, 0, 0, 0)

                def moved(still: np.ndarray = still) -> bool:
                    return any(np.abs(c - still).max() > 1e-7 for _, c in commands)

                spin_until(moved, "a command that moves")
                times.append(next(t for t, c in commands if np.abs(c - still).max() > 1e-7) - sent)
            return times
        finally:
            node.destroy_node()
            rclpy.try_shutdown()
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            os.close(mouse)


def _rest(send, spin_until, commands: list) -> None:
    """Lets the stick go and waits until the commands stand still."""
    send(0, 0, 0, 0, 0, 0)
    commands.clear()
    spin_until(
        lambda: len(commands) >= 6 and np.abs(commands[-1][1] - commands[-5][1]).max() < 1e-9, "the arm stands still"
    )


def _header(now):
    from std_msgs.msg import Header

    return Header(stamp=now.to_msg())


def operated() -> tuple[float, dict[str, float], float]:
    """Share of episodes saved, largest edges per limit, and processor time per step of operator and teleoperation [us]."""
    env, rehearsal = SimEnv("transfer_cube", cameras=()), SimEnv("transfer_cube", cameras=())
    operator = LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=2.5))
    edges = {"velocity": 0.0, "acceleration": 0.0, "jerk": 0.0}
    saved = taken = steps = 0
    spent, seed = 0.0, -1
    while taken < SEEDS:
        seed += 1
        policy = Expert("transfer_cube", ExpertConfig(grasp_offset=0.03, joint_noise=0.01, seed=seed))
        env.reset(seed)
        operator.reset(env)
        loop = ControlLoop(ROBOT, ControlConfig())
        loop.start_episode("bench")
        commanded, human = [env.command] * 3, [False] * 3
        while env.tick < 30 / PERIOD and not env.success and env.failure is None:
            measured = env.joint_positions()
            start = time.thread_time()
            wish = operator.step(env, measured, env.time_ns)
            spent, steps = spent + time.thread_time() - start, steps + 1
            for request in loop.observe(env.time_ns, env.time_ns, measured, wish):
                rehearsal.restore_state(env.save_state())
                rows = np.empty((50, ROBOT.action_dim), np.float32)
                for row in rows:
                    row[:] = rehearsal.command if human[-1] else policy.act(rehearsal)
                    if not human[-1]:
                        rehearsal.step(row)
                number = request.request_id
                chunk = ActionChunk(env.time_ns, rows, ROBOT.control_dt_ns, number, number, "poor", "bench")
                loop.add_chunk(chunk, env.time_ns)
            result = loop.act()
            commanded.append(result.commanded)
            human.append(Source.HUMAN in result.source)
            env.step(result.commanded)
        if any(human):
            taken += 1
            saved += env.success
            _widen(edges, np.array(commanded)[:, JOINTS], human)
    return saved / taken, edges, spent / steps * 1e6


def _widen(edges: dict[str, float], commanded: np.ndarray, human: list[bool]) -> None:
    """Raises `edges` to what the ten ticks around each take-over of one episode show."""
    turns = np.flatnonzero(np.diff(np.array(human, int)))
    near = np.zeros(len(human), bool)
    for turn in turns:
        near[max(turn - 4, 0) : turn + 6] = True
    limits = {"velocity": ROBOT.max_velocity, "acceleration": ROBOT.max_acceleration, "jerk": ROBOT.max_jerk}
    for order, (what, limit) in enumerate(limits.items(), start=1):
        share = np.abs(np.diff(commanded, order, axis=0)) / (limit[JOINTS] * PERIOD**order)
        edges[what] = max(edges[what], float(share[near[order:]].max()))
