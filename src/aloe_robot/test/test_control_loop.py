"""The control loop: requests, latency, transitions, episodes, and its errors."""

import numpy as np
import pytest
from control_rig import Rig

from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Mode, Outcome, RequestReason, SafetyReason, SafetyState, Source
from aloe_robot.control.buffer import Refusal
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.loop import ControlLoop

ROBOT = load_robot("aloha_sim")
DT = ROBOT.control_dt_ns
JOINTS = ~ROBOT.gripper_mask
LEFT, RIGHT = ROBOT.arm_slices


def ramp(request, horizon=50):
    """Targets that name their time: 1 mrad a tick from home."""
    ticks = request.stamp_ns // DT + np.arange(horizon)[:, None]
    return ROBOT.home + 1e-3 * ticks * JOINTS


def started(**config) -> Rig:
    rig = Rig(ROBOT, config.pop("rows", ramp), **config)
    rig.loop.start_episode("e", "do it")
    return rig


def asked(rig: Rig) -> list[tuple[int, RequestReason]]:
    return [(r.stamp_ns // DT, r.reason) for r in rig.requests]


def test_outside_an_episode_it_holds_where_it_was_first_measured():
    rig = Rig(ROBOT)
    rig.measured = ROBOT.home + 0.1 * JOINTS
    for result in rig.ticks(5):
        assert np.array_equal(result.commanded, ROBOT.home + 0.1 * JOINTS)
        assert set(result.state.mode) == {Mode.IDLE}
        assert result.transition is None
    assert not rig.requests
    chunk = ActionChunk(0, np.zeros((5, 14), np.float32), DT, 1)
    assert rig.loop.add_chunk(chunk, 0) is Refusal.NO_EPISODE


def test_requests_at_the_start_and_after_every_execution_horizon():
    rig = started(execute_steps=10)
    rig.ticks(35)
    assert asked(rig) == [
        (0, RequestReason.START),
        (10, RequestReason.REFILL),
        (20, RequestReason.REFILL),
        (30, RequestReason.REFILL),
    ]
    assert [r.request_id for r in rig.requests] == [1, 2, 3, 4]
    assert rig.requests[0].instruction == "do it"
    assert all(set(r.state.mode) == {Mode.POLICY} for r in rig.results)
    assert rig.results[-1].state.starved_ticks == 0


def test_the_row_executed_is_the_row_for_the_tick():
    rig = started(execute_steps=10)
    for tick, result in enumerate(rig.ticks(40)):
        assert np.array_equal(result.commanded, np.float32(ROBOT.home + 1e-3 * tick * JOINTS))
        assert np.array_equal(result.proposal, result.commanded)
        assert (result.state.chunk_id, result.state.chunk_step) == (1 + tick // 10, tick % 10)
        assert result.state.remaining_steps == 49 - tick % 10


@pytest.mark.parametrize("early", [True, False])
def test_simulated_latency_is_exact_whenever_the_answer_comes(early):
    """A chunk asked for at tick t is executed from t + 5 on, whether it comes at once or at the last moment."""
    rig = started(policy_latency=5 * DT / 1e9, execute_steps=10)
    modes = []
    for tick in range(60):
        now = tick * DT
        requests = rig.loop.observe(now, now, rig.measured)
        rig.requests += requests
        assert bool(rig.loop.due(now)) == (not early and tick % 10 == 5)
        for request in rig.requests:
            if (early and request in requests) or (not early and request.request_id in rig.loop.due(now)):
                rig.loop.add_chunk(rig.chunk(request), now)
        result = rig.loop.act()
        rig.measured = result.commanded
        modes.append(result.state.mode[0])
        if tick >= 5:
            assert result.state.chunk_id == (tick - 5) // 10 + 1
            assert result.state.chunk_step == (tick - 5) % 10 + 5
    assert asked(rig) == [(10 * k, RequestReason.REFILL if k else RequestReason.START) for k in range(6)]
    assert modes == [Mode.HOLD] * 5 + [Mode.POLICY] * 55


def test_a_starved_arm_holds_and_the_watchdog_says_so():
    rig = started(execute_steps=50, request_timeout=1.0)
    rig.ticks(50)
    last = rig.results[-1].commanded
    rig.answering = False
    results = rig.ticks(150)
    assert all(np.allclose(r.commanded, last, atol=0.01) for r in results), "never zeros, never back"
    assert np.array_equal(results[-1].commanded, results[10].commanded)
    assert {r.source for r in results} == {(Source.NONE, Source.NONE)}
    assert results[-1].state.starved_ticks == 150
    assert results[98].safety.reason is SafetyReason.NONE
    assert results[-1].safety.reason is SafetyReason.COMMAND_WATCHDOG
    assert "no usable chunk" in results[-1].safety.message
    assert rig.loop.lost_requests == len(asked(rig)) - 1, "every request after the first was lost, one a second"
    assert [t for t, _ in asked(rig)] == [0, 50, 100, 150]
    rig.answering = True
    rig.ticks(60)
    assert set(rig.results[-1].state.mode) == {Mode.POLICY}
    assert rig.results[-1].safety.state is SafetyState.OK


def test_on_hardware_a_lost_request_is_repeated_after_the_timeout():
    loop = ControlLoop(ROBOT, ControlConfig(request_timeout=0.2))
    loop.start_episode("e")
    stamps = []
    for tick in range(40):
        result = loop.tick(tick * DT, tick * DT, ROBOT.home)
        stamps += [r.stamp_ns // DT for r in result.requests]
        assert result.state.pending_requests == 1
    assert stamps == [0, 11, 22, 33]


def test_an_unasked_chunk_is_taken_when_it_is_newer():
    rig = started()
    rig.ticks(5)
    unasked = ActionChunk(4 * DT, ramp(rig.requests[0]).astype(np.float32), DT, 99, 0, "other", "e")
    assert rig.loop.add_chunk(unasked, 4 * DT) is None
    assert rig.tick().state.chunk_id == 99


def test_a_refused_answer_is_asked_for_again():
    rig = started(rows=lambda r: np.full((50, 14), np.nan) if r.request_id == 1 else ramp(r))
    first, second = rig.ticks(2)
    assert first.state.discarded_chunks == 1
    assert first.state.discard_reason == Refusal.NON_FINITE.value
    assert second.state.mode == (Mode.POLICY, Mode.POLICY)
    assert np.isfinite(first.commanded).all()


def test_real_time_chunking_carries_the_remainder():
    rig = started(execution_mode="rtc", execute_steps=20, policy_latency=4 * DT / 1e9)
    rig.ticks(45)
    start, refill = rig.requests[:2]
    assert start.prefix.shape == (0, 14)
    assert start.prefix_steps == 0
    assert refill.stamp_ns == 20 * DT
    assert refill.prefix_steps == 4
    assert np.array_equal(refill.prefix, rig.chunks[1].positions[20:])


def test_transitions_come_one_tick_late_and_the_last_one_ends_the_episode():
    rig = started()
    rig.ticks(7)
    last = rig.loop.stop_episode(Outcome.SUCCESS)
    assert [t.step for t in rig.transitions] == list(range(6))
    assert last.step == 6
    assert [t.stamp_ns for t in rig.transitions] == [k * DT for k in range(6)]
    assert all((t.reward, t.terminated, t.truncated) == (-1, False, False) for t in rig.transitions)
    assert (last.reward, last.terminated, last.truncated) == (0, True, False)
    for transition, result in zip([*rig.transitions, last], rig.results, strict=True):
        assert np.array_equal(transition.executed, result.commanded)
        assert np.array_equal(transition.proposal, result.proposal)
    assert {t.source for t in rig.transitions} == {(Source.POLICY, Source.POLICY)}
    assert {t.fragment for t in rig.transitions} == {0}
    assert rig.loop.stop_episode(Outcome.SUCCESS) is None
    assert set(rig.tick().state.mode) == {Mode.IDLE}


@pytest.mark.parametrize(
    ("outcome", "reward", "terminated", "truncated"),
    [
        (Outcome.FAILURE, -1, True, False),
        (Outcome.TIMEOUT, -1, False, True),
        (Outcome.UNLABELLED, -1, False, True),
    ],
)
def test_how_other_episodes_end(outcome, reward, terminated, truncated):
    rig = started()
    rig.ticks(3)
    last = rig.loop.stop_episode(outcome)
    assert (last.reward, last.terminated, last.truncated) == (reward, terminated, truncated)


def test_scripted_chunks_are_tagged_as_such():
    rig = started()
    make = rig.chunk
    rig.chunk = lambda request: make(request, version="scripted")
    assert rig.tick().source == (Source.SCRIPTED, Source.SCRIPTED)


def test_an_episode_of_a_simulator_starts_at_the_measured_pose_whatever_was_before():
    def episode(rig: Rig) -> np.ndarray:
        rig.loop.start_episode("e", afresh=True)
        rig.measured, rig.now_tick = ROBOT.home + 0.2 * JOINTS, 0
        return np.array([r.commanded for r in rig.ticks(30)])

    rig = started()
    rig.ticks(33)
    rig.loop.stop_episode(Outcome.FAILURE)
    rig.ticks(3)
    assert np.array_equal(episode(rig), episode(Rig(ROBOT, ramp)))


def test_a_start_soon_after_a_stop_goes_on_inside_the_limits():
    """On an arm that is 100 ms behind its commands."""
    robot = load_robot("bimanual_ur5e")
    dt, joints = robot.control_dt_ns / 1e9, ~robot.gripper_mask
    rig = Rig(robot, lambda r: robot.home + 0.02 * (r.stamp_ns // DT + np.arange(50)[:, None]) * joints)
    rig.loop.start_episode("e")
    late = [robot.home] * 5
    for tick in range(60):
        if tick == 40:
            rig.loop.stop_episode(Outcome.UNLABELLED)
        if tick == 43:
            rig.loop.start_episode("f")
        late.append(rig.tick().commanded)
        rig.measured = late[tick]
    commands = np.array([r.commanded for r in rig.results])
    assert np.all(np.abs(np.diff(commands, axis=0)) <= robot.max_velocity * dt * (1 + 1e-9))
    assert np.all(np.abs(np.diff(commands, 3, axis=0)) <= robot.max_jerk * dt**3 * (1 + 1e-9))


def test_what_a_gripper_holds_is_still_held_after_a_reset_and_a_start():
    rig = started(rows=lambda r: np.tile(np.where(ROBOT.gripper_mask, 0.1, ROBOT.home), (50, 1)))

    def hold(ticks: int) -> None:
        for _ in range(ticks):
            rig.measured = np.where(ROBOT.gripper_mask, 0.45, rig.tick().commanded)

    hold(30)
    for change in (
        lambda: rig.loop.stop(SafetyReason.EMERGENCY_STOP, "stop"),
        rig.loop.reset_safety,
        lambda: rig.loop.stop_episode(Outcome.SUCCESS),
        lambda: rig.loop.start_episode("f"),
    ):
        change()
        hold(5)
        assert all(np.allclose(r.commanded[ROBOT.gripper_mask], 0.1) for r in rig.results[-5:])


def test_nothing_is_commanded_from_outside_the_position_limits_until_the_arm_is_back_and_the_stop_reset():
    loop = ControlLoop(ROBOT)
    outside = ROBOT.home.copy()
    outside[0] = ROBOT.position_max[0] + 0.3
    for tick in range(2):
        with pytest.raises(AloeError, match="'left_waist' stands at"):
            loop.tick(tick * DT, tick * DT, outside)
    assert (loop.safety.state, loop.safety.reason) == (SafetyState.STOPPED, SafetyReason.POSITION)
    with pytest.raises(AloeError, match="'left_waist' stands at"):
        loop.reset_safety()
    result = loop.tick(2 * DT, 2 * DT, ROBOT.home)
    assert result.state.mode == (Mode.STOPPED, Mode.STOPPED)
    assert np.array_equal(result.commanded, ROBOT.home)
    loop.reset_safety()
    assert loop.tick(3 * DT, 3 * DT, ROBOT.home).state.mode == (Mode.IDLE, Mode.IDLE)


def test_a_reset_before_anything_was_measured_commands_nothing():
    loop, measured = ControlLoop(ROBOT), ROBOT.home.copy()
    loop.reset_safety()
    measured[ROBOT.gripper_mask] = 0.7
    assert np.array_equal(loop.tick(0, 0, measured).commanded, measured)


def test_after_a_pause_it_starts_where_the_arm_is_then():
    rig = started()
    rig.ticks(20)
    rig.loop.stop_episode(Outcome.UNLABELLED)
    rig.loop.halt()  # in the middle of a motion
    rig.measured = ROBOT.home + 0.3 * JOINTS
    assert np.array_equal(rig.tick().commanded[JOINTS], rig.measured[JOINTS])


def test_a_stop_is_not_reset_while_the_commands_return_from_an_obstacle():
    rig = started(rows=lambda r: ROBOT.home + 0.05 * (r.stamp_ns // DT + np.arange(50)[:, None]) * (np.arange(14) == 0))
    while rig.loop.safety.state is not SafetyState.STOPPED:
        commanded = rig.tick().commanded
        rig.measured = np.where(np.arange(14) == 0, np.minimum(commanded, 0.1), commanded)
    with pytest.raises(AloeError, match="still on their way"):
        rig.loop.reset_safety()
    blocked = rig.measured
    ahead = rig.loop.forecast(300)
    for tick in range(len(ahead)):
        assert np.array_equal(rig.tick().commanded, ahead[tick]), "outputs that send trajectories know the way"
        rig.measured = blocked
    assert np.array_equal(ahead[-1], blocked)
    assert len(ahead) < 100
    rig.loop.reset_safety()
    assert rig.loop.safety.state is SafetyState.OK


@pytest.mark.parametrize("stopped", [False, True])
def test_an_episode_that_starts_while_the_commands_go_to_an_arm_that_was_led_away_lets_them_arrive(stopped):
    robot = load_robot("bimanual_ur5e")
    led = robot.home + 1.2 * (np.arange(robot.action_dim) == 1)
    rig = Rig(robot, rows=lambda request: np.tile(led, (50, 1)))

    def tick() -> np.ndarray:
        command = rig.tick().commanded
        rig.measured = led  # by hand
        return command

    tick()
    while rig.loop.safety.reason is not SafetyReason.TRACKING_ERROR:
        tick()
    commands = [tick() for _ in range(20)]
    if stopped:
        rig.loop.stop(SafetyReason.EMERGENCY_STOP, "stop")
    rig.loop.start_episode("e")
    ahead = rig.loop.forecast(300)
    begun = len(rig.results)
    commands += [tick() for _ in range(100)]
    assert np.array_equal(commands[20:70], ahead[:50]), "outputs that send trajectories know the way"
    assert np.allclose(commands[-1], led, atol=1e-6)
    assert rig.loop.safety.state is (SafetyState.STOPPED if stopped else SafetyState.OK)
    dt = robot.control_dt_ns / 1e9
    for order, limit in ((1, robot.max_velocity), (2, robot.max_acceleration), (3, robot.max_jerk)):
        assert np.all(np.abs(np.diff(commands, order, axis=0)) <= limit * dt**order * (1 + 1e-9))
    results = rig.results[begun:]
    none, policy = (Source.NONE,) * 2, (Source.POLICY,) * 2
    drives = [r.source for r in results].index(policy) if not stopped else len(results)
    assert [r.source for r in results] == [none] * drives + [policy] * (len(results) - drives)
    assert np.abs(results[drives - 1].commanded - led).max() <= 0.05, "nobody drives before they are there"
    assert results[0].state.mode == ((Mode.STOPPED,) * 2 if stopped else (Mode.HOLD,) * 2)
    if not stopped:
        assert "the command goes to where it is" in results[0].safety.message


def test_a_resumed_episode_counts_on():
    rig = Rig(ROBOT, ramp)
    rig.now_tick = 120
    rig.loop.start_episode("e", resumed_from_ns=20 * DT)
    assert rig.loop.state.episode_id == "e", "known before the first tick"
    rig.ticks(2)
    assert (rig.transitions[0].step, rig.transitions[0].fragment) == (100, 100)
    assert rig.requests[0].reason is RequestReason.START
    rig.loop.stop(SafetyReason.EMERGENCY_STOP, "stop")
    rig.tick()
    rig.loop.reset_safety()
    rig.ticks(2)
    assert [t.step for t in rig.transitions] == [100, 101, 102, 103]


def test_a_stop_holds_all_arms_and_needs_a_fresh_chunk_after_the_reset():
    rig = started()
    rig.ticks(10)
    rig.loop.stop(SafetyReason.EMERGENCY_STOP, "stop")
    results = rig.ticks(20)
    assert all(r.state.mode == (Mode.STOPPED, Mode.STOPPED) for r in results)
    assert all(r.source == (Source.NONE, Source.NONE) for r in results)
    assert np.array_equal(results[-1].commanded, results[-2].commanded)
    rig.loop.reset_safety()
    rig.measured = rig.measured + 0.2 * JOINTS  # the arms have been moved by hand, also after the reset
    rig.rows = lambda request: np.tile(rig.measured, (50, 1))
    result = rig.tick()
    assert np.allclose(result.commanded, rig.measured, atol=1e-6)
    assert (rig.requests[-1].reason, rig.requests[-1].stamp_ns) == (RequestReason.RELEASE, 30 * DT)
    assert result.state.mode == (Mode.POLICY, Mode.POLICY)


def test_a_stop_outlives_the_episode():
    rig = started()
    rig.ticks(3)
    rig.loop.stop(SafetyReason.EMERGENCY_STOP, "stop")
    rig.tick()
    rig.loop.stop_episode(Outcome.UNLABELLED)
    rig.loop.start_episode("f")
    assert rig.tick().state.mode == (Mode.STOPPED, Mode.STOPPED)
    rig.loop.reset_safety()
    assert rig.tick().state.mode == (Mode.POLICY, Mode.POLICY)


def test_stale_observations_hold_every_arm():
    rig = started()
    rig.ticks(5)
    result = rig.loop.tick(20 * DT, 4 * DT, rig.measured)
    assert result.safety.reason is SafetyReason.STALE_OBSERVATION
    assert result.source == (Source.NONE, Source.NONE)
    assert result.state.mode == (Mode.HOLD, Mode.HOLD)


def test_a_forecast_is_what_will_be_commanded():
    rig = started(execute_steps=50, rows=lambda r: ROBOT.home + 0.3 * np.sin(np.arange(50) / 3)[:, None] * JOINTS)
    rig.ticks(3)
    ahead = rig.loop.forecast(40)
    assert np.array_equal(ahead, [r.commanded for r in rig.ticks(40)])
    assert len(rig.loop.forecast(500)) < 30, "it ends when the arms stand still"


def test_bad_input_is_named():
    loop = ControlLoop(ROBOT)
    with pytest.raises(AloeError, match=r"shape \(3,\), the robot 'aloha_sim' has 14"):
        loop.observe(0, 0, np.zeros(3))
    with pytest.raises(AloeError, match="'left_elbow' is not a finite number"):
        loop.observe(0, 0, np.where(np.arange(14) == 2, np.nan, 0.0))
    with pytest.raises(AloeError, match="an episode needs an id"):
        loop.start_episode("")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execution_mode": "fastest"}, "execution_mode: 'fastest' is not one of: latest, temporal_ensemble"),
        ({"execute_steps": 0}, "execute_steps: 0 is not a whole number above 0"),
        ({"execute_steps": 2.5}, "execute_steps: 2.5"),
        ({"engage_ticks": 1}, "engage_ticks: 1 would make a twitch"),
        ({"policy_latency": -1.0}, "policy_latency: -1.0"),
        ({"cross_fade_time": float("nan")}, "cross_fade_time: nan"),
        ({"policy_latency": 3.0}, "request_timeout: 2.0 s must be above policy_latency"),
    ],
)
def test_settings_are_checked_by_name(settings, message):
    with pytest.raises(AloeError, match=message):
        ControlConfig(**settings)
