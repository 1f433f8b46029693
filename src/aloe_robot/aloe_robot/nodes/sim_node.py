"""The simulated robot as ROS sees a real one: joint states, cameras and commands, plus `/clock`, a reset service and the task's outcome.

Lockstep (default): the next step is taken when `ControlState` of the present stamp has come and every arm's newest command is the one it
names, so that results do not depend on the machine's speed. Without lockstep it steps in real time with whatever was commanded last, as hardware does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool

from aloe_core import topics
from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.messages import ros_make, stamp_to_ns, time_msg
from aloe_core.robot import Camera, load_robot
from aloe_core.vocabulary import Outcome
from aloe_msgs.msg import ControlState, EpisodeEvent, TaskState
from aloe_msgs.srv import ResetSim
from aloe_robot.nodes.lifecycle import spin
from aloe_robot.nodes.parameters import declare
from aloe_robot.nodes.qos import EVENTS
from aloe_robot.sim.env import SimEnv
from aloe_robot.sim.messages import camera_due, camera_info, check_rates, image, outcome_of, sim_joint_state, task_state

# A reset moves the clock on to the next whole second, and so does `run`: every camera whose rate is a whole number of Hz has an image at the first observation.
SECOND = NANOSECONDS
REPEAT_PERIOD = (
    0.1  # [s] wall time between repetitions of the observation while paused, so that a node that starts late sees it
)


class SimNode(Node):
    """Publishes the simulator; see the module for when it steps."""

    def __init__(self) -> None:
        super().__init__("sim_node")
        self.robot = load_robot(declare(self, "robot", "aloha_sim"))
        if self.robot.simulator != "aloha":
            raise AloeError(
                f"robot '{self.robot.name}' has no simulator; use a description with 'simulator: aloha', e.g. aloha_sim"
            )
        task = declare(self, "task", "transfer_cube")
        with_cameras = declare(self, "cameras", True)
        self.lockstep = declare(self, "lockstep", True)
        speed = declare(self, "real_time_factor", 1.0)  # 0: as fast as the commands come
        self.jpeg_quality = declare(self, "jpeg_quality", 90)
        seed = declare(self, "seed", 0)
        if not 0 <= speed < np.inf or (speed == 0 and not self.lockstep):
            raise AloeError("parameter 'real_time_factor' must be positive, or 0 together with lockstep")
        self.cameras: tuple[Camera, ...] = self.robot.cameras if with_cameras else ()
        if with_cameras:
            check_rates(self.robot)
        self.env: SimEnv = self._make_env(task)
        self.episode_id, self.seed, self.limit_steps = "", seed, self.env.task.time_limit
        self.env.reset(seed)
        self.base_ns = SECOND
        self.running = False
        self.awaiting_stop = (
            False  # the task ended: the last joint state waits until the control loop is out of the episode
        )
        self.acknowledged: np.ndarray | None = None  # device commands that ControlState names for the present stamp
        self.may_step = speed == 0  # real time allows the next step
        self.present: list[tuple[Publisher, Any]] = []  # messages of the present observation
        self.repeated_ns = -1  # stamp at the last look whether time stands still
        self.commands: dict[str, np.ndarray] = {}
        self.command_slices = self._command_slices()

        self.clock_pub = self.create_publisher(ClockMsg, "/clock", 10)
        self.joint_pub = self.create_publisher(JointState, self.robot.joint_states_topic, 10)
        self.task_pub = self.create_publisher(TaskState, topics.TASK_STATE, 10)
        self.image_pubs = {c.name: self.create_publisher(CompressedImage, c.compressed_topic, 2) for c in self.cameras}
        self.info_pubs = {c.name: self.create_publisher(CameraInfo, c.info_topic, 2) for c in self.cameras}
        for topic in self.command_slices:
            self.create_subscription(Float64MultiArray, topic, lambda m, t=topic: self._on_command(t, m), 10)
        self.create_subscription(ControlState, topics.CONTROL_STATE, self._on_control_state, 10)
        self.create_subscription(EpisodeEvent, topics.EPISODE_EVENT, self._on_event, EVENTS)
        self.create_service(ResetSim, topics.RESET_SIM, self._reset)
        self.create_service(SetBool, topics.RUN_SIM, self._run)
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPEAT_PERIOD, self._repeat, clock=wall)
        self.paced = speed > 0
        if self.paced:
            self.create_timer(self.robot.control_dt_ns / NANOSECONDS / speed, self._pace, clock=wall)
        self.set_parameters([Parameter("use_sim_time", value=False)])  # it makes the time, it does not follow it
        self._publish()
        self.get_logger().info(
            f"simulating task '{task}' with {len(self.cameras)} cameras, {'lockstep' if self.lockstep else 'free running'}"
        )

    def destroy_node(self) -> None:
        self.env.close()
        super().destroy_node()

    def _make_env(self, task: str) -> SimEnv:
        return SimEnv(task, cameras=tuple(c.name for c in self.cameras), control_hz=round(self.robot.control_rate_hz))

    def _command_slices(self) -> dict[str, slice]:
        slices = {}
        for arm, span in zip(self.robot.arms, self.robot.arm_slices, strict=True):
            if arm.output.type != "forward_position":
                raise AloeError(
                    f"arm '{arm.name}': the simulator takes commands of type forward_position, not {arm.output.type}"
                )
            if arm.output.gripper_topic:
                slices[arm.output.gripper_topic] = slice(span.stop - 1, span.stop)
                span = slice(span.start, span.stop - 1)
            slices[arm.output.topic] = span
        return slices

    @property
    def stamp_ns(self) -> int:
        """Time of the present observation [ns]."""
        return self.base_ns + self.env.time_ns

    # -- stepping --

    def _on_command(self, topic: str, message: Float64MultiArray) -> None:
        span = self.command_slices[topic]
        values = np.array(message.data, dtype=np.float64)
        if values.shape != (span.stop - span.start,) or not np.isfinite(values).all():
            self.get_logger().error(
                f"{topic}: expected {span.stop - span.start} finite numbers, got {values}; command ignored"
            )
            return
        self.commands[topic] = values
        self._try_step()

    def _on_control_state(self, message: ControlState) -> None:
        self._follow_clock(stamp_to_ns(message.header.stamp))
        if self.awaiting_stop and message.episode_id != self.episode_id:
            self.awaiting_stop = False
            self._publish()
        elif stamp_to_ns(message.header.stamp) == self.stamp_ns and message.commanded:
            self.acknowledged = self.robot.to_device(np.array(message.commanded))
            self._try_step()

    def _on_event(self, message: EpisodeEvent) -> None:
        self._follow_clock(stamp_to_ns(message.header.stamp))
        if message.event != EpisodeEvent.STARTED and message.episode_id == self.episode_id:
            self.running = False  # labelled and discarded is only what is over

    def _follow_clock(self, heard_ns: int) -> None:
        """A stamp newer than our own comes from before this process: the clock goes on from there, for it never runs backwards."""
        if not self.running and heard_ns > self.stamp_ns:
            self.base_ns += (heard_ns // SECOND + 1) * SECOND - self.stamp_ns
            self._publish()

    def _pace(self) -> None:
        self.may_step = True
        self._try_step()

    def _try_step(self) -> None:
        if not (self.running and self.may_step) or len(self.commands) < len(self.command_slices):
            return
        if self.lockstep:
            if self.acknowledged is None:
                return
            if any(not np.array_equal(self.commands[t], self.acknowledged[s]) for t, s in self.command_slices.items()):
                return  # the command that belongs to this tick has not arrived yet
        action = np.empty(self.robot.action_dim)
        for topic, span in self.command_slices.items():
            action[span] = self.commands[topic]
        self.acknowledged = None
        self.may_step = not self.paced
        self.env.step(self.robot.from_device(action))
        if self.episode_id and outcome_of(self.env, self.limit_steps) != Outcome.UNLABELLED:
            self.running, self.awaiting_stop = False, True
        self._publish()

    # -- services --

    def _reset(self, request: ResetSim.Request, response: ResetSim.Response) -> ResetSim.Response:
        try:
            if request.seed < 0:
                raise AloeError(f"seed {request.seed} is negative")
            if not np.isfinite(request.time_limit) or request.time_limit < 0:
                raise AloeError(f"time_limit {request.time_limit} s is not a length of time")
            if request.task and request.task != self.env.task.name:
                fresh = self._make_env(request.task)
                self.env.close()
                self.env = fresh
        except AloeError as error:
            response.error_code = (
                ResetSim.Request.UNKNOWN_TASK if "unknown task" in str(error) else ResetSim.Request.BAD_REQUEST
            )
            response.error_msg = str(error)
            return response
        passed = self.stamp_ns
        self.env.reset(request.seed)
        self.base_ns = (passed // SECOND + 1) * SECOND
        self.limit_steps = (
            round(request.time_limit * self.robot.control_rate_hz) if request.time_limit else self.env.task.time_limit
        )
        self.episode_id, self.seed = request.episode_id, request.seed
        self.running = self.awaiting_stop = False
        self.acknowledged = None
        self._publish()
        response.success = True
        response.instruction = self.env.task.instruction
        response.time_limit = self.limit_steps / self.robot.control_rate_hz
        response.stamp = time_msg(ros_make, self.base_ns + SECOND)
        return response

    def _run(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and not self.running and not self.awaiting_stop:
            if self.env.tick == 0:
                self.base_ns += (
                    SECOND  # a stamp that the control loop has not seen while paused: its first tick of the episode
                )
            self.running, self.may_step = True, not self.paced
            self.acknowledged = None
            self._publish()
        elif not request.data:
            self.running = False
        response.success = self.running == request.data
        response.message = "" if response.success else "the task has ended; reset it first"
        return response

    # -- publishing --

    def _repeat(self) -> None:
        """While time stands still, a node that has just started may have missed the present observation."""
        if self.stamp_ns == self.repeated_ns:
            for publisher, message in self.present:
                publisher.publish(message)
        self.repeated_ns = self.stamp_ns

    def _publish(self) -> None:
        """The present observation: everything else before the joint state, for that is what the control loop ticks on."""
        stamp = self.stamp_ns
        present: list[tuple[Publisher, Any]] = [(self.clock_pub, ClockMsg(clock=time_msg(ros_make, stamp)))]
        for camera in self.cameras:
            if camera_due(camera, stamp):
                picture = image(ros_make, self.env, camera, stamp, self.jpeg_quality)
                present.append((self.image_pubs[camera.name], picture))
                present.append((self.info_pubs[camera.name], camera_info(ros_make, self.env, camera, stamp)))
        state = task_state(ros_make, self.env, stamp, self.episode_id, self.seed, self.limit_steps)
        present.append((self.task_pub, state))
        if not self.awaiting_stop:
            present.append((self.joint_pub, sim_joint_state(ros_make, self.env, self.robot, stamp)))
        for publisher, message in present:
            publisher.publish(message)
        self.present = present


def main() -> None:
    """Runs the node until it is interrupted."""
    spin("sim_node", SimNode)


if __name__ == "__main__":
    main()
