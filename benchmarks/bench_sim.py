"""Speed of the simulated robot on one core: physics alone, with its cameras, and whole roll-outs as `aloe rollout` runs them.

Baseline of the physics is real time (50 control steps a second); of the cameras what a real robot's would deliver (three at 30 Hz); of a roll-out
without cameras ten times real time, what we ask of it. With the scripted expert most of that time is his: he rehearses each chunk of 50 steps on a
simulator of his own, and 25 are executed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from result import Result

from aloe_core.robot import load_robot
from aloe_robot.expert import Expert
from aloe_robot.expert.policy import ScriptedPolicy
from aloe_robot.rollout import Lockstep
from aloe_robot.sim import TASKS, SimEnv

EPISODES = 3  # roll-outs per task


def run() -> list[Result]:
    """Control steps a second with and without the expert, roll-outs against real time, state saving, and images a second."""
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
        results += rollouts(task)

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


class Remembering(ScriptedPolicy):
    """The scripted expert, who rehearses a chunk only the first time it is asked for it in that state."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.chunks: dict[bytes, np.ndarray] = {}

    def propose(self, observation, generator, prefix=None, prefix_steps=0):
        """See `ScriptedPolicy.propose`."""
        state = observation.sim_state.tobytes()
        if state not in self.chunks:
            self.chunks[state] = super().propose(observation, generator, prefix, prefix_steps)
        return self.chunks[state]


def rollouts(task: str) -> list[Result]:
    """Robot time per wall time of whole episodes without cameras and bags, with the expert's rehearsals and, the same episodes again, without them."""
    lockstep = Lockstep(load_robot("aloha_sim"), task, Remembering(task))
    lockstep.run(seed=EPISODES)  # to warm up
    results = []
    for name in ("rollout", "rollout_without_rehearsals"):
        episodes = [lockstep.run(seed) for seed in range(EPISODES)]
        factor = sum(e.duration_s for e in episodes) / sum(e.wall_s for e in episodes)
        results.append(Result(f"sim/{task}/{name}", factor, "x real time", 10.0))
    return results


def rate(work: Callable[[], int], duration: float = 2.0) -> float:
    """Units of work per second, over at least `duration` seconds, after one call to warm up."""
    work()
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < duration:
        done += work()
    return done / elapsed
