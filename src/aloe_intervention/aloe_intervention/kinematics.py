"""Where the tool of an arm is and how its joints move it: MuJoCo for the simulated robot, Pinocchio for robots that come as URDF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription

if TYPE_CHECKING:
    import mujoco


class ArmKinematics(Protocol):
    """Kinematics of one arm in its base frame. Joints are in the robot description's order, gripper left out."""

    def tool(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Joints `[n]` [rad] -> position `[3]` [m], rotation `[3, 3]` and Jacobian `[6, n]` (linear above angular) of the tool."""
        ...


class MujocoKinematics:
    """An arm inside a MuJoCo model.

    Args:
        model: the compiled model; only read.
        joints: MuJoCo names of the arm's joints.
        base_body: body whose frame poses are given in.
        tool_body: body that carries the tool.
        tool_offset: tool point in the frame of `tool_body` [m].
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        joints: tuple[str, ...],
        base_body: str,
        tool_body: str,
        tool_offset: np.ndarray | None = None,
    ) -> None:
        import mujoco

        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._qpos = np.array([int(model.joint(name).qposadr[0]) for name in joints])
        self._dofs = np.array([int(model.joint(name).dofadr[0]) for name in joints])
        self._tool = model.body(tool_body).id
        self._offset = np.zeros(3) if tool_offset is None else np.asarray(tool_offset, np.float64)
        self._jacobian = np.empty((6, model.nv))
        mujoco.mj_kinematics(model, self._data)
        base = self._data.body(base_body)
        self._base_position, self._base_rotation = base.xpos.copy(), base.xmat.reshape(3, 3).copy()

    def tool(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `ArmKinematics.tool`."""
        self._data.qpos[self._qpos] = joints
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)
        rotation = self._data.xmat[self._tool].reshape(3, 3)
        point = self._data.xpos[self._tool] + rotation @ self._offset
        self._mujoco.mj_jac(self._model, self._data, self._jacobian[:3], self._jacobian[3:], point, self._tool)
        to_base = self._base_rotation.T
        jacobian = self._jacobian[:, self._dofs].reshape(2, 3, -1)
        return to_base @ (point - self._base_position), to_base @ rotation, (to_base @ jacobian).reshape(6, -1)


class PinocchioKinematics:
    """An arm of a URDF; meshes are not needed.

    Args:
        urdf: the file.
        joints: names of the arm's joints.
        base_frame: link whose frame poses are given in; empty for the root.
        tool_frame: link of the tool.

    Raises:
        AloeError: no such file, not a URDF, or a joint or link it does not have; the message names it.
    """

    def __init__(self, urdf: Path, joints: tuple[str, ...], base_frame: str, tool_frame: str) -> None:
        import pinocchio

        if not urdf.is_file():
            raise AloeError(f"the URDF {urdf} does not exist")
        try:
            self._model = pinocchio.buildModelFromUrdf(str(urdf))
        except (ValueError, RuntimeError) as error:
            raise AloeError(f"{urdf}: not a readable URDF: {error}") from None
        self._pinocchio, self._data = pinocchio, self._model.createData()
        for name in joints:
            if not self._model.existJointName(name):
                raise AloeError(f"{urdf}: there is no movable joint '{name}'")
        ids = [self._model.getJointId(name) for name in joints]
        self._qpos = np.array([self._model.joints[i].idx_q for i in ids])
        self._dofs = np.array([self._model.joints[i].idx_v for i in ids])
        self._base, self._tool = (self._frame(urdf, name) for name in (base_frame, tool_frame))
        self._neutral = pinocchio.neutral(self._model)

    def _frame(self, urdf: Path, name: str) -> int:
        if not name:
            return 0
        if not self._model.existFrame(name):
            raise AloeError(f"{urdf}: there is no link '{name}'")
        return int(self._model.getFrameId(name))

    def tool(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `ArmKinematics.tool`."""
        pin, model, data = self._pinocchio, self._model, self._data
        q = self._neutral.copy()
        q[self._qpos] = joints
        jacobian = pin.computeFrameJacobian(model, data, q, self._tool, pin.LOCAL_WORLD_ALIGNED)[:, self._dofs]
        pin.framesForwardKinematics(model, data, q)
        base, tool = data.oMf[self._base], data.oMf[self._tool]
        relative = base.actInv(tool)
        turned = base.rotation.T @ jacobian.reshape(2, 3, -1)
        return relative.translation.copy(), relative.rotation.copy(), turned.reshape(6, -1)


def arm_kinematics(robot: RobotDescription, arm_name: str, folder: Path) -> ArmKinematics:
    """Kinematics of one arm of a robot.

    Args:
        robot: the description.
        arm_name: one of its arms.
        folder: where the description's file lies; `urdf` is relative to it.

    Raises:
        AloeError: the description gives neither a simulator nor a URDF with this arm's frames.
    """
    arm = robot.arms[robot.arm_names.index(arm_name)]
    joints = tuple(j.name for j in arm.joints)
    if robot.simulator == "aloha":
        from aloe_robot.sim.scene import TCP_OFFSET, build_model
        from aloe_robot.sim.tasks import TransferCube

        prefix = f"vx300s_{arm_name}"
        names = tuple(f"{prefix}/{name.removeprefix(arm_name + '_')}" for name in joints)
        return MujocoKinematics(
            build_model(TransferCube.scene_file), names, prefix, f"{prefix}/gripper_link", TCP_OFFSET
        )
    if robot.urdf is None or not arm.tool_frame:
        raise AloeError(
            f"teleoperation needs the kinematics of '{robot.name}': give 'urdf' in its description, and 'tool_frame' for arm '{arm_name}'"
        )
    return PinocchioKinematics(folder / robot.urdf, joints, arm.base_frame, arm.tool_frame)
