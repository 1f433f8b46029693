"""A simulated operator: watches the simulated task, sees when the policy is failing, takes over and finishes the task with two SpaceMice.

It looks at privileged state, as a person looks at the table. What it does goes through the same sticks and buttons as a person's hands: a twist per
arm at human speed, late and unsteady, and two gripper buttons. Nothing downstream can tell the difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_intervention.dead_man import DeadManConfig
from aloe_intervention.differential_ik import RADIAN_IN_METRES
from aloe_intervention.teleop import SIMULATED_HANDS, Stick, TeleopConfig
from aloe_robot.expert.expert import PLANS
from aloe_robot.expert.grasping import Aim
from aloe_robot.expert.kinematics import BASES
from aloe_robot.expert.motion import GRIPPER, Goal
from aloe_robot.sim.env import SimEnv
from aloe_robot.sim.scene import ARMS

GAIN, TURN_GAIN = (
    3.0,
    2.5,
)  # [1/s] share of the remaining way per second; above 1 / (e * delay) a delayed loop begins to swing
GRIPPER_SLACK = 0.05  # [opening] no button is pressed for less
PRESS_TIME, PRESS_PAUSE = 0.1, 0.3  # [s] how long the buttons to engage are held, and the pause before the next try
AIM_DISTANCE, AIM_ANGLE = 0.008, 0.12  # [m], [rad] of the grasp at which the hand closes the gripper
TREMOR_TIME = 0.25  # [s] correlation of the hand's unsteadiness
REST_TREMOR = 0.1  # deflection at which the unsteadiness of a moving hand equals that of a resting one: noise grows with the effort
MISJUDGE_TIME = 1.5  # [s] how long a misjudged position is believed
STUCK_TIME, NEAR = (
    1.5,
    0.03,
)  # [s], [m] an arm further than NEAR from where it should be that comes no closer for so long is tangled
LIFTED, DROPPED = 0.07, 0.035  # [m] height of an object that was in the air, and that is back on the table
PUSHED = 0.04  # [m] an object that was never lifted is somewhere else


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """How good the operator is; the defaults are a practised person's.

    Attributes:
        patience: time without progress after which the policy counts as failing [s].
        reaction_time: between seeing that and taking over [s].
        delay: between what is seen and what the hand does about it [s].
        speed: of the tool [m/s].
        turn_speed: of the tool [rad/s].
        unsteadiness: standard deviation of the deflection, as a share of it.
        clumsiness: standard deviation of the misjudged position of an object, in the plane of the table [m].
        hand_back: gives back when the task has come further than the policy ever brought it; otherwise drives to the end.
        seed: of tremor and misjudgement.
    """

    patience: float = 4.0
    reaction_time: float = 0.5
    delay: float = 0.08
    speed: float = 0.22
    turn_speed: float = 1.1
    unsteadiness: float = 0.15
    clumsiness: float = 0.001
    hand_back: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("patience", "speed", "turn_speed"):
            if not 0 < getattr(self, key) < np.inf:
                raise AloeError(f"operator: {key} is a positive number, not {getattr(self, key)}")
        for key in ("reaction_time", "delay", "unsteadiness", "clumsiness"):
            if not 0 <= getattr(self, key) < np.inf:
                raise AloeError(f"operator: {key} cannot be negative, it is {getattr(self, key)}")


class FailureWatch:
    """Sees from outside that the policy will not make it."""

    def __init__(self, env: SimEnv, now_ns: int, patience_s: float) -> None:
        self._patience_ns = round(patience_s * 1e9)
        self._start = {name: env.world.position(name).copy() for name in env.task.objects}
        self._lifted: set[str] = set()
        self._progress, self._since_ns = env.progress, now_ns

    def reason(self, env: SimEnv, now_ns: int) -> str:
        """Why the policy is failing; empty while it is not."""
        if env.progress > self._progress:
            self._progress, self._since_ns = env.progress, now_ns
        for name, start in self._start.items():
            position = env.world.position(name)
            if position[2] > LIFTED:
                self._lifted.add(name)
            elif name in self._lifted:
                if position[2] < DROPPED:
                    return f"the {name} was dropped"
            elif position[2] < DROPPED and float(np.linalg.norm(position[:2] - start[:2])) > PUSHED:
                return f"the {name} was pushed away"
        if now_ns - self._since_ns >= self._patience_ns:
            return f"no progress for {self._patience_ns / 1e9:.0f} s"
        return ""


class SimulatedOperator:
    """Two hands on two SpaceMice.

    Args:
        robot: the simulated robot.
        task: a task that the scripted expert has a plan for; the operator knows what to do, and does it by hand.
        config: how good it is.
        teleop: how the sticks drive the arms: a practised operator has a feeling for it. By default with a button for the home pose.
        dead_man: which buttons take over and give back.

    Raises:
        AloeError: another robot, no plan for the task, the sticks drive in the tool's frame, or presses of buttons do not take over.
    """

    def __init__(
        self,
        robot: RobotDescription,
        task: str,
        config: OperatorConfig | None = None,
        teleop: TeleopConfig | None = None,
        dead_man: DeadManConfig | None = None,
    ) -> None:
        self.config, self._teleop = config or OperatorConfig(), teleop or SIMULATED_HANDS
        buttons = dead_man or DeadManConfig()
        if robot.simulator != "aloha":
            raise AloeError(
                f"the simulated operator watches the simulated ALOHA robot, '{robot.name}' has no simulator"
            )
        if task not in PLANS:
            raise AloeError(f"the simulated operator cannot do task '{task}'; it can do: {', '.join(PLANS)}")
        if self._teleop.frame != "base":
            raise AloeError(
                "the simulated operator steers in the frame of the base: set the teleoperation's frame to 'base'"
            )
        if not buttons.engage_buttons or not buttons.release_buttons or buttons.hold:
            raise AloeError(
                "the simulated operator takes over and gives back by buttons: set engage_buttons and release_buttons, "
                "not hold"
            )
        self._plan, self._dead_man, self._robot = PLANS[task], buttons, robot
        self._to_base = {arm: Rotation.from_euler("z", -yaw).as_matrix() for arm, (_, yaw) in BASES.items()}
        grip = (*self._teleop.close_buttons, *self._teleop.open_buttons, *self._teleop.home_buttons)
        self._button_count = max(*buttons.engage_buttons, *buttons.release_buttons, *grip) + 1
        self.wants_control = False
        self.reason = ""  # why it has taken over; empty while it watches
        self.take_overs = 0

    def reset(self, env: SimEnv, now_ns: int) -> None:
        """A new episode begins; the operator watches."""
        self._generator = np.random.default_rng((self.config.seed, env.seed))
        self._watch = FailureWatch(env, now_ns, self.config.patience)
        self._noticed_ns: int | None = None
        self._pressed_ns = dict.fromkeys(ARMS, now_ns - round(1e9 * (PRESS_TIME + PRESS_PAUSE)))
        self._seen: dict[str, deque[tuple[int, np.ndarray]]] = {arm: deque() for arm in ARMS}
        self._tremor = dict.fromkeys(ARMS, np.zeros(6))
        self._closing = dict.fromkeys(ARMS, False)
        self._way = {arm: _Way() for arm in ARMS}
        self._misjudged, self._misjudged_ns = np.zeros(3), now_ns - round(MISJUDGE_TIME * 1e9)
        self._last_ns = now_ns
        self.wants_control, self.reason = False, ""
        self._progress_before = 0.0

    def step(self, env: SimEnv, now_ns: int, engaged: Mapping[str, bool]) -> dict[str, Stick]:
        """What both hands do now.

        Args:
            env: the simulation as it is; only looked at.
            now_ns: time of that state.
            engaged: per arm, whether the teleoperation has control for the operator.
        """
        self._decide(env, now_ns)
        dt = (now_ns - self._last_ns) / 1e9
        self._last_ns = now_ns
        if (now_ns - self._misjudged_ns) / 1e9 >= MISJUDGE_TIME:
            self._misjudged_ns = now_ns
            self._misjudged = np.append(self._generator.normal(0.0, self.config.clumsiness, 2), 0.0)
        _, *goals = self._plan(env, Aim(self._misjudged, AIM_DISTANCE, AIM_ANGLE))
        sticks = {}
        for arm, goal in zip(ARMS, goals, strict=True):
            goal = self._committed(env, arm, goal, engaged[arm])
            twist = self._hand(env, arm, goal, now_ns, dt)
            buttons = self._press(arm, now_ns, engaged[arm])
            if not (self.wants_control and engaged[arm]):
                twist = np.zeros(6)
                self._way[arm] = _Way()
            elif not any(buttons):
                buttons = self._grip(env, arm, goal, now_ns)
            sticks[arm] = Stick(now_ns, twist.astype(np.float32).astype(np.float64), buttons)  # as `Joy` carries it
        return sticks

    def _decide(self, env: SimEnv, now_ns: int) -> None:
        if self.wants_control:
            if self.config.hand_back and env.progress > self._progress_before and env.progress >= 0.6:
                self.wants_control, self.reason = False, ""
                self._watch = FailureWatch(env, now_ns, self.config.patience)
            return
        reason = self._watch.reason(env, now_ns)
        if not reason:
            self._noticed_ns = None
            return
        if self._noticed_ns is None:
            self._noticed_ns = now_ns
        if now_ns - self._noticed_ns >= self.config.reaction_time * 1e9:
            self.wants_control, self.reason, self._noticed_ns = True, reason, None
            self._progress_before = env.progress
            self.take_overs += 1

    def _committed(self, env: SimEnv, arm: str, goal: Goal, engaged: bool) -> Goal:
        """Who has begun to grip holds still and closes the gripper to the end; only then it shows whether that was right."""
        opening = env.command[GRIPPER[arm]]
        begins = goal.opening < opening - GRIPPER_SLACK
        self._closing[arm] = engaged and opening > GRIPPER_SLACK and (self._closing[arm] or begins)
        if not self._closing[arm]:
            return goal
        return Goal(env.world.tcp(arm), env.world.tool_rotation(arm), 0.0)

    def _hand(self, env: SimEnv, arm: str, goal: Goal, now_ns: int, dt: float) -> np.ndarray:
        """Deflection `[6]` of one stick: what was right `delay` ago, unsteady."""
        config = self.config
        way = goal.position - env.world.tcp(arm)
        turn = Rotation.from_matrix(goal.rotation @ env.world.tool_rotation(arm).T).as_rotvec()
        velocity = np.concatenate(
            [
                self._to_base[arm] @ _limit(GAIN * way, config.speed * goal.speed) / self._teleop.linear_speed,
                self._to_base[arm]
                @ _limit(TURN_GAIN * turn, config.turn_speed * goal.speed)
                / self._teleop.angular_speed,
            ]
        )
        seen = self._seen[arm]
        seen.append((now_ns, velocity))
        while len(seen) > 1 and seen[1][0] <= now_ns - config.delay * 1e9:
            seen.popleft()
        keep = np.exp(-dt / TREMOR_TIME)
        self._tremor[arm] = keep * self._tremor[arm] + np.sqrt(1 - keep**2) * self._generator.normal(size=6)
        deviation = config.unsteadiness * (REST_TREMOR + np.abs(seen[0][1]))
        return np.clip(seen[0][1] + deviation * self._tremor[arm], -1.0, 1.0)

    def _press(self, arm: str, now_ns: int, engaged: bool) -> tuple[int, ...]:
        """The buttons that take over or give back, held for a moment, tried again if they had no effect."""
        elapsed = (now_ns - self._pressed_ns[arm]) / 1e9
        wanted = self._dead_man.engage_buttons if self.wants_control else self._dead_man.release_buttons
        if elapsed >= PRESS_TIME + PRESS_PAUSE and engaged != self.wants_control:
            self._pressed_ns[arm], elapsed = now_ns, 0.0
        down = wanted if elapsed < PRESS_TIME else ()
        return tuple(int(i in down) for i in range(self._button_count))

    def _grip(self, env: SimEnv, arm: str, goal: Goal, now_ns: int) -> tuple[int, ...]:
        """The gripper's buttons; the one that untangles the arm when it has not come closer for a while."""
        down: tuple[int, ...] = ()
        span = self._robot.arm_slices[self._robot.arm_names.index(arm)]
        away = float(np.abs(env.joint_positions()[span][:-1] - self._robot.home[span][:-1]).max())
        way = goal.opening - env.command[GRIPPER[arm]]
        turn = Rotation.from_matrix(goal.rotation @ env.world.tool_rotation(arm).T).magnitude()
        left = float(np.linalg.norm(goal.position - env.world.tcp(arm)) + RADIAN_IN_METRES * turn)
        if self._teleop.home_buttons and self._way[arm].tangled(left, away, now_ns):
            down = self._teleop.home_buttons
        elif abs(way) > GRIPPER_SLACK:
            down = self._teleop.open_buttons if way > 0 else self._teleop.close_buttons
        return tuple(int(i in down) for i in range(self._button_count))


class _Way:
    """Whether an arm still comes closer to where it should be."""

    def __init__(self) -> None:
        self._best = np.inf
        self._since_ns: int | None = None
        self._homing = False

    def tangled(self, left: float, away_from_home: float, now_ns: int) -> bool:
        """Whether the arm must be untangled: from `STUCK_TIME` without coming closer until it is at home.

        Args:
            left: way left to go, turning included [m].
            away_from_home: largest joint distance to the home pose [rad].
            now_ns: current time.
        """
        if self._since_ns is None or left < NEAR or left < self._best - 0.01 or left > self._best + 0.05:
            self._best, self._since_ns = left, now_ns
        if not self._homing:
            self._homing = now_ns - self._since_ns >= STUCK_TIME * 1e9
        elif away_from_home < 0.1:
            self._homing, self._since_ns = False, None
        return self._homing


def _limit(vector: np.ndarray, longest: float) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector if length <= longest else vector * (longest / length)
