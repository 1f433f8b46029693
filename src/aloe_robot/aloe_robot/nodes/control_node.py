"""The control loop as a ROS node: it alone owns the arms' command topics.

`tick_source: timer` (hardware) ticks at the robot's control rate and never waits. `tick_source: joint_states` (simulation) ticks once per new joint state stamp
and waits for the chunks that are due, at most `max_policy_wait` seconds of wall time each; meanwhile it asks again, for a message to a node that has just
started may be lost. With `wait_for_teleop` (a simulated operator steers) it also waits,
as long at most, until the teleoperation command of every arm is that of the tick's own joint state.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from aloe_core import topics
from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.messages import chunk_from_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Mode, Outcome, SafetyReason, SafetyState
from aloe_msgs.msg import ActionChunk, ChunkRequest, ControlState, EpisodeEvent, SafetyStatus, TeleopCommand, Transition
from aloe_robot.control.buffer import Refusal
from aloe_robot.control.config import ControlConfig
from aloe_robot.control.episodes import EpisodeFollower, Start
from aloe_robot.control.health import TickTimes, verdict
from aloe_robot.control.joints import JointMerger
from aloe_robot.control.loop import ControlLoop
from aloe_robot.control.messages import (
    chunk_request_msg,
    control_state_msg,
    safety_status_msg,
    teleop_from_msg,
    transition_msg,
)
from aloe_robot.control.outputs import FORWARD, TRAJECTORY, command_outputs
from aloe_robot.control.records import ControlSnapshot, TeleopInput
from aloe_robot.nodes.lifecycle import ManagedNode, run
from aloe_robot.nodes.parameters import declare, declare_config
from aloe_robot.nodes.qos import EVENTS, LATCHED
from aloe_robot.nodes.rivals import RivalWatch

COMMANDS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
COMMAND_TYPES = {FORWARD: Float64MultiArray, TRAJECTORY: JointTrajectory}
TICK_SOURCES = ("timer", "joint_states")
WATCH_PERIOD = 0.1  # [s] wall time between looks at lost answers and at other publishers on the command topics
ASK_AGAIN_PERIOD = 2.0  # [s] wall time after which a tick that waits for its chunk asks for it again (our choice: above the inference time of most policies)
LOOKS_PER_REPORT = 10  # once a second: safety status and diagnostics


class ControlNode(ManagedNode):
    """See the module. Parameters: `robot`, `tick_source`, `max_policy_wait`, `wait_for_teleop` and the fields of `ControlConfig`."""

    def __init__(self) -> None:
        super().__init__("control_node")
        self._robot_name = declare(self, "robot", "aloha_sim")
        self._tick_source = declare(self, "tick_source", "timer")
        self._max_wait = declare(self, "max_policy_wait", 30.0)
        self._wait_for_teleop = declare(self, "wait_for_teleop", False)
        self._config = declare_config(self, ControlConfig)
        self._owned: list = []
        self._active = False
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)

    def configure(self) -> None:
        self._robot = robot = load_robot(self._robot_name)
        if self._tick_source not in TICK_SOURCES:
            raise AloeError(f"parameter 'tick_source': '{self._tick_source}' is not one of: {', '.join(TICK_SOURCES)}")
        self._lockstep = self._tick_source == "joint_states"
        if not self._max_wait > 0:
            raise AloeError(f"parameter 'max_policy_wait': {self._max_wait!r} is not a number of seconds above 0")
        if self._wait_for_teleop and not self._lockstep:
            raise AloeError("parameter 'wait_for_teleop' needs tick_source 'joint_states': nothing waits on hardware")
        self._loop = ControlLoop(robot, self._config)
        self._episodes, self._listens_ns = EpisodeFollower(), time.time_ns()
        self._joints, self._outputs = JointMerger(robot), command_outputs(robot)
        self._teleop: dict[str, TeleopInput] = {}
        self._open_since: float | None = None  # wall time since when a tick waits for a chunk
        self._sent: dict[str, Any] = {}  # topic -> command of the last tick
        self._asked: ChunkRequest | None = None  # the newest request,
        self._asked_since = 0.0  # and the wall time at which it was last published
        self._teleop_since: float | None = None  # wall time since when a tick waits for teleoperation
        self._ticked_ns = self._episode_ns = -1  # last stamp; observations up to the episode's start are not part of it
        self._told: tuple = ()
        self._ticks = TickTimes(robot.control_dt_ns)
        self._complaints: dict[str, float] = {}

        self._states = self._publisher(ControlState, topics.CONTROL_STATE, 10)
        self._transitions = self._publisher(Transition, topics.TRANSITION, 10)
        self._requests = self._publisher(ChunkRequest, topics.CHUNK_REQUEST, 10)
        self._safety = self._publisher(SafetyStatus, topics.SAFETY_STATUS, LATCHED)
        self._commands = {
            t: self._publisher(COMMAND_TYPES[kind], t, COMMANDS) for o in self._outputs for t, kind in o.topics
        }
        self._rivals, self._rival = RivalWatch(self, self._commands), ""
        subscriptions = [
            self.create_subscription(JointState, robot.joint_states_topic, self._on_joint_state, 10),
            self.create_subscription(ActionChunk, topics.CHUNK, self._on_chunk, 10),
            self.create_subscription(EpisodeEvent, topics.EPISODE_EVENT, self._on_event, EVENTS),
        ]
        for arm in robot.arm_names:
            topic = topics.TELEOP_COMMAND.format(arm=arm)
            subscriptions.append(
                self.create_subscription(TeleopCommand, topic, lambda m, a=arm: self._on_teleop(a, m), 10)
            )
        self._owned = [(self.destroy_subscription, s) for s in subscriptions]
        self._owned += [
            (self.destroy_publisher, p) for p in (self._states, self._transitions, self._requests, self._safety)
        ]
        self._owned += [(self.destroy_publisher, p) for p in self._commands.values()]
        for name, answer in ((topics.RESET_SAFETY, self._reset_safety), (topics.EMERGENCY_STOP, self._emergency_stop)):
            self._owned.append((self.destroy_service, self.create_service(Trigger, name, answer)))

    def activate(self) -> None:
        self._active = True
        self._loop.halt()
        self._calls = self._looks = 0
        if self._lockstep:
            self._timer = self.create_timer(WATCH_PERIOD, self._look_around, clock=self._wall)
        else:
            self._timer = self.create_timer(self._robot.control_dt_ns / NANOSECONDS, self._tick_now)
        self._tell_safety()
        source = "each new joint state" if self._lockstep else f"a timer at {self._robot.control_rate_hz:g} Hz"
        self.get_logger().info(
            f"controlling robot '{self._robot.name}' on {source}, chunks: {self._loop.config.execution_mode}"
        )

    def deactivate(self) -> None:
        if self._active:
            self._active, self._open_since = False, None
            self.destroy_timer(self._timer)

    def cleanup(self) -> None:
        if self._owned:
            self._rivals.close()
        for destroy, thing in self._owned:
            destroy(thing)
        self._owned = []

    def _publisher(self, kind: type, topic: str, qos: QoSProfile | int) -> Publisher:
        """A publisher without rclpy's event callbacks, of which the executor looks at every one whenever it waits.

        They would only warn of a subscriber with incompatible quality of service, and the subscriber does that itself.
        """
        return self.create_publisher(
            kind, topic, qos, event_callbacks=PublisherEventCallbacks(use_default_callbacks=False)
        )

    def _tick_now(self) -> None:
        """Timer: one tick at this instant, with whatever is there. What can wait comes after it, when the next is farthest."""
        if not self._joints.missing:
            self._begin(self.get_clock().now().nanoseconds)
            self._finish()
        self._calls += 1
        if self._calls % max(1, round(WATCH_PERIOD * self._robot.control_rate_hz)) == 0:
            self._look_around()

    def _on_joint_state(self, message: JointState) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp) or self.get_clock().now().nanoseconds
        try:
            self._joints.add(stamp_ns, message.name, message.position)
        except AloeError as error:
            return self._complain(str(error))
        self._tick_when_new()

    def _tick_when_new(self) -> None:
        """Lockstep: one tick for each new stamp, as soon as the tick before is done."""
        stamp_ns = self._joints.stamp_ns
        if (
            self._lockstep
            and self._active
            and self._open_since is None
            and stamp_ns > max(self._ticked_ns, self._episode_ns)
            and self._teleop_is_due(stamp_ns)
        ):
            self._begin(stamp_ns)
            self._proceed()

    def _teleop_is_due(self, stamp_ns: int) -> bool:
        """Whether the human has been heard on this observation, or has been silent for too long."""
        if not self._wait_for_teleop:
            return True
        arms = self._robot.arm_names
        if all(arm in self._teleop and self._teleop[arm].stamp_ns >= stamp_ns for arm in arms):
            self._teleop_since = None
            return True
        if self._teleop_since is None:
            self._teleop_since = time.monotonic()
        return time.monotonic() - self._teleop_since > self._max_wait  # stays so until they are heard again

    def _begin(self, now_ns: int) -> None:
        try:
            requests = self._loop.observe(now_ns, self._joints.stamp_ns, self._joints.positions, self._teleop)
        except AloeError as error:
            self._tell_safety()
            return self._complain(str(error))
        self._ticked_ns, self._open_since = self._joints.stamp_ns, time.monotonic()
        for request in requests:
            self._ask(chunk_request_msg(ros_make, request))

    def _ask(self, request: ChunkRequest) -> None:
        self._asked, self._asked_since = request, time.monotonic()
        self._requests.publish(request)

    def _proceed(self) -> None:
        """Ends the tick under way unless it must wait for a chunk; then goes on with a stamp that came meanwhile."""
        if self._open_since is not None and not self._loop.due(self._ticked_ns):
            self._finish()
            self._tick_when_new()

    def _finish(self) -> None:
        if self._open_since is None:
            return
        self._open_since = None
        result, self._sent = self._loop.act(), {}
        for output, mode in zip(self._outputs, result.state.mode, strict=True):
            human = mode == Mode.HUMAN
            self._sent.update(output.send(ros_make, result.now_ns, result.commanded, human, self._loop.forecast))
        self._send_again()
        self._tell_state(result.state)
        if result.transition is not None:
            self._transitions.publish(transition_msg(ros_make, result.transition, self._robot))
        self._ticks.add(time.monotonic())
        self._tell_safety()

    def _send_again(self) -> None:
        """Publishes the commands of the last tick."""
        for topic, message in self._sent.items():
            self._commands[topic].publish(message)
            self._rivals.sent(topic)

    # What the other nodes say

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            chunk = chunk_from_msg(message, self._robot)
        except AloeError as error:
            self._loop.buffer.refuse(Refusal.MALFORMED)
            return self._complain(str(error))
        now_ns = self._ticked_ns if self._lockstep else self.get_clock().now().nanoseconds
        refusal = self._loop.add_chunk(chunk, now_ns)
        if refusal is not None:
            self._complain(f"chunk {chunk.chunk_id} refused: {refusal.value}")
        if self._lockstep:
            self._proceed()

    def _on_teleop(self, arm: str, message: TeleopCommand) -> None:
        if message.arm_name == arm:
            self._teleop[arm] = teleop_from_msg(message)
            self._tick_when_new()
        else:
            self._complain(
                f"{topics.TELEOP_COMMAND.format(arm=arm)}: a command for arm '{message.arm_name}' was ignored"
            )

    def _on_event(self, message: EpisodeEvent, info: dict[str, int]) -> None:
        start = Start(message.episode_id, message.instruction, stamp_to_ns(message.header.stamp))
        late, running = info["source_timestamp"] < self._listens_ns, self._loop.episode_id
        try:
            asked = self._episodes.hear(message.event, start, message.outcome, running, late, time.monotonic())
        except AloeError as error:
            return self._complain(str(error))
        if isinstance(asked, Start):
            self._start(asked)
        elif asked is not None:
            if asked.complaint:
                self._complain(asked.complaint)
            self._end(asked.outcome)
            self._tell_state()

    def _start(self, start: Start) -> None:
        """Starts an episode. On hardware its first tick tells so, once every joint is measured and its pose can be started from."""
        if self._loop.episode_id:
            self._end(Outcome.UNLABELLED)
        resumed_ns = start.stamp_ns if start.resumed else None
        self._loop.start_episode(start.episode_id, start.instruction, resumed_ns, afresh=self._lockstep)
        self._episode_ns, self._open_since = start.stamp_ns, None
        if start.resumed:
            self.get_logger().warning(f"resuming episode '{start.episode_id}' on hold until a fresh chunk comes")
        if self._lockstep:
            self._tell_state()

    def _end(self, outcome: Outcome) -> None:
        last = self._loop.stop_episode(outcome)
        if last is not None:
            self._transitions.publish(transition_msg(ros_make, last, self._robot))
        if self._open_since is not None:  # the tick that waited for a chunk is one without an episode now
            self._open_since, self._ticked_ns = None, -1
            self._tick_when_new()

    def _emergency_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._loop.stop(SafetyReason.EMERGENCY_STOP, "emergency stop by service")
        self._tell_safety()
        response.success, response.message = True, "the arms brake and hold until control/reset_safety is called"
        return response

    def _reset_safety(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = self._rival
        if not response.message:
            try:
                self._loop.reset_safety()
            except AloeError as error:
                response.message = str(error)
        response.success = not response.message
        self._tell_safety()
        return response

    def _look_around(self) -> None:
        """About every WATCH_PERIOD: in lockstep by a timer of its own, for a tick may wait; else after a tick, never just before one."""
        self._watch()
        self._looks += 1
        if self._looks % LOOKS_PER_REPORT == 0:
            self._report()

    def _watch(self) -> None:
        resumed = self._episodes.settled(time.monotonic())
        if resumed is not None:
            self._start(resumed)
        self._tick_when_new()
        self._rival = self._rivals.look()
        if self._rival and self._loop.safety.state != SafetyState.STOPPED:
            self._loop.stop(SafetyReason.COMMAND_CONFLICT, self._rival)
            self._tell_safety()
        if self._open_since is not None:
            self._watch_request(time.monotonic(), self._open_since)

    def _watch_request(self, now: float, since: float) -> None:
        """A tick has waited for its chunk since `since`."""
        due = self._loop.due(self._ticked_ns)
        if now - since > self._max_wait:
            for request_id in due:
                self._complain(f"no answer to chunk request {request_id} for {self._max_wait:g} s; the arms hold")
                self._loop.give_up(request_id)
            self._proceed()
        elif self._asked is not None and self._asked.request_id in due and now - self._asked_since > ASK_AGAIN_PERIOD:
            self._ask(self._asked)

    def _tell_state(self, state: ControlSnapshot | None = None) -> None:
        """Publishes the control state of a tick, or as it is between ticks."""
        self._states.publish(control_state_msg(ros_make, state or self._loop.state, self._robot))

    def _tell_safety(self, always: bool = False) -> None:
        """Publishes the safety status when it has changed. A stop is also logged."""
        report = self._loop.safety
        told = (report.state, report.reason, report.joint, report.message)
        if told == self._told and not always:
            return
        if report.state == SafetyState.STOPPED and told != self._told:
            self.get_logger().error(f"safety stop, {report.reason.name.lower()}: {report.message}")
        self._told = told
        now_ns = self.get_clock().now().nanoseconds
        self._safety.publish(safety_status_msg(ros_make, report, now_ns))

    def _complain(self, sentence: str) -> None:
        """Logs a warning, the same one at most once a second."""
        now = time.monotonic()
        if now - self._complaints.get(sentence, -np.inf) >= 1.0:
            self._complaints = {s: t for s, t in self._complaints.items() if now - t < 1.0} | {sentence: now}
            self.get_logger().warning(sentence)

    def _report(self) -> None:
        """Once a second: safety status and diagnostics."""
        self._tell_safety(always=True)
        waits = time.monotonic() - self._ticks.last > WATCH_PERIOD * LOOKS_PER_REPORT
        if self._lockstep and waits and self._loop.episode_id:  # a simulator that has just started may have missed it
            self._send_again()
            self._tell_state()
        state, missing = self._loop.state, self._joints.missing
        level, message = verdict(self._loop.safety, missing, self._robot.joint_states_topic, state.episode_id)
        age = (self.get_clock().now().nanoseconds - self._joints.stamp_ns) / NANOSECONDS
        self.diagnose(
            level,
            message,
            tick_rate_hz=self._ticks.rate_hz,
            jitter_p99_s=self._ticks.jitter_p99_s,
            observation_age_s=float(age) if not missing else -1.0,
            starved_ticks=state.starved_ticks,
            discarded_chunks=state.discarded_chunks,
            discard_reason=state.discard_reason,
            lost_requests=self._loop.lost_requests,
            waiting_for_policy=self._open_since is not None,
        )


def main() -> None:
    """Runs the node until it is interrupted."""
    run(ControlNode)


if __name__ == "__main__":
    main()
