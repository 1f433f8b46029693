"""What `aloe check` looks at, and how it judges what was found. Pure: `nodes/check_probe.py` listens to the graph."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.policy import load_policy
from aloe_core.robot import Camera, RobotDescription
from aloe_intervention.hidraw import HidInfo
from aloe_robot.control.outputs import command_outputs

CONTROL = "control_node"
LISTENERS = (CONTROL, "recorder_node")  # our own nodes that look at command topics; they move no arm
GIGABYTE = 1e9
GOOD_RATE, POOR_RATE = 0.9, 0.5  # share of the expected rate: below the first WARN, below the second FAIL
CLOCK_WARN = 0.02  # [s] our choice: one control period; stamps are compared with each other within one tick
LIMIT_TOLERANCE = 0.01  # [rad, opening] our choice: a joint at its limit is measured a little beyond it


class Level(Enum):
    """How a check went."""

    OK = "OK"
    WARN = "WARN"  # works, but not as well as it should
    FAIL = "FAIL"  # must be put right before anything moves


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do about it (empty when OK)."""

    level: Level
    name: str
    found: str
    advice: str = ""


@dataclass
class Heard:
    """Messages of one topic during the probe."""

    stamps_ns: list[int] = field(default_factory=list)
    ages_ns: list[int] = field(default_factory=list)  # time of arrival - stamp
    publishers: list[str] = field(default_factory=list)  # full node names
    best_effort: bool = False  # some publisher offers best effort only

    @property
    def rate_hz(self) -> float:
        """By the stamps; 0 for fewer than two messages."""
        span = max(self.stamps_ns) - min(self.stamps_ns) if self.stamps_ns else 0
        return (len(set(self.stamps_ns)) - 1) * NANOSECONDS / span if span > 0 else 0.0

    @property
    def age_s(self) -> float:
        """Smallest age [s]: transport at its fastest plus the difference of the clocks."""
        return min(self.ages_ns) / NANOSECONDS


@dataclass
class HeardJoints(Heard):
    """Joint states."""

    positions: dict[str, float] = field(default_factory=dict)  # newest device value per joint name


@dataclass
class HeardImages(Heard):
    """Compressed images of one camera."""

    size: tuple[int, int] | None = None  # (width, height) [pixel] of the last picture that could be decoded
    bytes: int = 0
    undecodable: int = 0
    calibrated: bool | None = None  # whether camera_info carries more than identity matrices; None: no camera_info


@dataclass
class Commanded:
    """Who is at the two ends of a command topic: full node names, and the subscribers' message types."""

    publishers: list[str] = field(default_factory=list)
    subscribers: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunningPolicy:
    """What a running policy_node says of itself."""

    ready: bool  # it answers requests
    version: str = ""
    message: str = ""  # what is wrong, or why it refused another one


@dataclass
class Findings:
    """All that the probe saw of the graph."""

    joints: HeardJoints
    images: dict[str, HeardImages]  # by camera
    commands: dict[str, Commanded]  # by topic
    raw_images: list[str]  # raw image topics that somebody publishes
    simulated: bool  # somebody publishes /clock
    stopped: str = ""  # why the safety filter has stopped the robot; empty: it has not
    policy: RunningPolicy | None = None  # None: no policy_node runs


def check_graph(robot: RobotDescription, findings: Findings) -> list[Check]:
    """Everything that is judged from the running graph."""
    checks = check_commands(robot, findings.commands)
    if findings.stopped:
        advice = "remove the cause, then call control/reset_safety"
        checks.append(Check(Level.FAIL, "safety filter", f"stopped: {findings.stopped}", advice))
    if findings.simulated:
        found = "/clock is published: rates and clock offsets are not judged in simulated time"
        checks.append(Check(Level.WARN, "time", found, "on a real robot nothing may publish /clock"))
    checks += check_joint_states(robot, findings.joints, findings.simulated)
    for camera in robot.cameras:
        raw = camera.raw_topic in findings.raw_images
        checks += check_camera(robot, camera, findings.images[camera.name], findings.simulated, raw)
    return checks


def check_commands(robot: RobotDescription, topics: Mapping[str, Commanded]) -> list[Check]:
    """Every command topic is heard by a controller of the right type, and spoken to by one control_node alone."""
    checks = []
    for arm, output in zip(robot.arms, command_outputs(robot), strict=True):
        for topic, kind in output.topics:
            ends, name = topics[topic], f"commands of arm {arm.name}"
            controllers = [n for n in ends.subscribers if _base(n) not in LISTENERS]
            wrong = sorted({t for t in ends.types if t != kind})
            if not controllers:
                advice = f"load and activate the controller that takes {kind} there, or correct 'output' in the robot description"
                checks.append(Check(Level.FAIL, name, f"nobody subscribes {topic}", advice))
            elif wrong:
                advice = "correct the output's 'type' in the robot description, or load the other kind of controller"
                found = f"{topic} is subscribed as {', '.join(wrong)}, we send {kind}"
                checks.append(Check(Level.FAIL, name, found, advice))
            else:
                checks.append(Check(Level.OK, name, f"{', '.join(controllers)} listens to {topic}"))
            rivals = [n for n in ends.publishers if _base(n) != CONTROL]
            ours = len(ends.publishers) - len(rivals)
            if rivals or ours > 1:
                found = f"{', '.join(rivals) or f'{ours} control_nodes'} may command {topic} as well"
                checks.append(
                    Check(Level.FAIL, name, found, "stop the other publisher; one control_node owns the arms")
                )
    if not any(_base(n) == CONTROL for ends in topics.values() for n in ends.publishers):
        advice = "start the launch file, then check again: what the nodes do is judged only when they run"
        checks.append(Check(Level.WARN, "control loop", "control_node does not run", advice))
    return checks


def check_joint_states(robot: RobotDescription, heard: HeardJoints, simulated: bool = False) -> list[Check]:
    """Joint states come, are complete, finite, within the limits, often enough and on time."""
    topic, name = robot.joint_states_topic, "joint states"
    if not heard.stamps_ns:
        publishers = ", ".join(heard.publishers) or "nobody"
        advice = "start the robot's driver and its joint_state_broadcaster, or correct 'joint_states_topic'"
        return [Check(Level.FAIL, name, f"nothing came on {topic} (published by {publishers})", advice)]
    checks = []
    if missing := [n for n in robot.action_names if n not in heard.positions]:
        advice = f"names in the robot description must be those of the driver, which has: {', '.join(sorted(heard.positions))}"
        checks.append(Check(Level.FAIL, name, f"{topic} lacks {', '.join(missing)}", advice))
    measured = np.array([heard.positions.get(n, np.nan) for n in robot.action_names])
    values = robot.from_device(measured)
    beyond = np.maximum(robot.position_min - values, values - robot.position_max)
    for index, joint in enumerate(robot.action_names):
        if joint in missing:
            continue
        if not np.isfinite(values[index]):
            checks.append(Check(Level.FAIL, name, f"{joint} is {measured[index]}", "look at the driver of this arm"))
        elif beyond[index] > LIMIT_TOLERANCE:
            found = f"{joint} is at {values[index]:.4g}, outside {robot.position_min[index]:.4g} .. {robot.position_max[index]:.4g}"
            advice = "move it inside, or correct its limits (of a gripper: closed and open) in the robot description"
            checks.append(Check(Level.FAIL, name, found, advice))
    if heard.best_effort:
        advice = "configure the driver to publish joint states reliably"
        checks.append(
            Check(Level.FAIL, name, f"{topic} is offered best effort, control_node asks for reliable", advice)
        )
    if not simulated:
        checks += _check_rate(
            name, heard, robot.control_rate_hz, "raise the driver's rate to the control rate or above"
        )
        checks += _check_clock(name, heard, robot.safety.observation_timeout)
    if all(check.level is Level.OK for check in checks):
        found = f"{len(measured)} joints on {topic}, {heard.rate_hz:.1f} Hz, within limits, {_age(heard)}"
        return [Check(Level.OK, name, found)]
    return checks


def check_camera(
    robot: RobotDescription, camera: Camera, heard: HeardImages, simulated: bool = False, raw: bool = False
) -> list[Check]:
    """Compressed images come, can be decoded, have the right size, come often enough and on time; the camera is calibrated. `raw`: there are raw ones."""
    topic, name = camera.compressed_topic, f"camera {camera.name}"
    if not heard.stamps_ns:
        publishers = ", ".join(heard.publishers) or "nobody"
        advice = f"start its camera_node (source {camera.source}), look at its output and at /diagnostics"
        if raw:
            advice = f"policies look at compressed images only, but the driver publishes {camera.raw_topic}: let it compress them, too"
        return [Check(Level.FAIL, name, f"no image came on {topic} (published by {publishers})", advice)]
    checks = []
    if heard.undecodable:
        advice = "publish JPEG or PNG"
        checks.append(Check(Level.FAIL, name, f"an image on {topic} cannot be decoded", advice))
    if heard.size not in (None, (camera.width, camera.height)):
        assert heard.size is not None
        found = f"{heard.size[0]}x{heard.size[1]} instead of {camera.width}x{camera.height}"
        checks.append(
            Check(Level.FAIL, name, found, "correct width and height in the robot description, or the driver")
        )
    if not simulated:
        checks += _check_rate(
            name, heard, camera.rate_hz, "check USB bandwidth, exposure time (light!) and processor load"
        )
        checks += _check_clock(name, heard, robot.safety.observation_timeout)
    if heard.calibrated is not True:
        found = (
            "no camera_info" if heard.calibrated is None else "not calibrated: camera_info carries identity matrices"
        )
        advice = "calibrate it and name the file as 'calibration' in the robot description"
        checks.append(Check(Level.WARN, name, found, advice))
    if all(check.level is not Level.FAIL for check in checks):
        found = f"{camera.width}x{camera.height} on {topic}, {heard.rate_hz:.1f} Hz, {_age(heard)}"
        checks.insert(0, Check(Level.OK, name, found))
    return checks


def _check_rate(name: str, heard: Heard, expected_hz: float, advice: str) -> list[Check]:
    if heard.rate_hz >= GOOD_RATE * expected_hz:
        return []
    level = Level.WARN if heard.rate_hz >= POOR_RATE * expected_hz else Level.FAIL
    return [Check(level, name, f"{heard.rate_hz:.1f} Hz instead of {expected_hz:g} Hz", advice)]


def _check_clock(name: str, heard: Heard, timeout_s: float) -> list[Check]:
    """Stamps agree with this machine's clock. A constant age that is large, or a stamp in the future, is a clock that is off."""
    if min(heard.stamps_ns) == 0:
        return [
            Check(Level.WARN, name, "messages carry no stamp", "make the driver stamp its messages when it measures")
        ]
    age = heard.age_s
    if -CLOCK_WARN <= age <= CLOCK_WARN:
        return []
    level = Level.FAIL if abs(age) > timeout_s else Level.WARN
    where = "in the past" if age > 0 else "in the future"
    advice = "synchronise the machines' clocks (chrony or PTP), or make the driver stamp with ROS time"
    return [Check(level, name, f"stamps are at least {abs(age):.3f} s {where}", advice)]


def _age(heard: Heard) -> str:
    return f"{heard.age_s * 1e3:.1f} ms old at best" if abs(heard.age_s) < 1 else "stamped by another clock"


def check_disk(bags: Path, min_free_gb: float, bytes_per_s: float) -> Check:
    """There is space where bags go; `bytes_per_s` of images were heard."""
    folder = next(p for p in (bags.resolve(), *bags.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    hours = (
        f", enough for {(free - min_free_gb * GIGABYTE) / bytes_per_s / 3600:.1f} h of images" if bytes_per_s else ""
    )
    found = f"{free / GIGABYTE:.1f} GB free for bags in {bags}"
    advice = "make room, or choose another folder (launch argument bags)"
    if not os.access(folder, os.W_OK):
        return Check(Level.FAIL, "disk", f"{folder} cannot be written to", advice)
    if free < min_free_gb * GIGABYTE:
        return Check(Level.FAIL, "disk", f"{found}; recorder_node wants {min_free_gb:g} GB", advice)
    if free < 5 * min_free_gb * GIGABYTE:
        return Check(Level.WARN, "disk", found + hours, advice)
    return Check(Level.OK, "disk", found + hours)


def check_policy(policy: str, robot: RobotDescription) -> Check:
    """The policy loads and is made for this robot: joints and their order, control rate, cameras."""
    try:
        loaded = load_policy(policy, robot)
    except AloeError as error:
        advice = "give a checkpoint that was trained on this robot description, or the description it was trained on"
        return Check(Level.FAIL, "policy", str(error), advice)
    eyes = f"looks through {', '.join(loaded.cameras)}" if loaded.cameras else "looks through no camera"
    if loaded.uses_task_state and robot.simulator is None:
        advice = "train one on images, or on joints alone"
        return Check(Level.FAIL, "policy", f"{loaded.version} needs the simulator's object state", advice)
    return Check(Level.OK, "policy", f"{loaded.version} fits, {eyes}")


def check_running_policy(running: RunningPolicy | None, other_checked: bool) -> list[Check]:
    """policy_node has a policy. It loads only what fits the robot it was started for. `other_checked`: a policy given by name was."""
    if running is None:
        advice = "give the one that is to drive as --policy, or launch it"
        return [] if other_checked else [Check(Level.WARN, "policy", "not checked: no policy_node runs", advice)]
    if not running.ready:
        found = f"policy_node has none that works: {running.message or 'it is still loading'}"
        return [Check(Level.FAIL, "running policy", found, "look at its output; wait while it loads")]
    return [Check(Level.OK, "running policy", f"policy_node answers with {running.version}")]


def check_spacemice(robot: RobotDescription, devices: Sequence[HidInfo], readable: Sequence[bool]) -> Check:
    """One SpaceMouse per arm, each of which may be read and told from the others."""
    udev = "install config/udev/60-aloe-spacemouse.rules and plug it in again"
    closed = [str(d) for d, may in zip(devices, readable, strict=True) if not may]
    if closed:
        return Check(Level.FAIL, "SpaceMouse", f"no permission to read {'; '.join(closed)}", udev)
    found = "; ".join(map(str, devices)) or "none found"
    if len(devices) < len(robot.arms):
        advice = f"plug in one per arm ({', '.join(robot.arm_names)}); without them nobody can take over"
        return Check(Level.WARN, "SpaceMouse", found, advice)
    return Check(Level.OK, "SpaceMouse", found)


def check_dds(environment: Mapping[str, str], raw_images: Sequence[str]) -> Check:
    """Raw images need a shared-memory segment that holds them."""
    middleware = environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    if "fastrtps" not in middleware:
        return Check(Level.OK, "DDS profile", f"not needed by {middleware}")
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE"
    file = environment.get(variable, "")
    if file and not Path(file).is_file():
        advice = f"set {variable} to config/fastdds_large_images.xml"
        return Check(Level.FAIL, "DDS profile", f"{variable} names {file}, which does not exist", advice)
    if raw_images and not file:
        advice = (
            f"in every process: export {variable}=<...>/config/fastdds_large_images.xml; or publish compressed images"
        )
        found = f"raw images on {', '.join(raw_images)}, but {variable} is not set: frames will be lost"
        return Check(Level.WARN, "DDS profile", found, advice)
    return Check(Level.OK, "DDS profile", file or "not needed: no raw images")


def _base(node: str) -> str:
    return node.rpartition("/")[2]
