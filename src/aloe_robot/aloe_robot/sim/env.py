"""The simulated robot as one object: reset, step, look, and save or restore its exact state."""

from __future__ import annotations

import logging
from typing import Final

import mujoco
import numpy as np

from aloe_core.errors import AloeError
from aloe_robot.sim.rendering import CameraRenderer
from aloe_robot.sim.scene import ARMS, CAMERAS, build_model
from aloe_robot.sim.tasks import Task, make_task
from aloe_robot.sim.world import World

ACTION_DIM: Final = 14  # left: 6 joints [rad], gripper [0 closed .. 1 open]; right: the same
GRIPPERS: Final = np.array([6, 13])
ARM_JOINTS: Final = np.array([0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12])

# ALOHA's convention for a gripper opening of 0 and 1 as finger position [m]. The end stops lie at 0.021 and 0.057, i.e. openings 0.065 and 0.975.
FINGER_CLOSED, FINGER_OPEN = 0.01844, 0.05800
HOME: Final = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.1] * 2)

# A setpoint never jumps further than this, as a servo driver would refuse it: bigger steps excite the stiff position servos until the integration diverges.
MAX_ARM_SPEED, MAX_GRIPPER_SPEED = 6.0, 15.0  # [rad/s], [opening/s]: 0.12 rad and 0.3 per step at 50 Hz

_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART
_DIVERGED = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)

# MuJoCo's default writes warnings to MUJOCO_LOG.TXT in the working directory.
mujoco.set_mju_user_warning(logging.getLogger(__name__).warning)


class SimEnv:
    """The ALOHA robot doing one task, stepped at the control rate.

    Actions and joint positions are float64 `[14]`: left 6 joints [rad], left gripper opening (0 closed .. 1 open), the same for the right arm. An action is a
    position target: it is clipped to the joint ranges and to the speed of a servo, then held for one control period.

    `success` and `progress` are latched until `reset`, and a failure cannot be undone by any action; stepping on is allowed and keeps the time
    running. A diverged simulation is a failure, and stays frozen at its last finite state.
    """

    def __init__(
        self,
        task: str | Task,
        cameras: tuple[str, ...] = CAMERAS,
        control_hz: int = 50,
        model: mujoco.MjModel | None = None,
    ) -> None:
        """Builds the scene and resets it with seed 0.

        Args:
            task: a task or the name of one.
            cameras: the cameras that may be rendered; nothing of OpenGL is loaded before the first `render`.
            control_hz: control rate; its period must be a multiple of the physics step (2 ms).
            model: the compiled scene of an environment with the same task, to share it (see `twin`).

        Raises:
            AloeError: unknown task or camera, or an impossible control rate.
        """
        self.task: Task = make_task(task) if isinstance(task, str) else task
        unknown = sorted(set(cameras) - set(CAMERAS))
        if unknown:
            raise AloeError(f"the simulator has no camera '{unknown[0]}'; it has: {', '.join(CAMERAS)}")
        self.cameras = tuple(cameras)
        self.control_hz = control_hz
        self.model = build_model(self.task.scene_file) if model is None else model
        self.substeps = round(1 / (control_hz * self.model.opt.timestep))
        if self.substeps < 1 or abs(self.substeps * self.model.opt.timestep * control_hz - 1) > 1e-9:
            raise AloeError(
                f"a control rate of {control_hz} Hz does not fit physics steps of {self.model.opt.timestep} s; try 50, 100 or 25 Hz"
            )
        self.period_ns = round(1e9 / control_hz)
        self._max_step = np.full(ACTION_DIM, MAX_ARM_SPEED / control_hz)
        self._max_step[GRIPPERS] = MAX_GRIPPER_SPEED / control_hz

        self._data = mujoco.MjData(self.model)
        self.world = World(self.model, self._data, self.task.objects, self.task.parts)
        self.object_state_names = tuple(
            f"{name}/{part}" for name in self.task.objects for part in ("x", "y", "z", "qw", "qx", "qy", "qz")
        )
        self._joint_qpos = np.array([self.model.joint(f"vx300s_{a}/{j}").qposadr[0] for a in ARMS for j in _JOINTS])
        self._joint_qvel = np.array([self.model.joint(f"vx300s_{a}/{j}").dofadr[0] for a in ARMS for j in _JOINTS])
        low, high = self.model.actuator_ctrlrange[_ACTUATORS_OF_ACTION].T
        self.position_min, self.position_max = low.copy(), high.copy()
        self.position_min[GRIPPERS], self.position_max[GRIPPERS] = 0.0, 1.0

        self._physics_size = mujoco.mj_stateSize(self.model, _PHYSICS)
        self._last_good = np.empty(self._physics_size)
        self._renderer: CameraRenderer | None = None
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Starts an episode: arms at home, objects where the seed puts them, time and tick at zero."""
        mujoco.mj_resetData(self.model, self._data)
        self.command = HOME.copy()
        self.command_step = np.zeros(ACTION_DIM)
        self._data.qpos[self._joint_qpos] = HOME
        fingers = _finger(HOME[GRIPPERS])
        self._data.qpos[self._joint_qpos[GRIPPERS]] = fingers
        self._data.qpos[self._joint_qpos[GRIPPERS] + 1] = -fingers
        self._data.qpos[self.world.object_qpos] = self.task.initial_poses(np.random.default_rng(seed)).ravel()
        self.seed = seed
        self.tick = 0
        self.progress = 0.0
        self.success = False
        self._held = 0
        self._diverged = False
        self._refresh()

    def step(self, action: np.ndarray) -> None:
        """Applies an action `[14]` for one control period and judges the result.

        Raises:
            ValueError: the action is not 14 finite numbers.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_DIM} finite numbers, not {action}")
        self.tick += 1
        if self._diverged:
            return
        target = np.clip(action, self.position_min, self.position_max)
        command = np.clip(target, self.command - self._max_step, self.command + self._max_step)
        self.command_step = command - self.command
        self.command = command
        mujoco.mj_getState(self.model, self._data, self._last_good, _PHYSICS)
        self._apply_command()
        for _ in range(
            self.substeps
        ):  # the first half of MuJoCo's step comes last, so that poses and contacts are those of the new state
            mujoco.mj_step2(self.model, self._data)
            mujoco.mj_step1(self.model, self._data)
        if any(self._data.warning[w].number for w in _DIVERGED):
            self._diverged = True
            self._load_physics(self._last_good)
            return
        self.world.refresh()
        self._status = self.task.evaluate(self.world)
        self._held = self._held + 1 if self._status.goal else 0
        self.success |= self._held >= self.task.hold_steps
        self.progress = 1.0 if self.success else max(self.progress, self._status.progress)

    @property
    def failure(self) -> str | None:
        """Why the episode can never succeed any more, or None."""
        if self.success:
            return None
        return "the simulation diverged" if self._diverged else self._status.failure

    @property
    def timed_out(self) -> bool:
        """Whether the time limit passed without success or failure."""
        return self.tick >= self.task.time_limit and not self.success and self.failure is None

    @property
    def done(self) -> bool:
        """Whether the episode ended: success, failure or time limit."""
        return self.success or self.failure is not None or self.timed_out

    @property
    def time_ns(self) -> int:
        """Simulated time since the reset [ns]."""
        return self.tick * self.period_ns

    def joint_positions(self) -> np.ndarray:
        """Measured joints [rad] and gripper openings, float64 `[14]`."""
        positions = self._data.qpos[self._joint_qpos]
        positions[GRIPPERS] = (positions[GRIPPERS] - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)
        return positions

    def joint_velocities(self) -> np.ndarray:
        """Measured joint velocities [rad/s] and rates of the gripper openings [1/s], float64 `[14]`."""
        velocities = self._data.qvel[self._joint_qvel]
        velocities[GRIPPERS] /= FINGER_OPEN - FINGER_CLOSED
        return velocities

    def object_state(self) -> np.ndarray:
        """Poses of the task's objects, float64 `[7 * objects]`: xyz [m] and unit quaternion wxyz with w >= 0, named by `object_state_names`."""
        poses = self._data.qpos[self.world.object_qpos].reshape(-1, 7)
        poses[:, 3:] *= np.where(poses[:, 3:4] < 0, -1.0, 1.0)
        return poses.ravel()

    def state_observation(self) -> np.ndarray:
        """Observation of state-mode policies, float64 `[14 + 7 * objects]`: joint positions, then object state.

        Everything the scripted expert looks at, but for velocities and contacts; both show in where fingers and objects are.
        """
        return np.concatenate([self.joint_positions(), self.object_state()])

    def render(self, camera: str, width: int = 640, height: int = 480) -> np.ndarray:
        """RGB image of a camera, uint8 `[height, width, 3]`.

        Raises:
            AloeError: the camera is not one of `cameras`, or EGL is missing on this machine.
        """
        if camera not in self.cameras:
            raise AloeError(f"camera '{camera}' is not switched on; cameras: {', '.join(self.cameras) or 'none'}")
        if self._renderer is None:
            self._renderer = CameraRenderer(self.model)
        return self._renderer.render(self._data, camera, width, height)

    @property
    def state_size(self) -> int:
        """Length of the vector of `save_state`: 102 for `transfer_cube`, 121 for `insertion`."""
        return self._physics_size + 2 * ACTION_DIM + _COUNTERS

    def save_state(self) -> np.ndarray:
        """Everything the future depends on, as one float64 vector `[state_size]`; a continued trajectory is equal bit by bit.

        In this order: MuJoCo's time, qpos, qvel and solver warm start; last command `[14]`; last change of the command `[14]`;
        seed, tick, goal steps in a row, progress, success, diverged.
        """
        physics = np.empty(self._physics_size)
        mujoco.mj_getState(self.model, self._data, physics, _PHYSICS)
        counters = [self.seed, self.tick, self._held, self.progress, self.success, self._diverged]
        return np.concatenate([physics, self.command, self.command_step, counters])

    def restore_state(self, state: np.ndarray) -> None:
        """Continues from a state saved by an environment with the same task and control rate.

        Raises:
            ValueError: the vector has another length.
        """
        if state.shape != (self.state_size,):
            raise ValueError(
                f"a state of task '{self.task.name}' has {self.state_size} numbers, this one has the shape {state.shape}"
            )
        physics, self.command, self.command_step, counters = np.split(
            state, np.cumsum([self._physics_size, ACTION_DIM, ACTION_DIM])
        )
        self.command, self.command_step = self.command.copy(), self.command_step.copy()
        self.seed, self.tick, self._held = (int(c) for c in counters[:3])
        self.progress, self.success, self._diverged = float(counters[3]), bool(counters[4]), bool(counters[5])
        self._load_physics(physics)

    def place_objects(self, poses: np.ndarray) -> None:
        """Puts the task's objects at `poses` `[objects, 7]` (xyz [m], quaternion wxyz), at rest: a disturbance, for tests and experiments."""
        state = self.save_state()
        self._data.qpos[self.world.object_qpos] = poses.ravel()
        self._data.qvel[self.world.object_qvel] = 0.0
        mujoco.mj_getState(self.model, self._data, state[: self._physics_size], _PHYSICS)
        self.restore_state(state)

    def twin(self) -> SimEnv:
        """A second environment of the same task without cameras: it shares the compiled scene (read-only) and nothing else."""
        twin = SimEnv(self.task, cameras=(), control_hz=self.control_hz, model=self.model)
        twin.restore_state(self.save_state())
        return twin

    def close(self) -> None:
        """Frees the OpenGL context, if one was made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _load_physics(self, physics: np.ndarray) -> None:
        mujoco.mj_resetData(self.model, self._data)
        mujoco.mj_setState(self.model, self._data, physics, _PHYSICS)
        self._refresh()

    def _refresh(self) -> None:
        self._apply_command()
        mujoco.mj_step1(self.model, self._data)
        self.world.refresh()
        self._status = self.task.evaluate(self.world)

    def _apply_command(self) -> None:
        fingers = _finger(self.command[GRIPPERS])
        self._data.ctrl[_ACTUATORS_OF_ACTION] = self.command
        self._data.ctrl[_ACTUATORS_OF_ACTION[GRIPPERS]] = fingers
        self._data.ctrl[_ACTUATORS_OF_ACTION[GRIPPERS] + 1] = -fingers


_COUNTERS = 6
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "left_finger")
_ACTUATORS_OF_ACTION = np.array(
    [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14]
)  # two finger servos per gripper, the second mirrors the first


def _finger(opening: np.ndarray) -> np.ndarray:
    """Gripper opening -> finger position [m]; MuJoCo clips it to the end stops."""
    return FINGER_CLOSED + opening * (FINGER_OPEN - FINGER_CLOSED)
