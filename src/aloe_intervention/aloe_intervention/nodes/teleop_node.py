"""SpaceMouse to joint targets: one `TeleopCommand` per arm for every joint state, stamped as the joint state is, or with the time where it has no stamp.

On hardware the newest stick counts, and by this node's own clock, which stamps the sticks, is judged whether it is stale. With `lockstep` (simulation
with `operator_node`) a joint state of time t is answered with the sticks of time t, taken from `Joy`, whose stamp tells: the result then does not depend
on when messages arrive.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import zip_longest

import numpy as np
from geometry_msgs.msg import Twist
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import JointState, Joy

from aloe_core import topics
from aloe_core.messages import header_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot, robot_file
from aloe_core.vocabulary import EventType
from aloe_intervention.dead_man import DeadManConfig
from aloe_intervention.episode_buttons import EpisodeButtons, EpisodeButtonsConfig
from aloe_intervention.gate import Gate
from aloe_intervention.kinematics import arm_kinematics
from aloe_intervention.nodes.episode_calls import EpisodeCalls
from aloe_intervention.teleop import SIMULATED_HANDS, Stick, TeleopConfig, Teleoperator
from aloe_msgs.msg import ControlState, EpisodeEvent, TeleopCommand
from aloe_robot.nodes.lifecycle import spin
from aloe_robot.nodes.parameters import declare, declare_config
from aloe_robot.nodes.qos import EVENTS

WATCH_PERIOD = 0.2  # [s] wall time between looks at other publishers, and at a partner in lockstep that is gone


class TeleopNode(Node):
    """One `Teleoperator` per arm. Parameters: `robot`, `lockstep`, `max_wait` [s], `engage_together`, and those of the configuration dataclasses."""

    def __init__(self) -> None:
        super().__init__("teleop_node")
        spec = declare(self, "robot", "aloha_sim")
        self.robot = load_robot(spec)
        folder = robot_file(spec).parent
        self.lockstep = declare(self, "lockstep", False)
        self.gate = Gate(declare(self, "max_wait", 5.0))
        # Whoever takes over or gives back an arm does so for all.
        self.together = declare(self, "engage_together", False)
        # The simulated operator, for whom lockstep is, untangles arms by a button.
        hands = SIMULATED_HANDS if self.lockstep else None
        config, dead_man = declare_config(self, TeleopConfig, hands), declare_config(self, DeadManConfig)
        self.arms = {
            arm.name: Teleoperator(arm, arm_kinematics(self.robot, arm.name, folder), config, dead_man)
            for arm in self.robot.arms
        }
        self.spans = dict(zip(self.robot.arm_names, self.robot.arm_slices, strict=True))
        self.index = {name: i for i, name in enumerate(self.robot.action_names)}
        self.device = np.full(self.robot.action_dim, np.nan)  # newest measurements, device values
        self.commanded: np.ndarray | None = None
        self.control_ns = -1
        self.sticks: dict[str, Stick | None] = dict.fromkeys(self.arms)
        self.buttons: dict[str, tuple[int, ...]] = dict.fromkeys(self.arms, ())  # down now,
        self.buttons_ns: dict[str, int | None] = dict.fromkeys(self.arms)  # says the message of this time
        self.presses: dict[str, tuple[int, ...]] = dict.fromkeys(
            self.arms, ()
        )  # down at any time since the last command
        self.stepped_ns = dict.fromkeys(self.arms, -1)
        self.messages = dict.fromkeys(self.arms, "")
        self.pending: JointState | None = None

        self.publishers_ = {
            arm: self.create_publisher(TeleopCommand, topics.TELEOP_COMMAND.format(arm=arm), 10) for arm in self.arms
        }
        for arm in self.arms:
            self.create_subscription(Joy, topics.SPACENAV_JOY.format(arm=arm), partial(self._on_joy, arm), 10)
            if not self.lockstep:
                self.create_subscription(Twist, topics.SPACENAV_TWIST.format(arm=arm), partial(self._on_twist, arm), 10)
        self.create_subscription(JointState, self.robot.joint_states_topic, self._on_joint_state, 10)
        self.create_subscription(EpisodeEvent, topics.EPISODE_EVENT, self._on_event, EVENTS)
        self.create_subscription(ControlState, topics.CONTROL_STATE, self._on_control, 10)
        buttons = declare_config(self, EpisodeButtonsConfig)
        self.episode_buttons = {arm: EpisodeButtons(buttons) for arm in self.arms}
        used = any(b.used for b in self.episode_buttons.values())
        self.calls = EpisodeCalls(self, self._tell) if used else None
        self.conflicts = dict.fromkeys(self.arms, "")
        self.create_timer(WATCH_PERIOD, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(f"teleoperation of {', '.join(self.arms)} ready")

    def _watch(self) -> None:
        """Two sources for one arm would pull it to and fro: it holds until one is gone."""
        for arm in self.arms:
            counts = {
                topic: self.count_publishers(self.resolve_topic_name(topic.format(arm=arm)))
                for topic in (topics.SPACENAV_TWIST, topics.SPACENAV_JOY, topics.TELEOP_COMMAND)
            }
            rivals = [f"{count} nodes publish {topic.format(arm=arm)}" for topic, count in counts.items() if count > 1]
            self.conflicts[arm] = "; ".join(rivals)
        if self.lockstep:
            self._step()

    def _on_twist(self, arm: str, m: Twist) -> None:
        twist = np.array([m.linear.x, m.linear.y, m.linear.z, m.angular.x, m.angular.y, m.angular.z])
        now = self.get_clock().now().nanoseconds
        self.sticks[arm] = Stick(now, twist, self.presses[arm], self.buttons[arm], self.buttons_ns[arm])

    def _on_joy(self, arm: str, message: Joy) -> None:
        self.buttons[arm] = buttons = tuple(message.buttons)
        action = self.episode_buttons[arm].update(buttons)
        if action and self.calls is not None:
            self.calls.do(action)
        stick = self.sticks[arm]
        if self.lockstep:
            if len(message.axes) != 6:
                self.get_logger().error(
                    f"arm '{arm}': a Joy message with {len(message.axes)} axes, not 6; ignored", once=True
                )
                return
            self.sticks[arm] = Stick(stamp_to_ns(message.header.stamp), np.array(message.axes, np.float64), buttons)
            self._step()
            return
        # A press shorter than a tick moves the gripper as well; for taking over counts what is down at one instant.
        self.presses[arm] = tuple(a | b for a, b in zip_longest(self.presses[arm], buttons, fillvalue=0))
        self.buttons_ns[arm] = now = self.get_clock().now().nanoseconds
        if stick is not None:
            self.sticks[arm] = Stick(stick.stamp_ns, stick.twist, self.presses[arm], buttons, now)

    def _on_event(self, message: EpisodeEvent) -> None:
        """An episode begins and ends with nobody in control."""
        if message.event in (EventType.STARTED, EventType.STOPPED):
            for teleoperator in self.arms.values():
                teleoperator.cross(stamp_to_ns(message.header.stamp))

    def _on_control(self, message: ControlState) -> None:
        if len(message.commanded) == self.robot.action_dim:
            self.commanded = np.array(message.commanded)
        self.control_ns = stamp_to_ns(message.header.stamp)
        if self.lockstep:
            self._step()

    def _on_joint_state(self, message: JointState) -> None:
        if len(message.name) != len(message.position):
            self.get_logger().error(
                f"{self.robot.joint_states_topic}: names and positions differ in number; ignored", once=True
            )
            return
        self.pending = message
        self._step()

    def _step(self) -> None:
        """Answers the newest joint state, in lockstep when the sticks of its time and the state of the tick before have come."""
        if self.pending is None:
            return
        # A driver that does not stamp its joint states is answered with the time they are used at.
        stamp = stamp_to_ns(self.pending.header.stamp) or self.get_clock().now().nanoseconds
        if self.lockstep:
            sticks = [s for s in self.sticks.values() if s is not None and s.stamp_ns >= stamp]
            # Whoever takes over now begins with the gripper as it was commanded in the tick before.
            active = any(any(s.buttons) or s.twist.any() for s in sticks)
            known = not active or self.control_ns >= max(self.stepped_ns.values()) or stamp in self.stepped_ns.values()
            if not self.gate.passes(len(sticks) == len(self.arms) and known, time.monotonic()):
                return
        message, self.pending = self.pending, None
        seen = set()
        for name, position in zip(message.name, message.position, strict=True):
            if name in self.index:
                self.device[self.index[name]] = position
                seen.add(self.index[name])
        measured = self.robot.from_device(self.device)
        for arm, span in self.spans.items():
            # Joint states may come faster than ticks; one from before the last is of a clock that has begun anew.
            soon = 0 <= stamp - self.stepped_ns[arm] < self.robot.control_dt_ns // 2
            if not seen.isdisjoint(range(span.start, span.stop)) and (self.lockstep or not soon):
                self._command(arm, stamp, measured[span])

    def _command(self, arm: str, stamp_ns: int, measured: np.ndarray) -> None:
        has_gripper = self.robot.gripper_mask[self.spans[arm]].any()
        opening = None
        if has_gripper and self.commanded is not None:
            opening = float(self.commanded[self.spans[arm].stop - 1])
        now = stamp_ns if self.lockstep else self.get_clock().now().nanoseconds
        before = self.arms[arm].engaged
        wish = self.arms[arm].step(stamp_ns, self.sticks[arm], measured, opening, self.conflicts[arm], now)
        if self.together and wish.engaged != before:
            for other in self.arms.values():
                other.follow(wish.engaged)
        self.stepped_ns[arm] = stamp_ns
        self.presses[arm] = self.buttons[arm]
        if wish.message != self.messages[arm]:
            self.messages[arm] = wish.message
            if wish.engaged:
                self._tell(f"arm '{arm}': {wish.message or 'goes on'}", not wish.message)
        self.publishers_[arm].publish(
            TeleopCommand(
                header=header_msg(ros_make, stamp_ns),
                arm_name=arm,
                engaged=wish.engaged,
                positions=[] if wish.positions is None else wish.positions.tolist(),
                healthy=wish.healthy,
                message=wish.message,
            )
        )

    def _tell(self, text: str, good: bool) -> None:
        if good:
            self.get_logger().info(text)
        else:
            self.get_logger().warning(text)


def main() -> None:
    """Runs the node until it is interrupted."""
    spin("teleop_node", TeleopNode)


if __name__ == "__main__":
    main()
