"""Sticks to joint targets: kinematics against independent ones, limits, frames, anchoring, and everything that must make an arm hold."""

from itertools import pairwise
from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_intervention.dead_man import DeadManConfig
from aloe_intervention.differential_ik import DifferentialIK, NoSolution
from aloe_intervention.kinematics import MujocoKinematics, PinocchioKinematics, arm_kinematics
from aloe_intervention.teleop import Stick, TeleopConfig, Teleoperator
from aloe_robot.expert.kinematics import BASES
from aloe_robot.expert.kinematics import ArmKinematics as ClosedForm

ROBOT = load_robot("aloha_sim")
KINEMATICS = {arm.name: arm_kinematics(ROBOT, arm.name, Path()) for arm in ROBOT.arms}
ARM = ROBOT.arms[0]
HOME = ROBOT.home[:7].copy()
LOWER, UPPER = ROBOT.position_min[:6], ROBOT.position_max[:6]
TICK = ROBOT.control_dt_ns
NO_RELEASE = DeadManConfig(release_time=0.0)

URDF = """<robot name="bent"><link name="world"/><link name="base"/>
<joint name="stand" type="fixed"><parent link="world"/><child link="base"/><origin xyz="0.4 -0.1 0.2" rpy="0 0 1.1"/></joint>
{links}
<joint name="mount" type="fixed"><parent link="l6"/><child link="tool"/><origin xyz="0.1 0 0.03" rpy="0.2 0 0.4"/></joint>
<link name="tool"><inertial><mass value="0.1"/><inertia ixx="1e-3" iyy="1e-3" izz="1e-3" ixy="0" ixz="0" iyz="0"/></inertial></link></robot>"""
JOINTS = [
    ("0 0 1", "0 0 0.1"),
    ("0 1 0", "0.05 0 0.1"),
    ("0 1 0", "0 0 0.3"),
    ("1 0 0", "0.2 0 0"),
    ("0 1 0", "0.1 0 0"),
    ("1 0 0", "0.07 0 0"),
]


@pytest.fixture(scope="module")
def urdf(tmp_path_factory) -> Path:
    """A six-jointed arm; its joints are listed in an order that is not alphabetical, beside a finger."""
    links = "".join(
        f'<link name="l{i}"><inertial><mass value="1"/><inertia ixx="0.01" iyy="0.01" izz="0.01" ixy="0" ixz="0" iyz="0"/></inertial></link>'
        f'<joint name="{"zyxwvu"[i - 1]}" type="revolute"><parent link="{f"l{i - 1}" if i > 1 else "base"}"/><child link="l{i}"/>'
        f'<axis xyz="{axis}"/><origin xyz="{xyz}"/><limit lower="-2.5" upper="2.5" effort="1" velocity="2"/></joint>'
        for i, (axis, xyz) in enumerate(JOINTS, 1)
    )
    path = tmp_path_factory.mktemp("urdf") / "bent.urdf"
    path.write_text(URDF.format(links=links))
    return path


def finite_differences(kinematics, joints: np.ndarray) -> np.ndarray:
    step = 1e-6
    columns = []
    for i in range(len(joints)):
        shift = np.zeros(len(joints))
        shift[i] = step
        (p1, r1, _), (p0, r0, _) = kinematics.tool(joints + shift), kinematics.tool(joints - shift)
        columns.append(np.concatenate([p1 - p0, Rotation.from_matrix(r1 @ r0.T).as_rotvec()]) / (2 * step))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("arm", ["left", "right"])
def test_mujoco_agrees_with_the_closed_form(arm):
    generator = np.random.default_rng(1)
    (x, y), yaw = BASES[arm]
    to_base = Rotation.from_euler("z", -yaw).as_matrix()
    for joints in generator.uniform(LOWER, UPPER, (20, 6)):
        position, rotation, jacobian = KINEMATICS[arm].tool(joints)
        world, turned = ClosedForm(arm).forward(joints)
        np.testing.assert_allclose(position, to_base @ (world - (x, y, 0)), atol=2e-6)
        np.testing.assert_allclose(rotation, to_base @ turned, atol=1e-5)
        np.testing.assert_allclose(jacobian, finite_differences(KINEMATICS[arm], joints), atol=1e-5)


def test_pinocchio_agrees_with_mujoco_on_a_urdf(urdf):
    names = tuple("zyxwvu")
    pin = PinocchioKinematics(urdf, names, "base", "tool")
    spec = mujoco.MjSpec.from_file(str(urdf))
    spec.compiler.fusestatic = False
    mj = MujocoKinematics(spec.compile(), names, "base", "tool")
    for joints in np.random.default_rng(2).uniform(-2, 2, (20, 6)):
        for ours, theirs in zip(pin.tool(joints), mj.tool(joints), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(pin.tool(joints)[2], finite_differences(pin, joints), atol=1e-5)


def test_a_urdf_drives_an_arm_like_any_other(urdf, tmp_path):
    description = tmp_path / "bent.yaml"
    limits = "min: -2.5, max: 2.5, max_velocity: 3, max_acceleration: 50, max_jerk: 5000"
    joints = "\n".join(
        f"      - {{name: {n}, {limits}, home: {h}}}" for n, h in zip("zyxwvu", (0, 0.4, 0.9, 0, 0.3, 0), strict=True)
    )
    description.write_text(
        f"name: bent\nurdf: {urdf}\narms:\n  - name: only\n    joints:\n{joints}\n"
        "    output: {topic: /only_controller/commands}\n    base_frame: base\n    tool_frame: tool\n"
    )
    robot = load_robot(description)
    operator = Teleoperator(robot.arms[0], arm_kinematics(robot, "only", tmp_path), dead_man=NO_RELEASE)
    targets, outputs = drive(operator, [0, 0, -1, 0, 0, 0], 50, robot.home.copy())
    assert all(o.healthy and len(o.positions) == 6 for o in outputs if o.engaged)
    kinematics = arm_kinematics(robot, "only", tmp_path)
    moved = kinematics.tool(targets)[0] - kinematics.tool(robot.home)[0]
    np.testing.assert_allclose(moved, [0, 0, moved[2]], atol=2e-3)
    assert moved[2] < -0.15


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"urdf": Path("/nowhere.urdf")}, "nowhere.urdf does not exist"),
        ({"joints": ("z", "q")}, "no movable joint 'q'"),
        ({"tool_frame": "hand"}, "no link 'hand'"),
    ],
)
def test_a_urdf_that_does_not_fit_is_named(urdf, change, says):
    with pytest.raises(AloeError, match=says):
        PinocchioKinematics(
            **({"urdf": urdf, "joints": tuple("zyxwvu"), "base_frame": "base", "tool_frame": "tool"} | change)
        )


def test_a_file_that_is_not_a_urdf_and_a_robot_without_kinematics(tmp_path):
    (tmp_path / "bad.urdf").write_text("<mujoco/>")
    with pytest.raises(AloeError, match="not a readable URDF"):
        PinocchioKinematics(tmp_path / "bad.urdf", ("a",), "", "tool")
    with pytest.raises(AloeError, match="give 'urdf' in its description"):
        arm_kinematics(load_robot("bimanual_ur5e").model_copy(update={"urdf": None}), "left", tmp_path)


# Differential inverse kinematics


def solver(speed: float = 2.0) -> DifferentialIK:
    return DifferentialIK(KINEMATICS["left"], LOWER, UPPER, np.full(6, speed))


def test_it_converges_to_a_reachable_pose():
    goal = HOME[:6] + np.array([0.3, 0.2, -0.3, 0.4, 0.2, -0.5])
    position, rotation, _ = KINEMATICS["left"].tool(goal)
    joints = HOME[:6].copy()
    for _ in range(200):
        joints = solver().step(joints, position, rotation, 0.02)
    here, turned, _ = KINEMATICS["left"].tool(joints)
    np.testing.assert_allclose(here, position, atol=1e-5)
    np.testing.assert_allclose(turned, rotation, atol=1e-3)


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_steps_stay_within_limits_and_speed_wherever_the_pose_is(seed):
    generator = np.random.default_rng(seed)
    joints = generator.uniform(LOWER, UPPER)
    position, rotation = generator.normal(0, 1, 3), Rotation.random(random_state=seed).as_matrix()
    for _ in range(30):
        before = joints
        joints = solver().step(joints, position, rotation, 0.02)
        assert (joints >= LOWER - 1e-9).all()
        assert (joints <= UPPER + 1e-9).all()
        assert np.abs(joints - before).max() <= 2.0 * 0.02 + 1e-9


def test_a_joint_outside_its_range_comes_back_at_its_speed_limit():
    joints = HOME[:6].copy()
    joints[0] = UPPER[0] + 0.3
    position, rotation, _ = KINEMATICS["left"].tool(joints)
    assert solver().step(joints, position, rotation, 0.02)[0] == pytest.approx(UPPER[0] + 0.3 - 0.04)


@pytest.mark.parametrize(("damping", "races"), [(0.015, False), (0.0, True)])
def test_no_joint_races_where_the_hand_is_in_line_with_the_forearm(monkeypatch, damping, races):
    """Turned about the axis that this posture lacks, forearm and wrist would spin against each other."""
    monkeypatch.setattr("aloe_intervention.differential_ik.SINGULAR_DAMPING", damping)
    joints = HOME[:6].copy()
    joints[4] = 0.002
    position, rotation, _ = KINEMATICS["left"].tool(joints)
    turned = rotation @ Rotation.from_rotvec([0, 0, 0.02]).as_matrix()
    moved = np.abs(solver(1000.0).step(joints, position, turned, 0.02) - joints).max()
    assert (moved > 0.15) == races
    assert moved < 0.05 or races


def test_a_pose_that_is_not_finite_has_no_solution():
    with pytest.raises(NoSolution):
        solver().step(HOME[:6], np.array([np.nan, 0, 0]), np.eye(3), 0.02)


# Teleoperation


class Run:
    """One arm that follows its targets exactly, driven tick by tick."""

    def __init__(self, config=None, dead_man=NO_RELEASE, measured=HOME) -> None:
        self.operator = Teleoperator(ARM, KINEMATICS["left"], config, dead_man)
        self.now, self.measured, self.opening = 0, measured.copy(), None

    def tick(self, twist=(0, 0, 0, 0, 0, 0), buttons=(0, 0, 0), age_ns=0, follow=True, silent=False):
        self.now += TICK
        if not silent:
            self.stick = Stick(self.now - age_ns, np.array(twist, float), buttons)
        wish = self.operator.step(self.now, self.stick, self.measured, self.opening)
        if follow and wish.healthy and wish.positions is not None:
            self.measured = wish.positions.copy()
        return wish

    def engage(self):
        self.tick()
        self.press()
        assert self.tick().engaged
        return self

    def press(self):
        """Both buttons, for as long as it takes to take over."""
        self.tick(buttons=(1, 1, 0))
        return self.tick(buttons=(1, 1, 0))

    @property
    def tool(self):
        return KINEMATICS["left"].tool(self.measured[:6])


def drive(operator, twist, ticks, measured):
    """Deflects a stick until the arm has been driven for `ticks`; the last targets and all outputs."""
    outputs = [operator.step(0, Stick(0, np.zeros(6), ()), measured)]
    for i in range(1, ticks + 5):
        outputs.append(operator.step(i * TICK, Stick(i * TICK, np.array(twist, float), ()), measured))
        measured = measured if outputs[-1].positions is None else outputs[-1].positions
    return measured, outputs


@pytest.mark.parametrize("axis", range(6))
@pytest.mark.parametrize("frame", ["base", "tool"])
def test_the_tool_moves_along_the_stick_at_the_configured_speed(frame, axis):
    measured = HOME.copy()
    measured[:6] += [0.2, 0.1, -0.2, 0.3, -0.5, 0.2]
    run = Run(TeleopConfig(linear_speed=0.1, angular_speed=0.5, frame=frame), measured=measured).engage()
    start, turned, _ = run.tool
    twist = np.zeros(6)
    twist[axis] = 0.8
    for _ in range(25):
        assert run.tick(twist).healthy
    end, now_turned, _ = run.tool
    to_base = turned if frame == "tool" else np.eye(3)
    moved, turn = end - start, Rotation.from_matrix(now_turned @ turned.T).as_rotvec()
    expected = np.concatenate([to_base @ twist[:3] * 0.1 * 0.5, to_base @ twist[3:] * 0.5 * 0.5])
    np.testing.assert_allclose(np.concatenate([moved, turn]), expected, atol=3e-3)


def test_it_anchors_at_the_actual_pose_and_stands_still_until_the_stick_moves():
    run = Run()
    run.measured[:6] += 0.3
    run.engage()
    wish = run.tick(follow=False)
    np.testing.assert_allclose(wish.positions[:6], HOME[:6] + 0.3, atol=1e-6)


def test_engaging_again_anchors_again():
    run = Run().engage()
    for _ in range(10):
        run.tick([1, 0, 0, 0, 0, 0])
    run.tick(buttons=(1, 1, 0))
    run.tick()
    run.measured[:6] = HOME[:6] - 0.2  # the policy has moved it meanwhile
    run.press()
    np.testing.assert_allclose(run.tick().positions[:6], HOME[:6] - 0.2, atol=1e-6)


def test_a_border_between_episodes_ends_the_take_over_it_meets():
    run = Run().engage()
    border = run.now
    run.tick()
    run.operator.cross(border)
    assert not run.press().engaged, "held since before: let go first"
    run.tick()
    assert run.press().engaged


def test_late_and_repeated_news_of_a_border_leaves_the_take_over_after_it_alone():
    run = Run()
    run.tick()
    border = run.now
    run.tick()
    run.press()
    for _ in range(2):
        run.operator.cross(border)
        assert run.tick().engaged
    run.operator.cross(run.now)
    assert not run.tick().engaged


def test_after_time_began_anew_a_border_counts():
    run = Run()
    run.tick()
    run.now = -TICK  # a simulation was started again
    run.engage()
    run.operator.cross(run.now)
    assert not run.tick().engaged


def test_the_stick_at_rest_stops_the_arm_at_once():
    run = Run().engage()
    for _ in range(30):
        run.tick([1, 0.5, 0, 0, 0, 0.5])
    run.tick()
    rest = run.measured.copy()
    for _ in range(20):
        run.tick()
    assert np.abs(run.measured - rest).max() < 0.01


def test_a_blocked_arm_does_not_wind_up():
    run = Run().engage()
    for _ in range(300):
        wish = run.tick([0, 0, 0.5, 0, 0, 0], follow=False)
        assert wish.healthy, "whoever blocks it lets go some time; it must not hold for that"
    assert np.abs(wish.positions[:6] - run.measured[:6]).max() <= 0.5 + 1e-9


def test_the_tool_stays_in_its_box_and_is_not_dragged_into_it():
    inside = TeleopConfig(workspace_min=(0.0, -0.4, 0.2), workspace_max=(0.45, 0.4, 0.6))
    run = Run(inside).engage()
    for twist in ([1, 0, -1, 0, 0, 0], [1, 1, 0, 0, 0, 0]):
        for _ in range(100):
            run.tick(twist)
            position = run.tool[0]
            assert position[0] < 0.45 + 2e-3
            assert position[2] > 0.2 - 2e-3
    outside = TeleopConfig(workspace_min=(0.4, -0.4, 0.2), workspace_max=(0.6, 0.4, 0.6))
    run = Run(outside).engage()  # the policy has left it at x = 0.29
    start = run.tool[0][0]
    run.tick([0, 0, 0.2, 0, 0, 0])
    assert abs(run.tool[0][0] - start) < 1e-3
    for _ in range(20):
        run.tick([-1, 0, 0, 0, 0, 0])
    assert run.tool[0][0] > start - 2e-3


def test_the_gripper_follows_its_buttons_from_where_it_was_commanded():
    run = Run(TeleopConfig(gripper_speed=1.0))
    run.measured[6], run.opening = 0.42, 0.0  # closed on an object: opened further than commanded
    run.engage()
    assert run.tick().positions[6] == pytest.approx(0.0, abs=0.021)
    for _ in range(25):
        opened = run.tick(buttons=(0, 1, 0)).positions[6]
    assert opened == pytest.approx(0.5, abs=0.03)
    assert run.tick(buttons=(1, 1, 0)).positions is None, "both together give back"


def test_buttons_pressed_one_after_the_other_within_a_tick_open_and_close_and_take_nothing_over():
    run = Run()
    run.tick()
    for _ in range(10):
        run.now += TICK
        stick = Stick(run.now, np.zeros(6), (1, 1, 0), (0, 1, 0), run.now)
        assert not run.operator.step(run.now, stick, run.measured).engaged
    run.engage()
    run.now += TICK
    assert run.operator.step(run.now, Stick(run.now, np.zeros(6), (1, 1, 0), (0, 1, 0), run.now), run.measured).engaged


def test_with_hold_an_arm_moves_and_grips_while_the_button_is_held():
    run = Run(dead_man=DeadManConfig(engage_buttons=(2,), hold=True))
    run.tick()
    run.tick(buttons=(0, 0, 1))
    run.tick(buttons=(0, 0, 1))
    start = run.tool[0][0]
    for _ in range(25):
        wish = run.tick([1, 0, 0, 0, 0, 0], buttons=(1, 0, 1))
    assert run.tool[0][0] > start + 0.05
    assert wish.positions[6] == 0.0
    assert not run.tick([1, 0, 0, 0, 0, 0]).engaged


def test_the_age_of_the_stick_is_judged_by_the_clock_that_stamped_it():
    for offset in (-(10**9), 0, 10**9):  # of the driver that stamps the measurements
        operator, zero = Teleoperator(ARM, KINEMATICS["left"]), np.zeros(6)
        for age, fine in ((0.0, True), (0.15, True), (0.21, False)):
            now = 5 * 10**9
            wish = operator.step(now + offset, Stick(now - round(age * 1e9), zero, ()), HOME, stick_now_ns=now)
            assert (wish.healthy, wish.stamp_ns) == (fine, now + offset)


def test_the_home_button_untangles_the_arm():
    run = Run(TeleopConfig(home_buttons=(2,)))
    run.measured[:6] = [2.5, -0.5, 0.5, 3.0, 1.0, -2.0]
    run.engage()
    before = run.measured
    for _ in range(250):
        wish = run.tick(buttons=(0, 0, 1))
        assert wish.healthy
        assert np.abs(wish.positions[:6] - before[:6]).max() <= 0.5 * 2.0 * 0.02 + 1e-9
        before = wish.positions
    np.testing.assert_allclose(run.measured[:6], HOME[:6], atol=1e-6)
    run.tick()
    np.testing.assert_allclose(run.measured[:6], HOME[:6], atol=1e-3)


# What makes an arm hold


def test_nobody_has_touched_the_stick_yet():
    wish = Teleoperator(ARM, KINEMATICS["left"]).step(0, None, HOME)
    assert (wish.engaged, wish.healthy) == (False, False)
    assert "nothing has come from the SpaceMouse" in wish.message


def test_a_mouse_unplugged_while_it_drives_fades_out_and_then_names_the_reason():
    run = Run().engage()
    for _ in range(30):
        run.tick([1, 0, 0, 0, 0, 0])
    steps, wishes = [], []
    for _ in range(15):
        before = run.measured.copy()
        wishes.append(run.tick(silent=True))
        steps.append(float(np.linalg.norm(run.measured - before)))
    moving = [s for s, w in zip(steps, wishes, strict=True) if w.healthy]
    assert len(moving) == 9, "0.1 s of patience, 0.1 s of fading"
    assert all(b <= a * 1.02 for a, b in pairwise(moving[4:])), "it fades without a jump"
    assert moving[-1] < 0.3 * moving[0]
    assert wishes[-1].engaged, "the operator has not let go"
    assert not wishes[-1].healthy
    assert wishes[-1].message == "nothing from the SpaceMouse for 0.3 s"
    # Found again, still deflected: it goes on from where the arm is.
    run.measured[:6] += 0.05
    wish = run.tick(follow=False)
    assert (wish.engaged, wish.healthy) == (True, True)
    np.testing.assert_allclose(wish.positions[:6], run.measured[:6], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_twist_that_is_not_finite_is_rejected_with_its_reason(bad):
    run = Run().engage()
    wish = run.tick([0, bad, 0, 0, 0, 0])
    assert (wish.engaged, wish.healthy, wish.positions) == (True, False, None)
    assert "the twist is not finite" in wish.message
    assert run.tick().healthy
    idle = Run()
    idle.tick()
    for _ in range(20):
        assert not idle.tick([0, bad, 0, 0, 0, 0]).engaged, "and it takes nothing over"


def test_measured_joints_that_are_not_finite_are_rejected():
    run = Run().engage()
    run.measured[2] = np.nan
    assert "measured joints" in run.tick(follow=False).message


def test_out_of_reach_holds_names_the_reason_and_ends_when_the_stick_turns_back():
    run = Run().engage()
    wishes = [run.tick([1, 0, 0, 0, 0, 0]) for _ in range(400)]
    assert not wishes[-1].healthy
    assert "out of reach" in wishes[-1].message
    assert sum(a.healthy != b.healthy for a, b in pairwise(wishes)) == 1, "it does not flicker"
    start = run.tool[0][0]
    back = [run.tick([-1, 0, 0, 0, 0, 0]) for _ in range(25)]
    assert back[-1].healthy
    assert run.tool[0][0] < start - 0.04


def test_inverse_kinematics_without_a_solution_holds(monkeypatch):
    run = Run().engage()
    monkeypatch.setattr("aloe_intervention.differential_ik.solve_qp", lambda *a, **k: None)
    wish = run.tick([1, 0, 0, 0, 0, 0])
    assert (wish.engaged, wish.healthy, wish.positions) == (True, False, None)
    assert wish.message == "inverse kinematics: the solver found no joint step"
    monkeypatch.undo()
    assert run.tick([1, 0, 0, 0, 0, 0]).healthy


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_whatever_the_hands_do_targets_stay_legal(seed):
    """Random twists with NaN among them, mashed buttons, silence: every target is finite, within limits and no faster than allowed."""
    generator = np.random.default_rng(seed)
    run = Run(dead_man=DeadManConfig(release_time=0.3))
    last = None
    for _ in range(150):
        twist = generator.normal(0, 1.5, 6) * (generator.random() < 0.7)
        if generator.random() < 0.03:
            twist[generator.integers(6)] = np.nan
        buttons = tuple(int(b) for b in generator.random(3) < 0.1)
        wish = run.tick(twist, buttons, silent=generator.random() < 0.1 and run.now > 0)
        assert wish.healthy or wish.message
        if wish.positions is None:
            last = None
            continue
        assert np.isfinite(wish.positions).all()
        assert (wish.positions >= ROBOT.position_min[:7] - 1e-9).all()
        assert (wish.positions <= ROBOT.position_max[:7] + 1e-9).all()
        if last is not None:
            assert np.abs(wish.positions[:6] - last[:6]).max() <= 2.0 * 0.02 + 1e-9
            assert abs(wish.positions[6] - last[6]) <= 2.0 * 0.02 + 1e-9
        last = wish.positions


@pytest.mark.parametrize(
    "bad",
    [
        {"linear_speed": 0.0},
        {"frame": "world"},
        {"workspace_min": (1.0, 0, 0), "workspace_max": (0.5, 1, 1)},
        {"fade_time": float("nan")},
    ],
)
def test_bad_teleoperation_settings_are_refused(bad):
    with pytest.raises(AloeError, match="teleoperation"):
        TeleopConfig(**bad)
