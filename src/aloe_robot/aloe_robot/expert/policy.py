"""The scripted expert as a chunk policy: it rehearses on a private copy of the simulation and hands over what it did there."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.robot import RobotDescription
from aloe_robot.expert.expert import Expert, ExpertConfig
from aloe_robot.sim.env import ACTION_DIM, SimEnv
from aloe_robot.sim.tasks import TASKS


class ScriptedPolicy:
    """Chunks of the scripted expert, from the simulator's exact state in `Observation.sim_state`.

    Args:
        task: its task; None finds it by the instruction of each observation.
        horizon: rows of a chunk.
        config: how good the demonstrator is.
    """

    version = "scripted"
    cameras: tuple[str, ...] = ()
    image_size = None
    uses_task_state = True

    def __init__(self, task: str | None = None, horizon: int = 50, config: ExpertConfig | None = None) -> None:
        self.task, self.horizon, self.config = task, horizon, config or ExpertConfig()
        self._rehearsals: dict[str, tuple[SimEnv, Expert]] = {}
        if task is not None:
            self._rehearsal(task)

    def propose(
        self,
        observation: Observation,
        generator: np.random.Generator,
        prefix: np.ndarray | None = None,
        prefix_steps: int = 0,
    ) -> np.ndarray:
        """A chunk float32 `[H, 14]`; its first `prefix_steps` rows are those of `prefix`, which are executed anyway.

        The expert's noise comes from its configuration and the episode's seed, `generator` is not used.

        Raises:
            AloeError: the observation has no simulator state, or no task has its instruction.
        """
        if observation.sim_state is None:
            raise AloeError("the scripted expert needs the simulator's state: it works in simulation only")
        task = self.task or next((t.name for t in TASKS.values() if t.instruction == observation.instruction), None)
        if task is None:
            raise AloeError(f"the scripted expert knows no task with the instruction '{observation.instruction}'")
        certain = prefix[:prefix_steps] if prefix is not None else None
        return self.chunk(task, observation.sim_state, certain)

    def chunk(self, task: str, sim_state: np.ndarray, prefix: np.ndarray | None = None) -> np.ndarray:
        """What the expert does in the `horizon` steps after `sim_state`, float32 `[H, 14]`, `prefix` `[n, 14]` being done first."""
        env, expert = self._rehearsal(task)
        env.restore_state(sim_state)
        actions = np.empty((self.horizon, ACTION_DIM), np.float32)
        certain = 0 if prefix is None else len(prefix)
        for k in range(self.horizon):
            actions[k] = prefix[k] if prefix is not None and k < certain else expert.act(env)
            env.step(actions[k])  # the rounded action, as the robot will get it
        return actions

    def _rehearsal(self, task: str) -> tuple[SimEnv, Expert]:
        if task not in self._rehearsals:
            self._rehearsals[task] = SimEnv(task, cameras=()), Expert(task, self.config)
        return self._rehearsals[task]


def load_policy(
    spec: str, robot: RobotDescription, task: str | None = None, horizon: int = 50, **options: float
) -> ScriptedPolicy:
    """The policy `scripted` or `scripted:<task>`; `options` are the fields of `ExpertConfig`.

    Raises:
        AloeError: unknown task or option, or a robot that is not the simulated ALOHA.
    """
    if robot.simulator != "aloha" or robot.action_dim != ACTION_DIM:
        raise AloeError(f"the scripted expert drives the simulated ALOHA robot, not '{robot.name}'")
    known = [field.name for field in fields(ExpertConfig)]
    for key in options:
        if key not in known:
            raise AloeError(f"the scripted expert has no option '{key}'; options: task, horizon, {', '.join(known)}")
    return ScriptedPolicy(spec.partition(":")[2] or task, horizon, ExpertConfig(**options))  # type: ignore[arg-type]
