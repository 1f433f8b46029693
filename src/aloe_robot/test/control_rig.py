"""A control loop in lockstep with a policy that answers every request, on a robot that follows its commands at once."""

from collections.abc import Callable

import numpy as np

from aloe_core.chunk import ActionChunk
from aloe_core.robot import RobotDescription
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.loop import ControlLoop
from aloe_robot.control.records import ChunkRequest, TeleopInput, TickResult, Transition

Rows = Callable[[ChunkRequest], np.ndarray]


class Rig:
    """`tick` runs one tick and answers what is due. Collects requests, commands, results and transitions."""

    def __init__(self, robot: RobotDescription, rows: Rows | None = None, horizon: int = 50, **config) -> None:
        self.robot, self.dt, self.horizon = robot, robot.control_dt_ns, horizon
        self.loop = ControlLoop(robot, ControlConfig(**config))
        self.rows = rows or (lambda request: np.tile(robot.home, (horizon, 1)))
        self.measured = robot.home.copy()
        self.now_tick, self.chunk_id = 0, 0
        self.requests: list[ChunkRequest] = []
        self.results: list[TickResult] = []
        self.transitions: list[Transition] = []
        self.chunks: dict[int, ActionChunk] = {}
        self.answering = True

    def chunk(self, request: ChunkRequest, version: str = "policy") -> ActionChunk:
        self.chunk_id += 1
        rows = np.asarray(self.rows(request), np.float32)
        chunk = ActionChunk(
            request.stamp_ns, rows, self.dt, self.chunk_id, request.request_id, version, episode_id=request.episode_id
        )
        self.chunks[self.chunk_id] = chunk
        return chunk

    def tick(self, teleop: dict[str, TeleopInput] | None = None) -> TickResult:
        now = self.now_tick * self.dt
        self.now_tick += 1
        made = self.loop.observe(now, now, self.measured, teleop or {})
        self.requests += made
        for request_id in self.loop.due(now):
            request = next(r for r in reversed(self.requests) if r.request_id == request_id)
            if self.answering:
                self.loop.add_chunk(self.chunk(request), now)
            else:
                self.loop.give_up(request_id)
        result = self.loop.act()
        self.measured = result.commanded
        self.results.append(result)
        if result.transition is not None:
            self.transitions.append(result.transition)
        return result

    def ticks(self, count: int) -> list[TickResult]:
        return [self.tick() for _ in range(count)]

    def human(
        self, arm: str, targets: np.ndarray | None, engaged: bool = True, healthy: bool = True
    ) -> dict[str, TeleopInput]:
        """What teleop_node says about one arm at the coming tick."""
        return {arm: TeleopInput(self.now_tick * self.dt, engaged, targets, healthy, "" if healthy else "no solution")}
