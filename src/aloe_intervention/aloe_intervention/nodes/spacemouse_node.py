"""One SpaceMouse per arm as `{arm}/spacenav/twist` and `{arm}/spacenav/joy`, like the standard spacenav node.

While a device is away, or deflected without reporting, nothing is published for its arm, so that everything downstream sees it go silent. It is found again
without a restart.
"""

from __future__ import annotations

from functools import partial

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Twist, Vector3
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import Joy

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_intervention.hidraw import open_spacemouse
from aloe_intervention.spacemouse import AxisConfig, SpaceMouse
from aloe_robot.nodes.lifecycle import ManagedNode, run
from aloe_robot.nodes.parameters import declare, declare_config


class SpaceMouseNode(ManagedNode):
    """Owns the devices.

    Parameters: `robot`, `arms` (default: all of the robot's), `<arm>.device` (path, `serial:<number>`, `port:<usb port>`; empty: the only one
    there is), `rate` [Hz], and those of `AxisConfig`.
    """

    def __init__(self) -> None:
        super().__init__("spacemouse_node")
        robot = load_robot(declare(self, "robot", "aloha_sim"))
        arms = declare(self, "arms", robot.arm_names)
        if unknown := sorted(set(arms) - set(robot.arm_names)):
            raise AloeError(
                f"parameter 'arms': robot '{robot.name}' has no arm '{unknown[0]}'; arms: {', '.join(robot.arm_names)}"
            )
        self._wanted = {arm: declare(self, f"{arm}.device", "") for arm in arms}
        if len(set(self._wanted.values())) < len(arms) or (len(arms) > 1 and "" in self._wanted.values()):
            raise AloeError(
                "with several arms each needs its own SpaceMouse: give the parameter '<arm>.device' "
                f"for each of {', '.join(arms)}, or name the one arm that has one in 'arms'"
            )
        self._rate = declare(self, "rate", 100.0)
        if not 0 < self._rate <= 1000:
            raise AloeError(f"parameter 'rate': {self._rate} Hz is not in (0, 1000]")
        self._axes = declare_config(self, AxisConfig)
        self._mice: dict[str, SpaceMouse] = {}
        self._problems: dict[str, str | None] = {}
        self._joys = {arm: self.create_publisher(Joy, topics.SPACENAV_JOY.format(arm=arm), 10) for arm in arms}
        self._twists = {arm: self.create_publisher(Twist, topics.SPACENAV_TWIST.format(arm=arm), 10) for arm in arms}
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timers: list = []

    def activate(self) -> None:
        self._mice = {a: SpaceMouse(partial(open_spacemouse, wanted), self._axes) for a, wanted in self._wanted.items()}
        self._problems = dict.fromkeys(self._mice)
        self._timers = [
            self.create_timer(1.0 / self._rate, self._poll, clock=self._steady),
            self.create_timer(1.0, self._report, clock=self._steady),
        ]

    def deactivate(self) -> None:
        for timer in self._timers:
            self.destroy_timer(timer)
        for mouse in self._mice.values():
            mouse.close()
        self._timers, self._mice = [], {}

    def _poll(self) -> None:
        stamp = self.get_clock().now().to_msg()
        for arm, mouse in self._mice.items():
            reading = mouse.poll(self._steady.now().nanoseconds)
            if mouse.problem != self._problems[arm]:
                self._problems[arm] = mouse.problem
                if mouse.problem:
                    self.get_logger().warning(f"SpaceMouse of arm '{arm}': {mouse.problem}")
                else:
                    self.get_logger().info(f"SpaceMouse of arm '{arm}': connected")
            if reading is None:
                continue
            x, y, z, roll, pitch, yaw = (float(v) for v in reading.twist)
            joy = Joy(axes=[x, y, z, roll, pitch, yaw], buttons=list(reading.buttons))
            joy.header.stamp = stamp
            self._joys[arm].publish(joy)
            self._twists[arm].publish(Twist(linear=Vector3(x=x, y=y, z=z), angular=Vector3(x=roll, y=pitch, z=yaw)))

    def _report(self) -> None:
        away = [f"{arm}: {mouse.problem}" for arm, mouse in self._mice.items() if mouse.problem]
        values = {}
        for arm, mouse in self._mice.items():
            values |= {f"{arm}.reports": mouse.reports, f"{arm}.connections": mouse.connections}
        level = DiagnosticStatus.ERROR[0] if away else DiagnosticStatus.OK[0]
        self.diagnose(level, "; ".join(away) or "connected", **values)


def main() -> None:
    """Runs the node until it is interrupted."""
    run(SpaceMouseNode)


if __name__ == "__main__":
    main()
