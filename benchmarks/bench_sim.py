"""Speed of the simulated robot on one core, physics alone and with its cameras.

Baseline of the physics is real time (50 control steps a second); of the cameras what a real robot's would deliver (three at 30 Hz).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from result import Result

from aloe_robot.expert import Expert
from aloe_robot.sim import TASKS, SimEnv


def run() -> list[Result]:
    """Control steps a second with and without the expert, its chunks, state saving, and images a second."""
    results = []
    for task in TASKS:
        env, expert = SimEnv(task, cameras=()), Expert(task)
        env.reset(0)
        actions = []
        while not env.done:
            actions.append(expert.act(env))
            env.step(actions[-1])

        def episode(env: SimEnv = env, actions: list = actions) -> int:
            env.reset(0)
            for action in actions:
                env.step(action)
            return len(actions)

        def lockstep(env: SimEnv = env, expert: Expert = expert) -> int:
            env.reset(0)
            while not env.done:
                env.step(expert.act(env))
            return env.tick

        results.append(Result(f"sim/{task}/physics", rate(episode), "steps/s", 50.0))
        results.append(Result(f"sim/{task}/physics_and_expert", rate(lockstep), "steps/s", 50.0))

    env = SimEnv("transfer_cube")
    state = env.save_state()

    def save_and_restore() -> int:
        for _ in range(100):
            env.restore_state(env.save_state())
        return 100

    results.append(Result("sim/save_and_restore", rate(save_and_restore), "1/s"))
    env.restore_state(state)
    for width, height in ((128, 128), (224, 224), (640, 480)):

        def frames(width: int = width, height: int = height) -> int:
            for camera in ("overhead", "left_wrist", "right_wrist"):
                env.render(camera, width, height)
            return 3

        results.append(Result(f"sim/render_{width}x{height}", rate(frames), "images/s", 90.0))
    env.close()
    return results


def rate(work: Callable[[], int], duration: float = 2.0) -> float:
    """Units of work per second, over at least `duration` seconds, after one call to warm up."""
    work()
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < duration:
        done += work()
    return done / elapsed
