"""The simulated operator finishes what the policy fails at, and the tags of every tick say who moved the arm."""

from itertools import pairwise

import numpy as np
import pytest

from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.fragments import derive_fragments
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Mode, Outcome, Source
from aloe_intervention.dead_man import DeadManConfig
from aloe_intervention.lockstep import LockstepOperator
from aloe_intervention.operator_sim import FailureWatch, OperatorConfig, SimulatedOperator
from aloe_intervention.teleop import TeleopConfig
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.loop import ControlLoop
from aloe_robot.control.records import TeleopInput
from aloe_robot.expert.expert import Expert, ExpertConfig
from aloe_robot.sim.env import SimEnv

ROBOT = load_robot("aloha_sim")
DT = ROBOT.control_dt_ns
RATE = 1e9 / DT
ARMS = dict(zip(ROBOT.arm_names, ROBOT.arm_slices, strict=True))
JOINTS = ~ROBOT.gripper_mask


class Missing:
    """A policy that goes for the wrong place, with a shaky hand: chunks of a poor demonstrator, each from the state it is asked in."""

    def __init__(self, seed: int) -> None:
        self._env = SimEnv("transfer_cube", cameras=())
        self._expert = Expert("transfer_cube", ExpertConfig(grasp_offset=0.03, joint_noise=0.01, seed=seed))

    def chunk(self, state: np.ndarray) -> np.ndarray:
        self._env.restore_state(state)
        rows = np.empty((50, 14), np.float32)
        for row in rows:
            row[:] = self._expert.act(self._env)
            self._env.step(row)
        return rows


def run(env, operator, seed, limit_s=30.0, policy=None, config=None):
    """One episode in lockstep; what the loop did in each tick, and what it was told."""
    env.reset(seed)
    operator.reset(env)
    loop = ControlLoop(ROBOT, config or ControlConfig())
    loop.start_episode("episode", "instruction")
    ticks, wishes, transitions = [], [], []
    while env.tick < limit_s * RATE and not env.success and env.failure is None:
        now = env.time_ns
        wish = operator.step(env, env.joint_positions(), now)
        for request in loop.observe(now, now, env.joint_positions(), wish):
            # What the policy proposes in the shadow of two human hands is not executed; it may be cheap.
            shadow = policy is None or (ticks and set(ticks[-1].source) == {Source.HUMAN})
            rows = np.repeat(ROBOT.home[None], 50, 0).astype(np.float32) if shadow else policy.chunk(env.save_state())
            loop.add_chunk(ActionChunk(now, rows, DT, request.request_id, request.request_id, "bc", "episode"), now)
        result = loop.act()
        ticks.append(result)
        wishes.append(wish)
        if result.transition is not None:
            transitions.append(result.transition)
        env.step(result.commanded)
    transitions.append(loop.stop_episode(Outcome.SUCCESS if env.success else Outcome.FAILURE))
    return ticks, wishes, transitions


@pytest.fixture(scope="module")
def env() -> SimEnv:
    return SimEnv("transfer_cube", cameras=())


def test_it_finishes_what_the_policy_fails_at(env):
    """Six seeds here; `benchmarks/bench_teleop.py` counts thirty."""
    operator = LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=2.5))
    won = taken = 0
    for seed in range(6):
        ticks, _, _ = run(env, operator, seed, policy=Missing(seed))
        if operator.operator.take_overs > taken:
            taken = operator.operator.take_overs
            won += env.success
            assert any(Source.HUMAN in t.source for t in ticks)
    assert taken >= 4, "this policy fails nearly always"
    assert won >= 0.8 * taken


def test_an_episode_with_it_is_the_same_every_time(env):
    first = run(env, LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=0.5)), 3, limit_s=3.0)[0]
    again = run(env, LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=0.5)), 3, limit_s=3.0)[0]
    np.testing.assert_array_equal([t.commanded for t in first], [t.commanded for t in again])
    other = run(env, LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=0.5, seed=1)), 3, limit_s=3.0)[0]
    count = min(len(first), len(other))
    assert not np.array_equal([t.commanded for t in first[:count]], [t.commanded for t in other[:count]])


def test_it_moves_at_human_speed_and_after_its_reaction_time(env):
    operator = LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=1.0, reaction_time=0.6, speed=0.15))
    ticks, _, _ = run(env, operator, 5, limit_s=4.0)
    first = next(i for i, t in enumerate(ticks) if Source.HUMAN in t.source)
    assert 1.6 * RATE <= first <= 1.6 * RATE + 6
    env.reset(5)
    places = []
    for tick in ticks:
        env.step(tick.commanded)
        places.append([env.world.tcp(arm).copy() for arm in ARMS])
    speed = np.linalg.norm(np.diff(places[first + 15 :], axis=0), axis=-1) * RATE
    assert 0.05 < np.percentile(speed, 90) < 0.2


def test_it_hands_back_when_the_task_has_come_further(env):
    operator = LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=1.0, hand_back=True))
    ticks, _, _ = run(env, operator, 2, limit_s=9.0)
    modes = [t.state.mode for t in ticks]
    first = next(i for i, m in enumerate(modes) if m == (Mode.HUMAN, Mode.HUMAN))
    assert any(m == (Mode.POLICY, Mode.POLICY) for m in modes[first:])
    assert env.progress >= 0.6


def test_a_clumsy_operator_is_worse(env):
    """A misjudgement of 3 cm misses the cube; the default of 1 mm does not."""
    steady = run(env, LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=0.5)), 1, limit_s=12.0)[0]
    assert env.success
    clumsy = OperatorConfig(patience=0.5, clumsiness=0.03)
    shaky = run(env, LockstepOperator(ROBOT, "transfer_cube", clumsy), 1, limit_s=len(steady) / RATE)[0]
    assert not env.success
    assert len(shaky) == len(steady)


# Tags


class RandomHands:
    """Takes over and lets go of each arm at random, on its own, follows a random walk, and is not always well."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def reset(self, env: SimEnv) -> None:
        self._engaged = dict.fromkeys(ARMS, False)
        self._target = {}

    def step(self, env: SimEnv, measured: np.ndarray, now_ns: int) -> dict[str, TeleopInput]:
        wishes = {}
        for arm, span in ARMS.items():
            if self._random.random() < 0.04:
                self._engaged[arm] = not self._engaged[arm]
                self._target[arm] = measured[span].copy()
            if not self._engaged[arm]:
                wishes[arm] = TeleopInput(now_ns, False)
            elif self._random.random() < 0.05:
                wishes[arm] = TeleopInput(now_ns, True, None, False, "unwell")
            else:
                self._target[arm] = self._target[arm] + self._random.normal(0, 0.01, span.stop - span.start)
                wishes[arm] = TeleopInput(now_ns, True, self._target[arm].copy())
        return wishes


@pytest.mark.parametrize("seed", range(6))
def test_the_tag_of_every_tick_is_who_moved_the_arm(env, seed):
    ticks, wishes, transitions = run(env, RandomHands(seed), seed, limit_s=6.0)
    assert len(transitions) == len(ticks)
    assert [t.step for t in transitions] == list(range(len(ticks)))
    for k, (tick, wish, transition) in enumerate(zip(ticks, wishes, transitions, strict=True)):
        assert transition.source == tick.source
        for arm, (name, span) in enumerate(ARMS.items()):
            source, mode = tick.source[arm], tick.state.mode[arm]
            idle = all(t.source[arm] == Source.NONE for t in ticks[max(k - 10, 0) : k + 1])
            # A human's tick needs a human who asks and is well, and no other tick is a human's.
            if source == Source.HUMAN:
                assert wish[name].engaged
                assert wish[name].healthy
                assert mode == Mode.HUMAN
            else:
                assert mode != Mode.HUMAN
            if source == Source.POLICY:
                assert mode == Mode.POLICY
                assert not (wish[name].engaged and ticks[k - 1].source[arm] == Source.HUMAN)
            if idle and k > 0:  # nobody's arm has braked after ten ticks
                np.testing.assert_array_equal(tick.commanded[span], ticks[k - 1].commanded[span])
        assert (tick.state.intervention_id > 0) >= (Source.HUMAN in tick.source)
        np.testing.assert_array_equal(transition.executed, tick.commanded)
    humans = np.mean([Source.HUMAN in t.source for t in ticks])
    assert 0.2 < humans < 1.0, "both happened"
    source = np.array([t.source for t in transitions], np.uint8)
    fragments = derive_fragments(source, Outcome.FAILURE, "aloe")
    assert sum(f.source == Source.HUMAN for f in fragments) >= 2


@pytest.mark.parametrize("seed", range(3))
def test_with_one_arm_taken_over_the_other_goes_on(env, seed):
    class LeftHand(RandomHands):
        def step(self, env, measured, now_ns):
            wishes = super().step(env, measured, now_ns)
            return wishes | {"right": TeleopInput(now_ns, False)}

    ticks, _, _ = run(env, LeftHand(seed), seed, limit_s=5.0, policy=Missing(seed))
    taken = [t for t in ticks if t.source[0] == Source.HUMAN]
    assert len(taken) > 20
    assert all(t.source[1] == Source.POLICY for t in taken)


def test_take_overs_and_releases_stay_within_the_limits(env):
    ticks, _, _ = run(env, RandomHands(9), 9, limit_s=12.0, policy=Missing(9))
    commanded = np.array([t.commanded for t in ticks])[:, JOINTS]
    velocity = np.diff(commanded, axis=0) * RATE
    acceleration = np.diff(velocity, axis=0) * RATE
    assert (np.abs(velocity) <= ROBOT.max_velocity[JOINTS] + 1e-6).all()
    assert (np.abs(acceleration) <= ROBOT.max_acceleration[JOINTS] + 1e-6).all()
    assert sum(a.source != b.source for a, b in pairwise(ticks)) > 30


# What it sees, and what it refuses


def test_it_sees_a_drop_a_push_and_a_standstill(env):
    def watch(**place):
        env.reset(0)
        start = env.save_state()
        look = FailureWatch(env, 0, patience_s=2.0)
        reasons = []
        for step in range(3):
            env.restore_state(start)
            offset = place.get("path", [(0, 0, 0)] * 3)[step]
            env._data.qpos[env.world.object_qpos[:3]] += offset
            env._refresh()
            reasons.append(look.reason(env, round(step * 0.9e9)))
        return reasons

    assert watch(path=[(0, 0, 0), (0, 0, 0.1), (0, 0, 0)]) == ["", "", "the cube was dropped"]
    assert watch(path=[(0, 0, 0), (0.02, 0, 0), (0.05, 0, 0)]) == ["", "", "the cube was pushed away"]
    assert watch(path=[(0, 0, 0), (0, 0, 0.1), (0.1, 0, 0.1)]) == ["", "", ""]
    env.reset(0)
    look = FailureWatch(env, 0, patience_s=2.0)
    assert [look.reason(env, round(t * 1e9)) for t in (0, 1.9, 2.0)] == ["", "", "no progress for 2 s"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SimulatedOperator(ROBOT, "fold_laundry"), "cannot do task 'fold_laundry'"),
        (lambda: SimulatedOperator(load_robot("bimanual_ur5e"), "transfer_cube"), "has no simulator"),
        (lambda: SimulatedOperator(ROBOT, "transfer_cube", teleop=TeleopConfig(frame="tool")), "frame to 'base'"),
        (lambda: SimulatedOperator(ROBOT, "transfer_cube", dead_man=DeadManConfig(engage_buttons=())), "by buttons"),
        (lambda: SimulatedOperator(ROBOT, "transfer_cube", dead_man=DeadManConfig(hold=True)), "not hold"),
        (lambda: OperatorConfig(speed=0.0), "speed"),
        (lambda: OperatorConfig(unsteadiness=-1.0), "unsteadiness"),
    ],
)
def test_bad_settings_are_named(make, says):
    with pytest.raises(AloeError, match=says):
        make()
