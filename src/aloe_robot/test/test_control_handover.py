"""Take-over and release: a thousand of each, edge by edge, and chunk streams with everything wrong that can be."""

from dataclasses import replace

import numpy as np
import pytest
from control_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe_core.chunk import ActionChunk
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Mode, Outcome, RequestReason, SafetyReason, SafetyState, Source
from aloe_robot.control.records import TeleopInput

ROBOTS = {name: load_robot(name) for name in ("aloha_sim", "bimanual_ur5e")}
UR5E = ROBOTS["bimanual_ur5e"]
LEFT, RIGHT = UR5E.arm_slices
BLEND_TICKS, FADE_TICKS = 3, 5


def assert_inside_limits(robot, commands: np.ndarray) -> None:
    """Commands `[n, A]` of one stretch without re-anchoring."""
    dt = robot.control_dt_ns / 1e9
    assert np.isfinite(commands).all()
    assert np.all(commands >= robot.position_min)
    assert np.all(commands <= robot.position_max)
    for order, limit in ((1, robot.max_velocity), (2, robot.max_acceleration), (3, robot.max_jerk)):
        worst = np.abs(np.diff(commands, order, axis=0)).max(axis=0) / (limit * dt**order)
        assert np.all(worst <= 1 + 1e-9), f"difference of order {order}: {worst.max()} of the limit"


def wave(robot):
    """A policy that depends on time alone, so that every chunk says the same about an instant."""
    span = np.minimum(0.3, (robot.position_max - robot.position_min) / 4)
    middle = np.clip(robot.home, robot.position_min + span, robot.position_max - span)

    def rows(request):
        ticks = request.stamp_ns // robot.control_dt_ns + np.arange(50)[:, None]
        return middle + span * np.sin(ticks / 40)

    return rows


def nervous(robot, seed: int):
    """A policy whose chunks have nothing to do with each other: every hand-over meets another target."""

    def rows(request):
        rng = np.random.default_rng(seed + request.request_id)
        span = 0.2 * (robot.position_max - robot.position_min)
        walk = np.cumsum(rng.normal(size=(50, robot.action_dim)), axis=0) * 0.02 * span
        return np.clip(robot.home + rng.uniform(-span, span) + walk, robot.position_min, robot.position_max)

    return rows


class Human:
    """One arm's human: takes it, drives it somewhere from where it is, lets go; sometimes twitches, sometimes loses the IK."""

    def __init__(self, arm: str, span: slice, rng: np.random.Generator) -> None:
        self.arm, self.span, self.rng = arm, span, rng
        self.engaged, self.left, self.targets = False, 5, None
        self.ticks = 0  # consecutive usable ticks of asking
        self.drives = False  # the oracle: who has the arm
        self.take_overs = 0

    def input(self, rig: Rig) -> tuple[TeleopInput, bool]:
        """The coming tick's command, and whether its targets can be followed."""
        rng = self.rng
        if self.left == 0:
            self.engaged = not self.engaged
            self.left = int(rng.integers(1, 30) if self.engaged else rng.integers(1, 15))
            self.targets = rig.measured[self.span].copy()
        self.left -= 1
        usable = not (self.engaged and rng.random() < 0.03)
        if self.engaged:
            self.targets = self.targets + rng.normal(size=self.targets.shape) * 0.02
        self.ticks = self.ticks + 1 if self.engaged and usable else 0
        taken = self.engaged and (self.drives or self.ticks >= 2)
        self.take_overs += taken and not self.drives
        self.released = self.drives and not self.engaged
        self.drives = taken
        targets = self.targets if self.engaged else None
        return rig.human(self.arm, targets, self.engaged, usable)[self.arm], usable


def expected_target(rig: Rig, span: slice, since_ns: int, latency_ns: int) -> np.ndarray | None:
    """What the policy wants of one arm, out of the chunks alone: those in use whose observation is not before `since_ns`."""
    now = (rig.now_tick - 1) * rig.dt
    chunks = [
        c
        for c in rig.chunks.values()
        if since_ns <= c.stamp_ns <= now - latency_ns and now < c.stamp_ns + c.horizon * c.dt_ns
    ]
    if not chunks:
        return None
    rows = [c.positions[c.row_at(now), span].astype(float) for c in chunks]
    mode = rig.loop.config.execution_mode
    if mode in ("latest", "rtc"):
        return rows[-1]
    if mode == "cross_fade":
        target = rows[0]
        for chunk, row in zip(chunks[1:], rows[1:], strict=True):
            ticks = (now - chunk.stamp_ns - latency_ns) // rig.dt + 1  # executed so far, this one included
            share = min(1.0, ticks / (FADE_TICKS + 1))
            target = (1 - share) * target + share * row
        return target
    weights = np.exp(-rig.loop.config.ensemble_decay * np.arange(len(rows)))
    return weights @ np.array(rows) / weights.sum()


def expected_prefix(rig: Rig, request, humans: list[Human], since: list[int], latency_ns: int) -> np.ndarray:
    """What the policy is to continue: the rows left of the chunk in use, unless an arm it drives was let go after that one's observation."""
    used = [
        c for c in rig.chunks.values() if c.stamp_ns < request.stamp_ns and c.stamp_ns <= request.stamp_ns - latency_ns
    ]
    driven = [since[arm] for arm, human in enumerate(humans) if not human.drives]
    if rig.loop.config.execution_mode != "rtc" or not used or not driven or used[-1].stamp_ns < max(driven):
        return np.zeros((0, rig.robot.action_dim), np.float32)
    return used[-1].positions[used[-1].row_at(request.stamp_ns) :]


def spy(rig: Rig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Collects what the safety filter is asked for: targets and which joints hold."""
    asked, step = [], rig.loop._safety.step

    def watched(target, hold, *rest):
        asked.append((target.copy(), hold.copy()))
        return step(target, hold, *rest)

    rig.loop._safety.step = watched
    return asked


@pytest.mark.parametrize(
    ("name", "mode", "latency_ticks"),
    [
        ("bimanual_ur5e", "latest", 0),
        ("bimanual_ur5e", "temporal_ensemble", 6),
        ("bimanual_ur5e", "cross_fade", 3),
        ("bimanual_ur5e", "rtc", 6),
        ("aloha_sim", "latest", 6),
    ],
)
def test_a_thousand_take_overs(name, mode, latency_ticks):
    """Per tick and arm: the flag equals who moved it, and no row of a chunk from before a release is executed after it."""
    robot = ROBOTS[name]
    rig = Rig(
        robot,
        nervous(robot, seed=0),
        execution_mode=mode,
        execute_steps=8,
        policy_latency=latency_ticks * robot.control_dt_ns / 1e9,
        cross_fade_time=FADE_TICKS / robot.control_rate_hz,
        engage_blend_time=BLEND_TICKS / robot.control_rate_hz,
        release_blend_time=BLEND_TICKS / robot.control_rate_hz,
    )
    rig.loop.start_episode("e")
    humans = [
        Human(a, s, np.random.default_rng(i))
        for i, (a, s) in enumerate(zip(robot.arm_names, robot.arm_slices, strict=True))
    ]
    asked_for = spy(rig)
    since, steady = [0, 0], {Source.POLICY: 0, Source.HUMAN: 0}
    sources, switched, origin = [Source.NONE, Source.NONE], [0, 0], [rig.measured, rig.measured]
    followed, blends = [False, False], [False, False]  # the policy that drives first starts where the arm is: no blend
    latency_ns, prefixes = latency_ticks * rig.dt, 0
    while sum(h.take_overs for h in humans) < 204:
        inputs, usable = {}, {}
        for human in humans:
            inputs[human.arm], usable[human.arm] = human.input(rig)
        for arm, human in enumerate(humans):
            if human.released:
                since[arm] = rig.now_tick * rig.dt
        before = rig.measured
        result = rig.tick(inputs)
        for request in result.requests:
            prefixes += len(request.prefix) > 0
            assert np.array_equal(request.prefix, expected_prefix(rig, request, humans, since, latency_ns))
        target, hold = asked_for[-1]
        for arm, human in enumerate(humans):
            policy = expected_target(rig, human.span, since[arm], latency_ns)
            if human.drives:
                who = Source.HUMAN if usable[human.arm] else Source.NONE
            else:
                who = Source.NONE if policy is None else Source.POLICY
            assert result.source[arm] is who
            if who is not sources[arm]:
                blends[arm] = who is Source.HUMAN or followed[arm]
                sources[arm], switched[arm], origin[arm] = who, rig.now_tick, before
            if who is Source.NONE:
                assert hold[human.span].all()
                continue
            followed[arm] = True
            assert not hold[human.span].any()
            wish = policy if who is Source.POLICY else inputs[human.arm].positions
            share = min(1.0, (rig.now_tick - switched[arm] + 1) / (BLEND_TICKS + 1)) if blends[arm] else 1.0
            assert np.allclose(target[human.span], (1 - share) * origin[arm][human.span] + share * wish, atol=1e-12)
            steady[who] += share == 1.0
    assert_inside_limits(robot, np.array([r.commanded for r in rig.results]))
    assert rig.loop.safety.state is not SafetyState.STOPPED
    assert min(steady.values()) > 180, "long enough for whole blends and what comes after"
    assert (prefixes > 20) == (mode == "rtc")
    transitions = [*rig.transitions, rig.loop.stop_episode(Outcome.UNLABELLED)]
    assert [t.source for t in transitions] == [r.source for r in rig.results]
    ids = [t.intervention_id for t in transitions]
    runs = [b for a, b in zip([0, *ids], ids, strict=False) if b and b != a]
    assert runs == list(range(1, len(runs) + 1)), "counted from 1, a new one per take-over of a robot no human drives"


def test_the_other_arm_goes_on():
    """Its commands are those of a run without any human."""
    alone, taken = (Rig(UR5E, wave(UR5E), execute_steps=10) for _ in range(2))
    for rig in (alone, taken):
        rig.loop.start_episode("e")
    for tick in range(150):
        target = taken.measured[LEFT] + 0.01
        a = alone.tick()
        b = taken.tick(taken.human("left", target if 30 <= tick < 90 else None, engaged=30 <= tick < 90))
        assert np.array_equal(a.commanded[RIGHT], b.commanded[RIGHT])
        assert b.state.mode[1] is Mode.POLICY
        assert b.source[0] is (Source.HUMAN if 31 <= tick < 90 else Source.POLICY)


def test_release_asks_afresh_and_holds_until_the_answer_is_due():
    rig = Rig(UR5E, wave(UR5E), execute_steps=20, policy_latency=0.1)
    rig.loop.start_episode("e")
    rig.ticks(30)
    for _ in range(20):
        rig.tick(rig.human("left", rig.measured[LEFT]))
    results = [rig.tick(rig.human("left", None, engaged=False)) for _ in range(10)]
    release = rig.requests[-1]
    assert (release.reason, release.stamp_ns) == (RequestReason.RELEASE, 50 * rig.dt)
    assert [r.source[0] for r in results] == [Source.NONE] * 5 + [Source.POLICY] * 5
    assert [r.source[1] for r in results] == [Source.POLICY] * 10
    assert [r.state.mode[0] for r in results[:5]] == [Mode.HOLD] * 5


def test_while_a_human_drives_the_policy_goes_on_proposing():
    rig = Rig(UR5E, wave(UR5E), execute_steps=10)
    rig.loop.start_episode("e")
    rig.ticks(5)
    for _ in range(60):
        teleop = rig.human("left", rig.measured[LEFT]) | rig.human("right", rig.measured[RIGHT])
        result = rig.tick(teleop)
        expected = wave(UR5E)(rig.requests[-1])[result.state.chunk_step]
        assert np.array_equal(result.proposal, np.float32(expected))
    reasons = [r.reason for r in rig.requests if r.stamp_ns > 10 * rig.dt]
    assert set(reasons) == {RequestReason.SHADOW}
    assert np.diff([r.stamp_ns for r in rig.requests]).max() == 10 * rig.dt, "as often as in normal operation"


def test_a_silent_human_holds_the_arm_and_the_status_says_why():
    rig = Rig(UR5E, wave(UR5E))
    rig.loop.start_episode("e")
    rig.ticks(5)
    for _ in range(10):
        last = rig.tick(rig.human("left", rig.measured[LEFT]))
    frozen = rig.human("left", rig.measured[LEFT])  # the same message from now on
    results = [rig.tick(frozen) for _ in range(60)]
    assert last.source[0] is Source.HUMAN
    assert [r.source[0] for r in results[:6]] == [Source.HUMAN] * 6, "within the timeout of 0.1 s"
    assert {r.source for r in results[6:]} == {(Source.NONE, Source.POLICY)}
    assert results[-1].safety.reason is SafetyReason.COMMAND_WATCHDOG
    assert "left: no teleoperation command for" in results[-1].safety.message
    assert np.array_equal(results[-1].commanded[LEFT], results[-2].commanded[LEFT])
    ahead = rig.human("left", rig.measured[LEFT])["left"]
    future = rig.tick({"left": replace(ahead, stamp_ns=ahead.stamp_ns + 3600 * 10**9)})
    assert future.safety.message == "left: the teleoperation command is stamped 3600.00 s in the future"
    again = rig.tick(rig.human("left", rig.measured[LEFT]))
    assert again.source[0] is Source.HUMAN
    assert again.state.intervention_id == 1, "still the same intervention"
    unhealthy = rig.tick(rig.human("left", rig.measured[LEFT], healthy=False))
    assert unhealthy.safety.message == "left: no solution"
    short = rig.tick(rig.human("left", np.zeros(3)))
    assert "has 3 targets, the arm has 7" in short.safety.message


def test_a_human_without_numbers_stops_the_robot():
    rig = Rig(UR5E, wave(UR5E))
    rig.loop.start_episode("e")
    rig.ticks(5)
    for _ in range(3):
        result = rig.tick(rig.human("left", np.full(7, np.nan)))
    assert result.safety.reason is SafetyReason.NON_FINITE
    assert result.safety.joint == "left_shoulder_pan_joint"
    assert result.source == (Source.NONE, Source.NONE)
    assert np.isfinite(result.commanded).all()


def test_fragments_and_interventions_of_a_hand_worked_episode():
    """policy 3 | both arms human 4, of which left alone 2 | hold 0 | policy."""
    rig = Rig(UR5E, wave(UR5E))
    rig.loop.start_episode("e")
    script = ["", "", "", "lr", "lr", "lr", "l", "l", "", "", "l", "l", "r", ""]
    for arms in script:
        teleop = rig.human("left", rig.measured[LEFT], "l" in arms) | rig.human(
            "right", rig.measured[RIGHT], "r" in arms
        )
        rig.tick(teleop)
    transitions = [*rig.transitions, rig.loop.stop_episode(Outcome.FAILURE)]
    P, H = Source.POLICY, Source.HUMAN
    assert [t.source for t in transitions] == [(P, P)] * 4 + [(H, H)] * 2 + [(H, P)] * 2 + [(P, P)] * 3 + [(H, P)] + [
        (P, P)
    ] * 2
    assert [t.fragment for t in transitions] == [0] * 4 + [1] * 2 + [2] * 2 + [3] * 3 + [4] + [5] * 2
    assert [t.intervention_id for t in transitions] == [0] * 4 + [1] * 4 + [0] * 3 + [2] + [0] * 2


bad_chunk = st.sampled_from(
    ["fine", "late", "old", "future", "duplicate", "nan", "inf", "size", "episode", "wild", "short", "other dt"]
)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    mode=st.sampled_from(["latest", "temporal_ensemble", "cross_fade", "rtc"]),
    kinds=st.lists(bad_chunk, min_size=20, max_size=60),
)
def test_no_chunk_stream_breaks_a_limit(seed, mode, kinds):
    """Chunks in any order and condition, two humans who mash their buttons, stale joint states: finite and inside every limit."""
    rng = np.random.default_rng(seed)
    robot, dt = UR5E, UR5E.control_dt_ns
    rig = Rig(robot, execution_mode=mode)
    loop = rig.loop
    loop.start_episode("e")
    commands, sent, refused = [robot.home] * 3, [], 0
    for tick, kind in enumerate(kinds * 3):
        stamp = (tick + {"late": -10, "old": -60, "future": 9}.get(kind, 0)) * dt
        width = robot.action_dim + (kind == "size")
        positions = (
            rng.uniform(-1, 1, width) + np.cumsum(rng.normal(size=(5 if kind == "short" else 50, width)), axis=0) * 0.05
        )
        if kind in ("nan", "inf", "wild"):
            positions[rng.random(positions.shape) < 0.1] = {"nan": np.nan, "inf": np.inf, "wild": 1e30}[kind]
        chunk = ActionChunk(
            stamp,
            positions.astype(np.float32),
            dt // 3 if kind == "other dt" else dt,
            tick + 1,
            episode_id="x" if kind == "episode" else "e",
        )
        if kind == "duplicate" and sent:
            chunk = sent[-1]
        if rng.random() < 0.4:
            refusal = loop.add_chunk(chunk, max(tick, 0) * dt)
            refused += refusal is not None
            sent.append(chunk)
        teleop = {
            arm: TeleopInput(tick * dt, bool(rng.random() < 0.6), rng.normal(size=7), bool(rng.random() < 0.9))
            for arm in robot.arm_names
        }
        age = int(rng.choice([0, 0, 0, 5])) * dt
        result = loop.tick(tick * dt, tick * dt - age, commands[-1], teleop)
        commands.append(result.commanded)
    assert_inside_limits(robot, np.array(commands))
    assert loop.state.discarded_chunks == refused
    assert bool(loop.state.discard_reason) == bool(refused)
