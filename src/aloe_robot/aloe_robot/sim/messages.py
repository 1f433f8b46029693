"""The simulator's measurements as messages, for the node and for bags written without ROS."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from aloe_core.errors import AloeError
from aloe_core.messages import Make, compressed_image_msg, header_msg, joint_state_msg
from aloe_core.robot import Camera, RobotDescription
from aloe_core.vocabulary import Outcome
from aloe_robot.sim.env import SimEnv


def outcome_of(env: SimEnv, limit_steps: int) -> Outcome:
    """How the task stands: UNLABELLED while it may still go either way."""
    if env.success:
        return Outcome.SUCCESS
    if env.failure is not None:
        return Outcome.FAILURE
    return Outcome.TIMEOUT if env.tick >= limit_steps else Outcome.UNLABELLED


def check_rates(robot: RobotDescription) -> None:
    """Raises `AloeError` for a camera whose images would fall between the simulator's ticks."""
    for camera in robot.cameras:
        period = round(1e9 / camera.rate_hz)
        if 1_000_000_000 % period or period % robot.control_dt_ns:
            raise AloeError(
                f"camera '{camera.name}': the simulator cannot take images at {camera.rate_hz:g} Hz; "
                f"choose a whole number that divides the control rate of {robot.control_rate_hz:g} Hz"
            )


def camera_due(camera: Camera, stamp_ns: int) -> bool:
    """Whether the camera takes an image at this tick."""
    return stamp_ns % round(1e9 / camera.rate_hz) == 0


def sim_joint_state(make: Make, env: SimEnv, robot: RobotDescription, stamp_ns: int) -> Any:
    """`sensor_msgs/JointState` of the simulated robot, in device units."""
    position = robot.to_device(env.joint_positions())
    return joint_state_msg(make, stamp_ns, robot.action_names, position, env.joint_velocities())


def task_state(make: Make, env: SimEnv, stamp_ns: int, episode_id: str, seed: int, limit_steps: int) -> Any:
    """`aloe_msgs/TaskState`."""
    return make(
        "aloe_msgs/msg/TaskState",
        header=header_msg(make, stamp_ns),
        episode_id=episode_id,
        task=env.task.name,
        seed=seed,
        step=env.tick,
        outcome=int(outcome_of(env, limit_steps)),
        outcome_message=env.failure or "",
        progress=float(env.progress),
        object_names=list(env.object_state_names),
        object_state=env.object_state(),
        sim_state=env.save_state(),
    )


def image(make: Make, env: SimEnv, camera: Camera, stamp_ns: int, jpeg_quality: int) -> Any:
    """`sensor_msgs/CompressedImage` of what a simulated camera sees."""
    rgb = env.render(camera.name, camera.width, camera.height)
    _, jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    return compressed_image_msg(make, stamp_ns, camera.frame_id, jpeg.tobytes())


def camera_info(make: Make, env: SimEnv, camera: Camera, stamp_ns: int) -> Any:
    """`sensor_msgs/CameraInfo` of a simulated (ideal pinhole) camera."""
    fovy = np.radians(env.model.camera(camera.name).fovy[0])  # vertical field of view
    focal = camera.height / 2 / np.tan(fovy / 2)  # [pixel]
    cx, cy = camera.width / 2, camera.height / 2
    matrix = np.array([focal, 0, cx, 0, focal, cy, 0, 0, 1])
    roi = make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return make(
        "sensor_msgs/msg/CameraInfo",
        header=header_msg(make, stamp_ns, camera.frame_id),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=matrix,
        r=np.eye(3).ravel(),
        p=np.array([focal, 0, cx, 0, 0, focal, cy, 0, 0, 0, 1, 0]),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )
