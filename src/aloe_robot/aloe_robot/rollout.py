"""Lockstep roll-outs without ROS: simulator, observation builder, policy and control loop called in turn.

The classes are those of the graph, only the messages between them are missing, so a seed gives the same episode here and there; a parity test holds the two
together. What it is for: many episodes fast (evaluation, data for experiments).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aloe_core.bag_format import EpisodeInfo
from aloe_core.chunk import NANOSECONDS, ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import bag_make
from aloe_core.observation import Observation, ObservationBuilder
from aloe_core.policy import ChunkPolicy, request_generator
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome, Source, Termination
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.loop import ControlLoop
from aloe_robot.control.records import ChunkRequest, TeleopInput, TickResult
from aloe_robot.episode_bag import EpisodeBag
from aloe_robot.sim.env import SimEnv
from aloe_robot.sim.messages import camera_due, check_rates, image, outcome_of

START_NS = (
    2 * NANOSECONDS
)  # time of the first observation: a whole second, as in `sim_node`, so that every camera has an image then
JPEG_QUALITY = 90  # `sim_node`'s default


class TeleopReading(Protocol):
    """What a human wants one arm to do; fields as in `TeleopInput`."""

    @property
    def engaged(self) -> bool: ...
    @property
    def positions(self) -> np.ndarray | None: ...
    @property
    def healthy(self) -> bool: ...
    @property
    def message(self) -> str: ...


class Operator(Protocol):
    """A (simulated) human with a SpaceMouse per arm, such as `aloe_intervention.lockstep.LockstepOperator`."""

    def reset(self, env: SimEnv) -> None:
        """A new episode begins in the state `env` is in."""
        ...

    def step(self, env: SimEnv, measured: np.ndarray, now_ns: int) -> Mapping[str, TeleopReading]:
        """What the human wants at `now_ns` (`env.time_ns`), by arm; `measured` `[A]`."""
        ...


@dataclass(frozen=True, slots=True)
class Rollout:
    """How one episode went.

    Attributes:
        steps: control ticks.
        duration_s: robot time [s].
        wall_s: time it took [s].
        human_ticks: ticks in which a human drove an arm.
        starved_ticks: ticks in which the policy had no row.
        limited_ticks: ticks in which the safety filter changed the command.
        max_jerk: largest third difference of the commanded joints, grippers left out [rad/s^3]; at most what the safety filter lets through.
        rms_jerk: its root mean square over ticks and joints [rad/s^3].
        bag: folder of its bag; None: not recorded.
    """

    episode_id: str
    seed: int
    outcome: Outcome
    steps: int
    duration_s: float
    wall_s: float
    interventions: int
    human_ticks: int
    starved_ticks: int
    limited_ticks: int
    max_jerk: float
    rms_jerk: float
    bag: Path | None = None

    @property
    def success(self) -> bool:
        return self.outcome == Outcome.SUCCESS


class Lockstep:
    """Robot, task, policy and, if given, a human, ready to run episodes.

    Args:
        robot: a robot with a simulator.
        task: name of the task.
        policy: proposes the chunks.
        control: settings of the control loop.
        operator: takes over when it thinks fit.
        record_cameras: also render and record the cameras the policy does not need.
        seed: of the policy's randomness.
        iteration: improvement iteration noted in the bags.

    Raises:
        AloeError: the robot has no simulator, or the policy does not fit it.
    """

    def __init__(
        self,
        robot: RobotDescription,
        task: str,
        policy: ChunkPolicy,
        control: ControlConfig | None = None,
        operator: Operator | None = None,
        record_cameras: bool = False,
        seed: int = 0,
        iteration: int = 0,
    ) -> None:
        if robot.simulator != "aloha":
            raise AloeError(f"robot '{robot.name}' has no simulator; roll-outs need one, e.g. aloha_sim")
        check_rates(robot)
        self.robot, self.policy, self.operator, self.seed, self.iteration = robot, policy, operator, seed, iteration
        self._watched = robot.cameras if record_cameras else tuple(robot.camera(name) for name in policy.cameras)
        names = tuple(c.name for c in self._watched)
        self.env = SimEnv(task, cameras=names, control_hz=round(robot.control_rate_hz))
        self.loop = ControlLoop(robot, control)
        self._next_chunk = 1

    def run(self, seed: int, time_limit: float = 0.0, bags: Path | None = None, episode_id: str = "") -> Rollout:
        """One episode from the reset with `seed` to its end.

        Args:
            time_limit: [s]; 0: the task's own.
            bags: folder in which to record it as `<episode_id>`.
            episode_id: empty: `<task>-<policy version>-<seed>`.
        """
        env = self.env
        began = time.perf_counter()
        episode = episode_id or f"{env.task.name}-{self.policy.version}-{seed:06d}"
        limit = round(time_limit * self.robot.control_rate_hz) or env.task.time_limit
        env.reset(seed)
        bag = None
        if bags is not None:
            info = EpisodeInfo(
                episode_id=episode,
                task=env.task.name,
                instruction=env.task.instruction,
                robot=self.robot.name,
                robot_hash=self.robot.hash,
                policy_version=self.policy.version,
                seed=seed,
                iteration=self.iteration,
            )
            bag = EpisodeBag(bags / episode, self.robot, info, env, limit)
            bag.start(START_NS)
        self._builder = ObservationBuilder(
            self.robot, self.policy.cameras, self.policy.image_size, use_task_state=self.policy.uses_task_state
        )
        if self.operator is not None:
            self.operator.reset(env)
        self.loop.start_episode(episode, env.task.instruction, START_NS, afresh=True)
        ticks: list[TickResult] = []
        while True:
            stamp = START_NS + env.time_ns
            images = self._images(stamp)
            if bag is not None:
                bag.observation(stamp, images)
            outcome = outcome_of(env, limit)
            if outcome != Outcome.UNLABELLED:
                break
            self._observe(stamp, images)
            ticks.append(self._tick(stamp, episode, bag))
            env.step(ticks[-1].commanded)
        last = self.loop.stop_episode(outcome)
        if bag is not None:
            if last is not None:
                bag.transition(last, stamp)
            timeout = outcome == Outcome.TIMEOUT
            bag.stop(stamp, outcome, Termination.TIME_LIMIT if timeout else Termination.TASK)
        jerk = self._jerk(ticks)
        return Rollout(
            episode_id=episode,
            seed=seed,
            outcome=outcome,
            steps=len(ticks),
            duration_s=env.time_ns / NANOSECONDS,
            wall_s=time.perf_counter() - began,
            interventions=max((t.state.intervention_id for t in ticks), default=0),
            human_ticks=sum(Source.HUMAN in t.source for t in ticks),
            starved_ticks=ticks[-1].state.starved_ticks if ticks else 0,
            limited_ticks=sum(t.safety.state != 0 for t in ticks),
            max_jerk=float(jerk.max(initial=0.0)),
            rms_jerk=float(np.sqrt(np.square(jerk).mean())) if jerk.size else 0.0,
            bag=None if bags is None else bags / episode,
        )

    def _images(self, stamp_ns: int) -> dict[str, Any]:
        due = [c for c in self._watched if camera_due(c, stamp_ns)]
        return {c.name: image(bag_make, self.env, c, stamp_ns, JPEG_QUALITY) for c in due}

    def _observe(self, stamp_ns: int, images: dict[str, Any]) -> None:
        device = self.robot.to_device(self.env.joint_positions())
        self._builder.add_joint_state(stamp_ns, self.robot.action_names, device.tolist())
        for name, message in images.items():
            self._builder.add_image(name, stamp_ns, message.data.tobytes())
        if self.policy.uses_task_state:
            self._builder.add_task_state(stamp_ns, self.env.object_state(), self.env.save_state())

    def _tick(self, stamp_ns: int, episode: str, bag: EpisodeBag | None) -> TickResult:
        measured = self.robot.from_device(self.robot.to_device(self.env.joint_positions()))
        teleop: dict[str, TeleopInput] = {}
        if self.operator is not None:
            for arm, wish in self.operator.step(self.env, measured, self.env.time_ns).items():
                teleop[arm] = TeleopInput(stamp_ns, wish.engaged, wish.positions, wish.healthy, wish.message)
        for request in self.loop.observe(stamp_ns, stamp_ns, measured, teleop):
            chunk = self._propose(request, episode)
            refusal = self.loop.add_chunk(chunk, stamp_ns)
            if refusal is not None:
                raise AloeError(f"policy '{self.policy.version}': its chunk was refused: {refusal}")
            if bag is not None:
                bag.request(request)
                bag.chunk(chunk, stamp_ns)
        result = self.loop.act()
        if bag is not None:
            bag.tick(result, stamp_ns)
        return result

    def _propose(self, request: ChunkRequest, episode: str) -> ActionChunk:
        observation: Observation = self._builder.build(request.stamp_ns, request.instruction)
        generator = request_generator(self.seed, episode, request.request_id)
        prefix = request.prefix if len(request.prefix) else None
        began = time.perf_counter()
        positions = self.policy.propose(observation, generator, prefix, request.prefix_steps)
        latency = time.perf_counter() - began
        chunk_id, self._next_chunk = self._next_chunk, self._next_chunk + 1
        return ActionChunk(
            stamp_ns=request.stamp_ns,
            positions=positions,
            dt_ns=self.robot.control_dt_ns,
            chunk_id=chunk_id,
            request_id=request.request_id,
            policy_version=self.policy.version,
            episode_id=episode,
            inference_latency_s=latency,
            camera_stamps_ns=dict(observation.camera_stamps_ns),
        )

    def _jerk(self, ticks: list[TickResult]) -> np.ndarray:
        """|third difference| of the commanded joints `[ticks - 3, joints]` [rad/s^3]; of fewer than four ticks nothing."""
        if len(ticks) < 4:
            return np.zeros((0, 0))
        commands = np.stack([t.commanded for t in ticks])[:, ~self.robot.gripper_mask]
        return np.abs(np.diff(commands, n=3, axis=0)) * self.robot.control_rate_hz**3
