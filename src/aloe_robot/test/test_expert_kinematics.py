"""Closed-form kinematics against MuJoCo's, and against themselves."""

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe_robot.expert.kinematics import ArmKinematics, rotation_matrix, rotation_vector
from aloe_robot.expert.motion import ARM_SLICE
from aloe_robot.sim import SimEnv
from aloe_robot.sim.env import HOME

# In front of the robot, elbow up, wrist bent away from the singularity
JOINTS = st.tuples(
    st.floats(-1.2, 1.2),
    st.floats(-0.6, 0.4),
    st.floats(0.2, 1.2),
    st.floats(-1.3, 1.3),
    st.floats(0.3, 2.0),
    st.floats(-3, 3),
).map(np.array)


@pytest.mark.parametrize("arm", ["left", "right"])
def test_forward_kinematics_agree_with_the_simulator(arm):
    env = SimEnv("transfer_cube", cameras=())
    generator = np.random.default_rng(0)
    size = mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_TIME)
    for _ in range(50):
        joints = np.array(
            [
                generator.uniform(*bounds)
                for bounds in ((-3, 3), (-1.8, 1.2), (-1.7, 1.6), (-3, 3), (-1.8, 2.2), (-3, 3))
            ]
        )
        state = env.save_state()
        first = size + (0 if arm == "left" else 8)
        state[first : first + 6] = joints
        env.restore_state(state)
        position, rotation = ArmKinematics(arm).forward(joints)
        assert np.abs(position - env.world.tcp(arm)).max() < 1e-5
        assert np.abs(rotation - env.world.tool_rotation(arm)).max() < 1e-5


@given(JOINTS)
def test_inverse_kinematics_undo_forward_kinematics(joints):
    kinematics = ArmKinematics("right")
    assert np.abs(kinematics.inverse(*kinematics.forward(joints)) - joints).max() < 1e-6


@given(st.tuples(*[st.floats(-2, 2)] * 3), st.tuples(*[st.floats(-3, 3)] * 3))
def test_inverse_kinematics_of_any_pose_respect_the_joint_limits(position, turn):
    env_low, env_high = LIMITS
    joints = ArmKinematics("left").inverse(np.array(position), rotation_matrix(np.array(turn)))
    assert np.isfinite(joints).all()
    assert (joints >= env_low).all()
    assert (joints <= env_high).all()


@given(st.tuples(*[st.floats(-1.8, 1.8)] * 3).map(np.array))
def test_rotation_vectors_and_matrices_are_inverse(vector):
    matrix = rotation_matrix(vector)
    assert np.allclose(matrix @ matrix.T, np.eye(3))
    assert np.allclose(rotation_vector(matrix), vector, atol=1e-6)


@pytest.mark.parametrize("axis", np.vstack([np.eye(3), [[0.6, 0.8, 0.0], [-0.6, 0.0, 0.8]]]))
def test_half_a_turn_has_a_rotation_vector(axis):
    vector = rotation_vector(rotation_matrix(np.pi * axis))
    assert np.allclose(rotation_matrix(vector), rotation_matrix(np.pi * axis), atol=1e-6)


def test_home_is_reproduced():
    kinematics = ArmKinematics("left")
    home = HOME[ARM_SLICE["left"]]
    assert np.allclose(kinematics.inverse(*kinematics.forward(home)), home)


_ENV = SimEnv("transfer_cube", cameras=())
LIMITS = _ENV.position_min[ARM_SLICE["left"]], _ENV.position_max[ARM_SLICE["left"]]
