"""Robot description: one YAML file that says what the robot is, validated before anything moves.

The order of `RobotDescription.action_names` is *the* order of every action and joint-state vector in the project: for each arm its joints, then
its gripper.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aloe_core.errors import AloeError
from aloe_core.yaml_file import read_yaml

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Topic = Annotated[str, Field(pattern=r"^/?[A-Za-z][A-Za-z0-9_/]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))


class Joint(_Part):
    """One joint; angles in radians."""

    name: Name
    min: Finite  # [rad]
    max: Finite  # [rad]
    max_velocity: Positive  # [rad/s]
    max_acceleration: Positive  # [rad/s^2]
    max_jerk: Positive  # [rad/s^3]
    home: Finite = 0.0  # [rad]

    @model_validator(mode="after")
    def _ordered(self) -> Joint:
        if not self.min < self.max:
            raise ValueError(f"joint '{self.name}': min {self.min} must be below max {self.max}")
        if not self.min <= self.home <= self.max:
            raise ValueError(f"joint '{self.name}': home {self.home} lies outside [{self.min}, {self.max}]")
        return self


class Gripper(_Part):
    """One gripper, commanded as an opening 0 closed .. 1 open. `closed` and `open` are the device's own values."""

    name: Name
    closed: Finite = 0.0  # device value when closed
    open: Finite = 1.0  # device value when open
    max_velocity: Positive = 15.0  # [openings/s]
    max_acceleration: Positive = 300.0  # [openings/s^2]
    max_jerk: Positive = 30000.0  # [openings/s^3]
    home: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _distinct(self) -> Gripper:
        if self.closed == self.open:
            raise ValueError(f"gripper '{self.name}': closed and open are both {self.open}")
        return self


class ArmOutput(_Part):
    """How commands reach an arm.

    `forward_position` publishes `std_msgs/Float64MultiArray` every tick, for ros2_control's forward/position command controllers.
    `joint_trajectory` publishes one multi-point `trajectory_msgs/JointTrajectory` per chunk. When `gripper_topic` is given, the gripper is
    commanded there (Float64MultiArray with one value) and left out of the arm's own message.
    """

    type: Literal["forward_position", "joint_trajectory"] = "forward_position"
    topic: Topic
    gripper_topic: Topic | None = None


class Arm(_Part):
    """One arm: its joints, then its gripper, in action order."""

    name: Name
    joints: Annotated[tuple[Joint, ...], Field(min_length=1)]
    gripper: Gripper | None = None
    output: ArmOutput
    base_frame: str = ""
    tool_frame: str = ""

    @property
    def action_names(self) -> tuple[str, ...]:
        names = tuple(j.name for j in self.joints)
        return names if self.gripper is None else (*names, self.gripper.name)


class Camera(_Part):
    """One camera. `source` is what OpenCV opens: V4L2 index or path, URL, or video file; `sim` renders it in the simulator."""

    name: Name
    topic: Topic  # base name; images come on <topic>/image_raw/compressed, calibration on <topic>/camera_info
    frame_id: str = ""
    width: Annotated[int, Field(ge=16, le=8192)] = 640  # [pixel]
    height: Annotated[int, Field(ge=16, le=8192)] = 480  # [pixel]
    rate_hz: Positive = 30.0
    source: str = "sim"
    calibration: str | None = None  # camera_info YAML, relative to the robot description

    @property
    def compressed_topic(self) -> str:
        return f"{self.topic}/image_raw/compressed"

    @property
    def raw_topic(self) -> str:
        return f"{self.topic}/image_raw"

    @property
    def info_topic(self) -> str:
        return f"{self.topic}/camera_info"


class SafetyLimits(_Part):
    """Times and errors after which the control loop stops trusting its inputs."""

    observation_timeout: Positive = 0.2  # [s] joint states older than this: hold
    observation_stop_timeout: Positive = 1.0  # [s] joint states older than this: latched stop
    policy_timeout: Positive = (
        2.0  # [s] without a usable chunk while the policy should drive: watchdog counts, arm holds
    )
    teleop_timeout: Positive = 0.1  # [s] without a teleoperation command while a human drives: arm holds
    max_tracking_error: Positive = 1.0  # [rad] between command and measurement, sustained: latched stop
    tracking_error_time: Positive = 0.5  # [s]


class RobotDescription(_Part):
    """A bimanual (or any n-armed) robot. Load with `load_robot`."""

    name: Name
    control_rate_hz: Positive = 50.0
    joint_states_topic: Topic = "/joint_states"
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    cameras: tuple[Camera, ...] = ()
    safety: SafetyLimits = SafetyLimits()
    urdf: str | None = None  # relative to the robot description
    simulator: Literal["aloha"] | None = None

    @model_validator(mode="after")
    def _unique(self) -> RobotDescription:
        for what, names in (
            ("arm", [a.name for a in self.arms]),
            ("joint or gripper", list(self.action_names)),
            ("camera", [c.name for c in self.cameras]),
            ("camera topic", [c.topic for c in self.cameras]),
            ("command topic", [t for a in self.arms for t in (a.output.topic, a.output.gripper_topic) if t]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)}")
        return self

    @property
    def action_names(self) -> tuple[str, ...]:
        """Order of every action and state vector `[A]`."""
        return tuple(n for arm in self.arms for n in arm.action_names)

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.arms)

    @property
    def control_dt_ns(self) -> int:
        """Control period [ns]."""
        return round(1e9 / self.control_rate_hz)

    @cached_property
    def arm_slices(self) -> tuple[slice, ...]:
        """For each arm, where its entries lie in an action vector."""
        slices, start = [], 0
        for arm in self.arms:
            slices.append(slice(start, start + len(arm.action_names)))
            start += len(arm.action_names)
        return tuple(slices)

    @cached_property
    def gripper_mask(self) -> np.ndarray:
        """bool `[A]`, true where the entry is a gripper opening."""
        return np.array(
            [n == (arm.gripper.name if arm.gripper else None) for arm in self.arms for n in arm.action_names]
        )

    def _vector(self, joint_key: str, gripper_value: str | float) -> np.ndarray:
        values: list[float] = []
        for arm in self.arms:
            values += [getattr(j, joint_key) for j in arm.joints]
            if arm.gripper is not None:
                values.append(getattr(arm.gripper, gripper_value) if isinstance(gripper_value, str) else gripper_value)
        return np.array(values, dtype=np.float64)

    @cached_property
    def position_min(self) -> np.ndarray:
        """float64 `[A]` [rad, opening]."""
        return self._vector("min", 0.0)

    @cached_property
    def position_max(self) -> np.ndarray:
        """float64 `[A]` [rad, opening]."""
        return self._vector("max", 1.0)

    @cached_property
    def max_velocity(self) -> np.ndarray:
        """float64 `[A]` [rad/s, opening/s]."""
        return self._vector("max_velocity", "max_velocity")

    @cached_property
    def max_acceleration(self) -> np.ndarray:
        """float64 `[A]` [rad/s^2, opening/s^2]."""
        return self._vector("max_acceleration", "max_acceleration")

    @cached_property
    def max_jerk(self) -> np.ndarray:
        """float64 `[A]` [rad/s^3, opening/s^3]."""
        return self._vector("max_jerk", "max_jerk")

    @cached_property
    def home(self) -> np.ndarray:
        """float64 `[A]` [rad, opening]."""
        return self._vector("home", "home")

    @cached_property
    def _device_scale(self) -> tuple[np.ndarray, np.ndarray]:
        offset, scale = np.zeros(self.action_dim), np.ones(self.action_dim)
        for arm, span in zip(self.arms, self.arm_slices, strict=True):
            if arm.gripper is not None:
                offset[span.stop - 1] = arm.gripper.closed
                scale[span.stop - 1] = arm.gripper.open - arm.gripper.closed
        return offset, scale

    def to_device(self, action: np.ndarray) -> np.ndarray:
        """Action `[..., A]` with openings 0..1 -> the values the devices expect."""
        offset, scale = self._device_scale
        return action * scale + offset

    def from_device(self, values: np.ndarray) -> np.ndarray:
        """Measured device values `[..., A]` -> action order with openings 0..1."""
        offset, scale = self._device_scale
        return (values - offset) / scale

    def camera(self, name: str) -> Camera:
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise AloeError(
            f"robot '{self.name}' has no camera '{name}'; it has: {', '.join(c.name for c in self.cameras) or 'none'}"
        )

    @cached_property
    def hash(self) -> str:
        """16 hex digits over everything that gives actions and observations their meaning; limits, rates of cameras and topics may change freely."""
        meaning = {
            "control_rate_hz": self.control_rate_hz,
            "arms": [[a.name, list(a.action_names), a.gripper is not None] for a in self.arms],
            "cameras": sorted(c.name for c in self.cameras),
        }
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def robot_folders() -> list[Path]:
    """Folders in which descriptions are found by name: `$ALOE_ROBOTS` if it is set, then the one that comes with the project."""
    own = os.environ.get("ALOE_ROBOTS")
    return [*([Path(own)] if own else []), _shipped_folder()]


def robot_folder() -> Path:
    """The first of `robot_folders`."""
    return robot_folders()[0]


def _shipped_folder() -> Path:
    """That of an installed aloe_bringup, or of the source checkout."""
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        folder = Path(prefix) / "share" / "aloe_bringup" / "config" / "robots"
        if prefix and folder.is_dir():
            return folder
    return Path(__file__).resolve().parents[3] / "config" / "robots"


def robot_file(name_or_path: str | Path) -> Path:
    """The file of a robot description, by name (`aloha_sim`) or path of a YAML file. What the description names relative to itself lies beside it.

    Raises:
        AloeError: there is no such file; the message says where it was looked for and what is there.
    """
    path, folders = Path(name_or_path), robot_folders()
    by_path = path.suffix in (".yaml", ".yml")
    files = [path] if by_path else [folder / f"{name_or_path}.yaml" for folder in folders]
    for file in files:
        if os.path.isfile(file):  # also false for a name that no file can have, where Path raises
            return file
    known = {file.stem: None for folder in folders for file in sorted(folder.glob("*.yaml"))}
    advice = "" if by_path else "; give the path of its YAML file, e.g. --robot my_robot.yaml"
    raise AloeError(
        f"unknown robot '{name_or_path}': no file {' or '.join(map(str, files))}; known robots: {', '.join(known) or 'none'}{advice}"
    )


def load_robot(name_or_path: str | Path) -> RobotDescription:
    """Reads and validates a robot description, by name (`aloha_sim`) or path of a YAML file.

    Raises:
        AloeError: the file is missing, is not YAML, or a key is unknown, missing or wrong; the message names file and key.
    """
    path = robot_file(name_or_path)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise AloeError(f"{path}: a robot description is a mapping of keys, this file is a {type(data).__name__}")
    try:
        return RobotDescription.model_validate(data)
    except ValidationError as error:
        raise AloeError(f"{path}: {explain(error)}") from None


EXPLAINED = 10  # errors of one file that a person reads


def explain(error: ValidationError) -> str:
    """A pydantic error as one line that names each key and what is wrong with it."""
    lines, found = [], error.errors(include_url=False, include_input=False)
    for item in found[:EXPLAINED]:
        key = ".".join(str(part) for part in item["loc"]) or "file"
        unknown = item["type"] in ("extra_forbidden", "unexpected_keyword_argument")  # of a model, of a dataclass
        message = "unknown key" if unknown else item["msg"].removeprefix("Value error, ")
        lines.append(f"{key}: {message}")
    if len(found) > EXPLAINED:
        lines.append(f"and {len(found) - EXPLAINED} more")
    return "; ".join(lines)
