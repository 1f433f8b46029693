"""Teleoperation of one arm: what a stick says becomes joint targets. Time is an argument, so the same inputs give the same targets anywhere.

A SpaceMouse is a relative device. Engaging anchors at the actual pose; from there the stick moves a target pose that the arm follows by differential
inverse kinematics. The target is kept on a short leash, so that the arm stops when the stick does, and joint targets never run far ahead of
where the joints are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from aloe_core.errors import AloeError
from aloe_core.robot import Arm
from aloe_intervention.dead_man import DeadMan, DeadManConfig, pressed
from aloe_intervention.differential_ik import RADIAN_IN_METRES, DifferentialIK, NoSolution
from aloe_intervention.kinematics import ArmKinematics
from aloe_robot.control.records import TeleopInput

LEASH = 0.03  # [m] the target pose is never further from where the joints can be
LEASH_ANGLE = 0.15  # [rad]
MAX_LEAD = 0.5  # [rad] joint targets are never further from the measurement: an arm that is blocked does not wind up
MAX_DT = 0.1  # [s] longer gaps between steps count as this
WILL = 0.1  # deflection from which the operator is taken to want to move
STUCK_SHARE = 0.1  # of the demanded motion; less than this for STUCK_TIME means out of reach
STUCK_TIME = 0.3  # [s]


@dataclass(frozen=True, slots=True)
class Stick:
    """State of a SpaceMouse, or of anything that publishes Twist and Joy."""

    stamp_ns: int  # when the twist was received or made
    twist: np.ndarray  # float64 [6]: linear xyz, angular xyz; -1 .. 1 of full deflection
    buttons: tuple[int, ...]  # 1: down, for gripper and home pose; a press shorter than a tick is one as well
    held: tuple[int, ...] | None = None  # 1: down at this instant, for taking over; None: as `buttons`
    held_ns: int | None = None  # when the message that says so was received or made; None: with the twist


@dataclass(frozen=True, slots=True)
class TeleopConfig:
    """How a stick drives an arm.

    Attributes:
        linear_speed: of the tool at full deflection [m/s].
        angular_speed: of the tool at full deflection [rad/s].
        frame: axes of the stick are those of the arm's base or of its tool.
        max_joint_speed: no joint is driven faster [rad/s].
        workspace_min: lower corner of the box the tool may be driven in, base frame [m].
        workspace_max: upper corner [m].
        gripper_speed: while a gripper button is down [openings/s].
        close_buttons: all down: the gripper closes. Nothing happens while the buttons to engage are down.
        open_buttons: all down: the gripper opens.
        home_buttons: while all are down the joints go to the home pose at half their speed: the way out of a tangled arm. Not with a wireless
            mouse: a button that is down when the radio is lost stays down.
        stale_after: a twist older than this is fading [s].
        fade_time: time in which a stale twist fades to rest [s]; after that the arm holds.
    """

    linear_speed: float = 0.25
    angular_speed: float = 1.2
    frame: Literal["base", "tool"] = "base"
    max_joint_speed: float = 2.0
    workspace_min: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    workspace_max: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    gripper_speed: float = 2.0
    close_buttons: tuple[int, ...] = (0,)
    open_buttons: tuple[int, ...] = (1,)
    home_buttons: tuple[int, ...] = ()
    stale_after: float = 0.1
    fade_time: float = 0.1

    def __post_init__(self) -> None:
        for key in ("linear_speed", "angular_speed", "max_joint_speed", "gripper_speed", "stale_after", "fade_time"):
            if not 0 < getattr(self, key) < np.inf:
                raise AloeError(f"teleoperation: {key} is a positive number, not {getattr(self, key)}")
        if self.frame not in ("base", "tool"):
            raise AloeError(f"teleoperation: frame is 'base' or 'tool', not '{self.frame}'")
        if not np.all(np.asarray(self.workspace_min) < np.asarray(self.workspace_max)):
            raise AloeError(
                f"teleoperation: workspace_min {self.workspace_min} is not below workspace_max {self.workspace_max}"
            )


SIMULATED_HANDS = TeleopConfig(home_buttons=(2,))  # the simulated operator untangles an arm by a third button


class Teleoperator:
    """Drives one arm from one stick.

    Args:
        arm: from the robot description.
        kinematics: of that arm.
        config: speeds, frame, buttons.
        dead_man: when a take-over begins and ends.
    """

    def __init__(
        self,
        arm: Arm,
        kinematics: ArmKinematics,
        config: TeleopConfig | None = None,
        dead_man: DeadManConfig | None = None,
    ) -> None:
        self.config = config or TeleopConfig()
        self._lower = np.array([j.min for j in arm.joints])
        self._upper = np.array([j.max for j in arm.joints])
        self._home = np.array([j.home for j in arm.joints])
        speed = np.minimum([j.max_velocity for j in arm.joints], self.config.max_joint_speed)
        self._arm, self._ik = arm, DifferentialIK(kinematics, self._lower, self._upper, speed)
        self._dead_man_config = dead_man or DeadManConfig()
        self.reset()

    def reset(self) -> None:
        """Nobody has control, and what is held down now must be let go before it counts."""
        self._dead_man = DeadMan(self._dead_man_config)
        self._last_ns: int | None = None
        self._free_ns = -1  # when nobody had control or held anything down last
        self._anchored = False
        self._stuck_s = 0.0

    @property
    def engaged(self) -> bool:
        """Whether the operator has control of this arm."""
        return self._dead_man.engaged

    def follow(self, engaged: bool) -> None:
        """Takes over or gives back because the operator did so with another arm."""
        self._dead_man.follow(engaged)

    def cross(self, border_ns: int) -> None:
        """An episode began or ended at `border_ns`: whoever had control or held something down then loses it, however late the news comes.

        What was taken up after the border stays: news of a start may come late, and once more when `episode_node` was started again.
        """
        if self._free_ns <= border_ns:
            self.reset()

    def step(
        self,
        now_ns: int,
        stick: Stick | None,
        measured: np.ndarray,
        opening: float | None = None,
        conflict: str = "",
        stick_now_ns: int | None = None,
    ) -> TeleopInput:
        """What the operator wants this arm to do at time `now_ns`.

        Args:
            now_ns: of the measurement.
            stick: newest state of the stick, None if there never was one.
            measured: joints and gripper of this arm as measured `[joints + gripper]`.
            opening: gripper opening last commanded. A gripper that holds something is opened further than it was told to close: starting from
                the measurement would let go of it. None: start from the measurement.
            conflict: why the stick cannot be trusted, known from elsewhere; empty: it can.
            stick_now_ns: current time of the clock that stamps sticks and episodes; None: it is that of the measurements.
        """
        stick_now_ns = now_ns if stick_now_ns is None else stick_now_ns
        dt = 0.0 if self._last_ns is None else min(max((now_ns - self._last_ns) / 1e9, 0.0), MAX_DT)
        if self._last_ns is not None and now_ns < self._last_ns:
            self._free_ns = -1  # time began anew
        self._last_ns = now_ns
        problem, share = (conflict, 0.0) if conflict else self._judge(stick_now_ns, stick, measured)
        if problem or stick is None:
            self._anchored = False
            self._dead_man.interrupt()
            return TeleopInput(now_ns, self._dead_man.engaged, None, False, problem)
        held = stick.buttons if stick.held is None else stick.held
        if not self._dead_man.update(stick.stamp_ns, stick_now_ns, stick.twist, held, stick.held_ns):
            self._anchored = False
            if not any(stick.buttons) and np.abs(stick.twist).max() <= self._dead_man_config.rest_deflection:
                self._free_ns = stick_now_ns
            return TeleopInput(now_ns, False)
        if not self._anchored:
            self._anchor(measured, opening)
        try:
            if pressed(stick.buttons, self.config.home_buttons):
                self._go_home(dt, measured)
            elif dt > 0:
                self._follow(dt, share * np.clip(stick.twist, -1.0, 1.0), measured)
        except NoSolution as error:
            self._anchored = False
            return TeleopInput(now_ns, True, None, False, f"inverse kinematics: {error}")
        self._grip(dt, stick.buttons)
        targets = self._joints if self._arm.gripper is None else np.append(self._joints, self._opening)
        stuck = self._stuck_s >= STUCK_TIME
        message = "inverse kinematics: out of reach, or at a limit of the joints or the workspace" if stuck else ""
        return TeleopInput(now_ns, True, targets, not stuck, message)

    def _judge(self, now_ns: int, stick: Stick | None, measured: np.ndarray) -> tuple[str, float]:
        """What is wrong with the inputs, and the share of the twist that still counts."""
        if stick is None:
            return "nothing has come from the SpaceMouse yet", 0.0
        if not np.isfinite(stick.twist).all():
            return f"the twist is not finite: {np.round(stick.twist, 3).tolist()}", 0.0
        if not np.isfinite(measured).all():
            return "the measured joints are not finite", 0.0
        late = (now_ns - stick.stamp_ns) / 1e9 - self.config.stale_after
        if late >= self.config.fade_time:
            return f"nothing from the SpaceMouse for {late + self.config.stale_after:.1f} s", 0.0
        return "", 1.0 - max(late, 0.0) / self.config.fade_time

    def _anchor(self, measured: np.ndarray, opening: float | None) -> None:
        count = len(self._lower)
        self._joints = measured[:count].astype(np.float64)
        self._position, self._rotation, _ = self._ik.kinematics.tool(self._joints)
        if self._arm.gripper is not None:
            self._opening = float(measured[count] if opening is None else opening)
        self._stuck_s = 0.0
        self._anchored = True

    def _follow(self, dt: float, twist: np.ndarray, measured: np.ndarray) -> None:
        """Moves the target pose by the twist `[6]` for `dt`, and the joints after it."""
        linear, angular = twist[:3] * self.config.linear_speed * dt, twist[3:] * self.config.angular_speed * dt
        if self.config.frame == "tool":
            linear, angular = self._rotation @ linear, self._rotation @ angular
        # Where the policy has left the box the arm is not dragged back; it can only go inwards.
        low = np.minimum(self.config.workspace_min, self._position)
        high = np.maximum(self.config.workspace_max, self._position)
        position = np.clip(self._position + linear, low, high)
        rotation = Rotation.from_rotvec(angular).as_matrix() @ self._rotation
        before, turned, _ = self._ik.kinematics.tool(self._joints)
        solved = self._ik.step(self._joints, position, rotation, dt)
        self._watch(dt, np.concatenate([linear, angular]), before, turned, solved)
        self._set_joints(solved, measured)
        after, now_turned, _ = self._ik.kinematics.tool(self._joints)
        self._position = after + _shorten(position - after, LEASH)
        rest = Rotation.from_matrix(rotation @ now_turned.T).as_rotvec()
        self._rotation = Rotation.from_rotvec(_shorten(rest, LEASH_ANGLE)).as_matrix() @ now_turned

    def _watch(
        self, dt: float, demanded: np.ndarray, before: np.ndarray, turned: np.ndarray, solved: np.ndarray
    ) -> None:
        """Notices when the solution does not go where the stick demands `[6]`. That an arm lags behind its targets does not count."""
        after, now_turned, _ = self._ik.kinematics.tool(solved)
        turn = Rotation.from_matrix(now_turned @ turned.T).as_rotvec()
        weight = np.repeat([1.0, RADIAN_IN_METRES], 3)
        moved, demanded = weight * np.concatenate([after - before, turn]), weight * demanded
        length = float(np.linalg.norm(demanded))
        stuck = length > WILL * self.config.linear_speed * dt and moved @ demanded < STUCK_SHARE * length**2
        self._stuck_s = min(self._stuck_s + dt, 1.2 * STUCK_TIME) if stuck else max(self._stuck_s - 2 * dt, 0.0)

    def _go_home(self, dt: float, measured: np.ndarray) -> None:
        reach = 0.5 * self.config.max_joint_speed * dt
        self._set_joints(self._joints + np.clip(self._home - self._joints, -reach, reach), measured)
        self._position, self._rotation, _ = self._ik.kinematics.tool(self._joints)
        self._stuck_s = 0.0

    def _set_joints(self, joints: np.ndarray, measured: np.ndarray) -> None:
        lead = np.clip(joints - measured[: len(joints)], -MAX_LEAD, MAX_LEAD)
        self._joints = np.clip(measured[: len(joints)] + lead, self._lower, self._upper)

    def _grip(self, dt: float, buttons: tuple[int, ...]) -> None:
        if self._arm.gripper is None or self._dead_man.buttons_down(buttons):
            return
        direction = pressed(buttons, self.config.open_buttons) - pressed(buttons, self.config.close_buttons)
        self._opening = float(np.clip(self._opening + direction * self.config.gripper_speed * dt, 0.0, 1.0))


def _shorten(vector: np.ndarray, longest: float) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector if length <= longest else vector * (longest / length)
