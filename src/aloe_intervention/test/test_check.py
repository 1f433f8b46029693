"""The judgements of `aloe check`, one finding at a time."""

from __future__ import annotations

import copy
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest

from aloe_core.robot import load_robot
from aloe_intervention.checks import (
    Check,
    Commanded,
    Findings,
    HeardImages,
    HeardJoints,
    Level,
    RunningPolicy,
    check_dds,
    check_disk,
    check_graph,
    check_policy,
    check_running_policy,
    check_spacemice,
)
from aloe_intervention.hidraw import HidInfo

ROBOT = load_robot("bimanual_ur5e")
FLOATS = "std_msgs/msg/Float64MultiArray"
MS = 1_000_000
START = 1_000_000 * MS


def healthy() -> Findings:
    """A set-up in order: everything at its rate, stamped 2 ms before it arrived."""

    def stream(heard, rate_hz):
        heard.stamps_ns = [START + round(k * 1e9 / rate_hz) for k in range(90)]
        heard.ages_ns = [2 * MS] * 90
        heard.publishers = ["/driver"]
        return heard

    joints = stream(HeardJoints(), 50)
    joints.positions = dict(zip(ROBOT.action_names, ROBOT.to_device(ROBOT.home).tolist(), strict=True))
    images = {c.name: stream(HeardImages(size=(640, 480), calibrated=True), 30) for c in ROBOT.cameras}
    commands = {
        topic: Commanded(["/control_node"], ["/controller_manager", "/recorder_node"], [FLOATS])
        for arm in ROBOT.arms
        for topic in (arm.output.topic, arm.output.gripper_topic)
    }
    return Findings(joints, images, commands, raw_images=[], simulated=False)


def test_a_set_up_in_order_passes():
    checks = check_graph(ROBOT, healthy())
    assert {check.level for check in checks} == {Level.OK}
    assert len(checks) == 4 + 1 + 3
    assert not any(check.advice for check in checks)


LEFT = "/left_controller/commands"


def slow(heard, factor):
    heard.stamps_ns = [START + round(factor * (s - START)) for s in heard.stamps_ns]


def aged(heard, ms):
    heard.ages_ns = [a + ms * MS for a in heard.ages_ns]


def elsewhere(heard):
    heard.stamps_ns, heard.ages_ns = [], []


CASES = [
    (lambda f: f.commands[LEFT].subscribers.remove("/controller_manager"), "FAIL commands of arm left: nobody subscribes"),
    (lambda f: f.commands[LEFT].types.append("trajectory_msgs/msg/JointTrajectory"), "FAIL commands of arm left: .* is subscribed as trajectory"),
    (lambda f: f.commands[LEFT].publishers.append("/rqt"), "FAIL commands of arm left: /rqt may command /left_controller/commands as well"),
    (lambda f: f.commands[LEFT].publishers.append("/other/control_node"), "FAIL commands of arm left: 2 control_nodes may command"),
    (lambda f: [c.publishers.clear() for c in f.commands.values()], "WARN control loop: control_node does not run"),
    (lambda f: setattr(f, "stopped", "no joint states for 0.6 s"), "FAIL safety filter: stopped: no joint states for 0.6 s"),
    (lambda f: setattr(f, "simulated", True), "WARN time: /clock is published"),
    (lambda f: elsewhere(f.joints), "FAIL joint states: nothing came on /joint_states .published by /driver"),
    (lambda f: f.joints.positions.pop("left_elbow_joint"), "FAIL joint states: /joint_states lacks left_elbow_joint"),
    (lambda f: f.joints.positions.update(right_wrist_1_joint=np.nan), "FAIL joint states: right_wrist_1_joint is nan"),
    (lambda f: f.joints.positions.update(left_elbow_joint=3.2), "FAIL joint states: left_elbow_joint is at 3.2, outside -3.142 .. 3.142"),
    (lambda f: f.joints.positions.update(left_finger_joint=0.9), "FAIL joint states: left_finger_joint is at -0.125, outside 0 .. 1"),
    (lambda f: setattr(f.joints, "best_effort", True), "FAIL joint states: /joint_states is offered best effort"),
    (lambda f: slow(f.joints, 1.5), "WARN joint states: 33.3 Hz instead of 50 Hz"),
    (lambda f: slow(f.joints, 3), "FAIL joint states: 16.7 Hz instead of 50 Hz"),
    (lambda f: aged(f.joints, 50), "WARN joint states: stamps are at least 0.052 s in the past"),
    (lambda f: aged(f.joints, -400), "FAIL joint states: stamps are at least 0.398 s in the future"),
    (lambda f: f.joints.stamps_ns.__setitem__(slice(None), [0] * 90), "WARN joint states: messages carry no stamp"),
    (lambda f: elsewhere(f.images["overhead"]), "FAIL camera overhead: no image came"),
    (lambda f: setattr(f.images["overhead"], "undecodable", 1), "FAIL camera overhead: an image .* cannot be decoded"),
    (lambda f: setattr(f.images["overhead"], "size", (320, 240)), "FAIL camera overhead: 320x240 instead of 640x480"),
    (lambda f: slow(f.images["overhead"], 1.3), "WARN camera overhead: 23.1 Hz instead of 30 Hz"),
    (lambda f: aged(f.images["overhead"], 500), "FAIL camera overhead: stamps are at least 0.502 s in the past"),
    (lambda f: setattr(f.images["overhead"], "calibrated", False), "WARN camera overhead: not calibrated"),
    (lambda f: setattr(f.images["overhead"], "calibrated", None), "WARN camera overhead: no camera_info"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "line"), CASES, ids=[line for _, line in CASES])
def test_what_is_wrong_is_said_and_what_to_do(spoil, line):
    findings = copy.deepcopy(healthy())
    spoil(findings)
    wrong = [check for check in check_graph(ROBOT, findings) if check.level is not Level.OK]
    assert wrong
    assert all(check.advice for check in wrong)
    texts = [f"{check.level.value} {check.name}: {check.found}" for check in wrong]
    assert any(re.match(line, text) for text in texts), texts


def test_a_camera_without_compressed_images_says_that_raw_ones_will_not_do():
    findings = healthy()
    elsewhere(findings.images["overhead"])
    findings.raw_images = ["/overhead/image_raw"]
    (wrong,) = [check for check in check_graph(ROBOT, findings) if check.level is not Level.OK]
    assert wrong.found.startswith("no image came on /overhead/image_raw/compressed")
    assert "policies look at compressed images only, but the driver publishes /overhead/image_raw" in wrong.advice


@pytest.mark.parametrize(
    ("running", "other_checked", "line"),
    [
        (RunningPolicy(True, "bc-1a2b"), False, "OK running policy: policy_node answers with bc-1a2b"),
        (RunningPolicy(False), True, "FAIL running policy: policy_node has none that works: it is still loading"),
        (RunningPolicy(False, message="no file"), False, "FAIL running policy: policy_node has none that works: no file"),
        (None, False, "WARN policy: not checked: no policy_node runs"),
        (None, True, ""),
    ],
)  # fmt: skip
def test_the_running_policy_is_looked_at(running, other_checked, line):
    checks = check_running_policy(running, other_checked)
    assert [f"{c.level.value} {c.name}: {c.found}" for c in checks] == ([line] if line else [])
    assert all(bool(c.advice) == (c.level is not Level.OK) for c in checks)


def test_rates_are_not_judged_in_simulated_time():
    findings = healthy()
    findings.simulated = True
    slow(findings.joints, 100), aged(findings.joints, 10**9)
    assert [c.name for c in check_graph(ROBOT, findings) if c.level is not Level.OK] == ["time"]


@pytest.mark.parametrize(("free_gb", "level"), [(1.9, Level.FAIL), (5.0, Level.WARN), (100.0, Level.OK)])
def test_disk(tmp_path, monkeypatch, free_gb, level):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, round(free_gb * 1e9)))
    check = check_disk(tmp_path / "not" / "there" / "yet", 2.0, 1e6)
    assert check.level is level
    if level is Level.OK:
        assert "27.2 h of images" in check.found


def test_policy(tmp_path):
    sim = load_robot("aloha_sim")
    assert check_policy("scripted", sim).level is Level.OK
    (tmp_path / "empty").mkdir()
    for policy, robot, found in (
        ("scripted", ROBOT, "bimanual_ur5e"),
        (str(tmp_path / "empty"), sim, "is not a policy checkpoint"),
        ("nonsense", sim, "neither a checkpoint folder nor a known policy"),
    ):
        check = check_policy(policy, robot)
        assert (check.level, found in check.found) == (Level.FAIL, True), check.found


def test_spacemice():
    one = HidInfo("/dev/hidraw0", "SpaceMouse", 0x256F, 0xC62E, "7", "usb-1")
    two = HidInfo("/dev/hidraw1", "SpaceMouse", 0x256F, 0xC62E, "8", "usb-2")
    assert check_spacemice(ROBOT, [], []).level is Level.WARN
    assert check_spacemice(ROBOT, [one], [True]).level is Level.WARN
    assert check_spacemice(ROBOT, [one, two], [True, True]).level is Level.OK
    closed = check_spacemice(ROBOT, [one, two], [True, False])
    assert (closed.level, "/dev/hidraw1" in closed.found, "udev" in closed.advice) == (Level.FAIL, True, True)


def test_dds_profile(tmp_path):
    profile = tmp_path / "profile.xml"
    profile.write_text("")
    name, raw = "FASTRTPS_DEFAULT_PROFILES_FILE", ["/overhead/image_raw"]
    assert check_dds({}, []).level is Level.OK
    assert check_dds({}, raw).level is Level.WARN
    assert check_dds({name: str(profile)}, raw) == Check(Level.OK, "DDS profile", str(profile))
    assert check_dds({name: "/no/such.xml"}, []).level is Level.FAIL
    assert check_dds({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, raw).level is Level.OK
