"""The simulated robot: exactness of its state, its limits, its tasks and its failures."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe_core.errors import AloeError
from aloe_robot.sim import ACTION_DIM, SimEnv, make_task
from aloe_robot.sim.env import ARM_JOINTS, GRIPPERS, HOME


@pytest.fixture(scope="module", params=["transfer_cube", "insertion"])
def env(request):
    return SimEnv(request.param, cameras=())


@pytest.fixture(scope="module")
def cube_env():
    return SimEnv("transfer_cube", cameras=())


def random_walk(env, steps, seed):
    generator = np.random.default_rng(seed)
    target = env.command.copy()
    for _ in range(steps):
        target = target + generator.normal(0.0, 0.05, ACTION_DIM)
        yield target


def test_a_restored_trajectory_is_equal_bit_by_bit(env):
    env.reset(3)
    for action in random_walk(env, 30, 0):
        env.step(action)
    saved = env.save_state()
    assert saved.dtype == np.float64
    assert saved.shape == (env.state_size,)
    twin = env.twin()
    actions = list(random_walk(env, 60, 1))
    trajectories = []
    for simulation in (env, twin, env):
        simulation.restore_state(saved)
        states = []
        for action in actions:
            simulation.step(action)
            states.append(simulation.save_state())
        trajectories.append(np.array(states))
    assert np.array_equal(trajectories[0], trajectories[1])
    assert np.array_equal(trajectories[0], trajectories[2])


def test_a_seed_fixes_the_episode_and_seeds_differ(env):
    starts = []
    for seed in (5, 6, 5):
        env.reset(seed)
        starts.append(env.save_state())
    assert np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])


def test_time_is_an_integer_number_of_ticks(cube_env):
    cube_env.reset(0)
    for tick in range(1, 8):
        cube_env.step(HOME)
        assert (cube_env.tick, cube_env.time_ns) == (tick, tick * 20_000_000)


def test_a_held_command_is_reached(cube_env):
    cube_env.reset(0)
    target = HOME + np.array([0.2, -0.2, 0.2, 0.3, 0.2, 0.5, 0.5] * 2)
    for _ in range(100):
        cube_env.step(target)
    error = np.abs(cube_env.joint_positions() - target)
    assert error[ARM_JOINTS].max() < 0.02  # servos sag a little
    assert error[GRIPPERS].max() < 0.05  # fingers have friction
    assert np.abs(cube_env.joint_velocities()).max() < 0.05


def test_commands_respect_servo_speed_and_range(cube_env):
    cube_env.reset(0)
    before = cube_env.command.copy()
    cube_env.step(np.full(ACTION_DIM, 100.0))
    step = cube_env.command - before
    assert np.allclose(step[ARM_JOINTS], 0.12)
    assert np.allclose(step[GRIPPERS], 0.3)
    for _ in range(60):
        cube_env.step(np.full(ACTION_DIM, 100.0))
    assert np.array_equal(cube_env.command, cube_env.position_max)


@given(st.lists(st.lists(st.floats(-10, 10), min_size=ACTION_DIM, max_size=ACTION_DIM), min_size=1, max_size=15))
def test_any_actions_leave_the_state_finite_and_within_limits(cube_env, actions):
    cube_env.reset(0)
    for action in actions:
        cube_env.step(np.array(action))
    assert cube_env.failure is None
    assert np.isfinite(cube_env.save_state()).all()
    assert (cube_env.command >= cube_env.position_min).all()
    assert (cube_env.command <= cube_env.position_max).all()


@pytest.mark.parametrize("action", [np.zeros(13), np.full(ACTION_DIM, np.nan), np.full(ACTION_DIM, np.inf)])
def test_a_malformed_action_is_refused(cube_env, action):
    cube_env.reset(0)
    before = cube_env.save_state()
    with pytest.raises(ValueError, match="14 finite numbers"):
        cube_env.step(action)
    assert np.array_equal(before, cube_env.save_state())


def test_divergence_is_a_failure_and_freezes_the_last_finite_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = SimEnv("transfer_cube", cameras=())
    env.step(HOME)
    before = env.joint_positions()
    env.model.opt.gravity[:] = 1e14
    env.step(HOME)
    assert env.failure == "the simulation diverged"
    assert env.done
    assert np.array_equal(env.joint_positions(), before)
    env.step(HOME)
    assert env.tick == 3
    assert np.isfinite(env.save_state()).all()
    twin = env.twin()
    assert twin.failure == "the simulation diverged"
    env.model.opt.gravity[:] = (0, 0, -9.81)
    env.reset(0)
    assert env.failure is None
    assert not list(tmp_path.iterdir())  # MuJoCo's own log file


def test_object_state_has_names_and_a_canonical_quaternion(env):
    env.reset(1)
    assert len(env.object_state_names) == env.object_state().size == 7 * len(env.task.objects)
    assert env.object_state_names[:3] == tuple(f"{next(iter(env.task.objects))}/{axis}" for axis in "xyz")
    poses = env.object_state().reshape(-1, 7)
    flipped = poses.copy()
    flipped[:, 3:] *= -1
    env.place_objects(flipped)
    assert np.allclose(env.object_state(), poses.ravel())
    assert np.array_equal(env.state_observation(), np.concatenate([env.joint_positions(), env.object_state()]))


def test_objects_start_at_rest_where_the_task_says(env):
    env.reset(2)
    start = env.object_state()
    expected = env.task.initial_poses(np.random.default_rng(2))
    assert np.allclose(start, expected.ravel())
    for _ in range(25):
        env.step(HOME)
    assert np.abs(env.object_state() - start).max() < 1e-3


def test_an_object_off_the_table_is_a_failure(env):
    env.reset(0)
    poses = env.object_state().reshape(-1, 7)
    poses[0, :3] = (0.0, 1.3, 0.1)
    env.place_objects(poses)
    for _ in range(20):
        env.step(HOME)
    assert env.failure == f"the {next(iter(env.task.objects))} fell off the table"
    assert not env.success
    assert env.done


class Contacts:
    """A world of which only the contacts are known."""

    def __init__(self, *touching):
        self.touching = {frozenset(pair) for pair in touching}

    def touch(self, a, b):
        return frozenset((a, b)) in self.touching

    def position(self, name):
        return np.zeros(3)

    def tcp(self, arm):
        return np.ones(3)


@pytest.mark.parametrize(("left", "right", "table"), list(itertools.product((False, True), repeat=3)))
def test_cube_goal_is_left_hand_only_and_off_the_table(left, right, table):
    pairs = [("cube", party) for party, on in (("left_pads", left), ("right_pads", right), ("table", table)) if on]
    status = make_task("transfer_cube").evaluate(Contacts(*pairs))
    assert status.goal == (left and not right and not table)


@pytest.mark.parametrize("missing", range(4))
def test_insertion_goal_needs_both_hands_and_the_pin(missing):
    pairs = [("peg", "right_pads"), ("socket", "left_pads"), ("peg", "pin"), ("peg", "socket")]
    task = make_task("insertion")
    assert task.evaluate(Contacts(*pairs)).goal
    assert not task.evaluate(Contacts(*pairs, ("peg", "table"))).goal
    assert not task.evaluate(Contacts(*pairs, ("socket", "table"))).goal
    del pairs[missing]
    assert task.evaluate(Contacts(*pairs)).goal == (missing == 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "juggling"}, "unknown task 'juggling'; known tasks: transfer_cube, insertion"),
        ({"task": "transfer_cube", "cameras": ("belly",)}, "no camera 'belly'; it has: overhead"),
        ({"task": "transfer_cube", "control_hz": 60}, "60 Hz"),
    ],
)
def test_impossible_settings_are_named(arguments, sentence):
    with pytest.raises(AloeError, match=sentence):
        SimEnv(**arguments)


def test_a_state_of_another_task_is_refused(cube_env):
    with pytest.raises(ValueError, match="a state of task 'transfer_cube' has 102 numbers"):
        cube_env.restore_state(np.zeros(121))
