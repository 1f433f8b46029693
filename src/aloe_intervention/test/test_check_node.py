"""`aloe check` against running graphs: the mock hardware's, and one with all that may be wrong with it."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2")

from intervention_peer import LATCHED, Peer
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from aloe_core import topics
from aloe_core.cli import main
from aloe_core.messages import compressed_image_msg, joint_state_msg, ros_make
from aloe_core.robot import load_robot, robot_folder
from aloe_msgs.msg import PolicyStatus, SafetyStatus

ROBOT = load_robot("bimanual_ur5e")
TIMING = r"Hz instead of|stamps are at least"  # depends on how busy the machine is


def run_check(tmp_path, *arguments) -> tuple[int, list[str]]:
    """Exit code and lines of `aloe check`, those left out that judge timing."""
    report = tmp_path / "report.json"
    code = main(["check", *arguments, "--bags", str(tmp_path), "--seconds", "3", "--json", str(report)])
    data = json.loads(report.read_text())
    assert data["fit"] == (code == 0)
    lines = [f"{c['level']} {c['name']}: {c['found']}" for c in data["checks"]]
    return code, [line for line in lines if not re.search(TIMING, line)]


def test_mock_hardware_is_fit_to_move(start_node, tmp_path, capsys):
    description = yaml.safe_load((robot_folder() / "bimanual_ur5e.yaml").read_text())
    description["cameras"] = description["cameras"][:1]
    description["safety"]["observation_stop_timeout"] = (
        60.0  # [s] it stops for good, however long the machine stands still
    )
    file = tmp_path / "one_camera.yaml"
    file.write_text(yaml.safe_dump(description))
    nodes = [
        start_node("aloe_robot", "mock_robot_node", {"robot": str(file)}),
        start_node("aloe_robot", "control_node", {"robot": str(file)}),
        start_node("aloe_robot", "camera_node", {"robot": str(file), "camera": "overhead", "source": "mock"}),
    ]
    for node, sentence in zip(nodes, ("standing in", "controlling robot", "mock, 640x480"), strict=True):
        node.wait_for(sentence)
    _, lines = run_check(tmp_path, str(file))
    assert [line for line in lines if line.startswith("FAIL")] == []
    for topic in ("/left_controller/commands", "/right_gripper_controller/commands"):
        assert any(line.startswith("OK") and f"/mock_robot_node listens to {topic}" in line for line in lines)
    assert "WARN camera overhead: not calibrated: camera_info carries identity matrices" in lines
    assert "WARN policy: not checked: no policy_node runs" in lines
    assert re.search(r"\d+ OK, \d+ WARN, \d+ FAIL\n$", capsys.readouterr().out)


@pytest.fixture
def broken(ros_domain):
    """A robot with every fault that is cheap to provoke."""
    peer = Peer("faulty_driver")
    node, sensor = peer.node, QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    joints = node.create_publisher(JointState, ROBOT.joint_states_topic, sensor)
    images = {c.name: node.create_publisher(CompressedImage, c.compressed_topic, 2) for c in ROBOT.cameras[:2]}
    info = node.create_publisher(CameraInfo, ROBOT.cameras[0].info_topic, 2)
    node.create_publisher(Float64MultiArray, "/left_controller/commands", 1)  # a rival of control_node
    node.create_subscription(Float64MultiArray, "/left_controller/commands", lambda m: None, 1)
    node.create_subscription(JointTrajectory, "/right_controller/commands", lambda m: None, 1)
    safety = node.create_publisher(SafetyStatus, "control/safety", LATCHED)
    safety.publish(SafetyStatus(state=SafetyStatus.STATE_STOPPED, message="'left_elbow_joint' is 0.6 rad off"))
    policy = node.create_publisher(PolicyStatus, topics.POLICY_STATUS, LATCHED)
    policy.publish(PolicyStatus(state=PolicyStatus.STATE_LOADING, message="waiting for joint states"))
    position = ROBOT.to_device(ROBOT.home)
    position[1], position[2] = np.nan, 3.3
    small = cv2.imencode(".jpg", np.zeros((240, 320, 3), np.uint8))[1].tobytes()

    def publish() -> None:
        now = node.get_clock().now().nanoseconds
        joints.publish(joint_state_msg(ros_make, now, ROBOT.action_names[:-1], position[:-1]))
        images["overhead"].publish(compressed_image_msg(ros_make, now, "", small))
        images["left_wrist"].publish(compressed_image_msg(ros_make, now, "", b"this is not a picture"))
        info.publish(CameraInfo(k=[600.0, 0.0, 320.0, 0.0, 600.0, 240.0, 0.0, 0.0, 1.0]))

    node.create_timer(0.02, publish)
    yield peer
    peer.close()


def test_every_fault_is_found(broken, tmp_path, capsys):
    code, lines = run_check(tmp_path, "bimanual_ur5e", "--policy", str(tmp_path))
    assert code == 1
    for expected in (
        "FAIL commands of arm left: /faulty_driver may command /left_controller/commands as well",
        "FAIL commands of arm left: nobody subscribes /left_gripper_controller/commands",
        "FAIL commands of arm right: /right_controller/commands is subscribed as trajectory_msgs/msg/JointTrajectory, "
        "we send std_msgs/msg/Float64MultiArray",
        "WARN control loop: control_node does not run",
        "FAIL safety filter: stopped: 'left_elbow_joint' is 0.6 rad off",
        "FAIL joint states: /joint_states lacks right_finger_joint",
        "FAIL joint states: left_shoulder_lift_joint is nan",
        "FAIL joint states: left_elbow_joint is at 3.3, outside -3.142 .. 3.142",
        "FAIL joint states: /joint_states is offered best effort, control_node asks for reliable",
        "FAIL camera overhead: 320x240 instead of 640x480",
        "FAIL camera left_wrist: an image on /left_wrist/image_raw/compressed cannot be decoded",
        "WARN camera left_wrist: no camera_info",
        "FAIL camera right_wrist: no image came on /right_wrist/image_raw/compressed (published by nobody)",
        "FAIL running policy: policy_node has none that works: waiting for joint states",
        f"FAIL policy: {tmp_path} is not a policy checkpoint: it has no policy.json",
    ):
        assert expected in lines
    assert not any("overhead: no camera_info" in line or "overhead: not calibrated" in line for line in lines)


def test_a_wrong_description_is_the_first_thing_said(tmp_path, capsys):
    code, lines = run_check(tmp_path, "nobody")
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("FAIL robot description: unknown robot 'nobody'")
    assert main(["check", "--seconds", "0"]) == 1
    assert "--seconds must be above 0" in capsys.readouterr().err
