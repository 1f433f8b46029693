"""Differential inverse kinematics: the joint step that brings the tool closest to a pose, within joint and speed limits."""

from __future__ import annotations

import numpy as np
from qpsolvers import solve_qp
from scipy.spatial.transform import Rotation

from aloe_intervention.kinematics import ArmKinematics

# Our choice: one radian of orientation error weighs like 0.1 m. It matters at joint limits only, where position goes before orientation.
RADIAN_IN_METRES = 0.1
DAMPING = 0.0005  # [m/rad] keeps the step unique away from singularities
# Below this smallest singular value [m/rad] the damping grows up to SINGULAR_DAMPING (Nakamura & Hanafusa 1986): no joint races where the arm is stretched.
SINGULAR_VALUE = 0.005
SINGULAR_DAMPING = 0.015


class NoSolution(Exception):
    """The solver found no joint step."""


class DifferentialIK:
    """Steps of one arm.

    Args:
        kinematics: the arm.
        lower: joint limits `[n]` [rad].
        upper: joint limits `[n]` [rad].
        max_velocity: per joint `[n]` [rad/s].
    """

    def __init__(
        self, kinematics: ArmKinematics, lower: np.ndarray, upper: np.ndarray, max_velocity: np.ndarray
    ) -> None:
        self.kinematics = kinematics
        self._lower, self._upper, self._max_velocity = lower, upper, max_velocity

    def step(self, joints: np.ndarray, position: np.ndarray, rotation: np.ndarray, dt: float) -> np.ndarray:
        """Joints `[n]` [rad] after one step of `dt` [s] towards the tool pose `position` `[3]` [m], `rotation` `[3, 3]`.

        min ||J dq - e||^2 + damping^2 ||dq||^2 within the limits, a quadratic programme.

        Raises:
            NoSolution: the solver failed, or the input is not finite.
        """
        here, turned, jacobian = self.kinematics.tool(joints)
        if not (np.isfinite(position).all() and np.isfinite(rotation).all() and np.isfinite(jacobian).all()):
            raise NoSolution("the pose to reach is not finite")
        error = np.concatenate([position - here, Rotation.from_matrix(rotation @ turned.T).as_rotvec()])
        error[3:] *= RADIAN_IN_METRES
        weighted = jacobian.copy()
        weighted[3:] *= RADIAN_IN_METRES
        smallest = np.linalg.svd(weighted, compute_uv=False)[-1] if len(joints) >= 6 else SINGULAR_VALUE
        closeness = max(0.0, 1.0 - (smallest / SINGULAR_VALUE) ** 2)
        damping = DAMPING**2 + closeness * SINGULAR_DAMPING**2
        reach = self._max_velocity * dt
        step = solve_qp(
            weighted.T @ weighted + damping * np.eye(len(joints)),
            -weighted.T @ error,
            lb=np.clip(self._lower - joints, -reach, reach),  # a joint outside its range comes back at its speed limit
            ub=np.clip(self._upper - joints, -reach, reach),
            solver="daqp",
        )
        if step is None or not np.isfinite(step).all():
            raise NoSolution("the solver found no joint step")
        return joints + step
