# ruff: noqa: E402
"""The robot description that comes with the project for real arms: its URDF and controllers fit it, and a person can drive it."""

from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from geometry_msgs.msg import Twist, Vector3
from intervention_peer import Peer, node_here
from sensor_msgs.msg import Joy

from aloe_core.messages import header_msg, ros_make, stamp_to_ns
from aloe_core.robot import load_robot, robot_file
from aloe_core.vocabulary import EventType, Mode
from aloe_intervention.kinematics import PinocchioKinematics, arm_kinematics
from aloe_intervention.nodes.teleop_node import TeleopNode
from aloe_msgs.msg import ControlState, EpisodeEvent, TeleopCommand
from aloe_robot.nodes.qos import EVENTS

ROBOT, FILE = load_robot("bimanual_ur5e"), robot_file("bimanual_ur5e")
URDF = FILE.parent / str(ROBOT.urdf)
CONTROLLERS = FILE.parents[1] / "ros2_control" / "bimanual_ur5e.yaml"
# d [m], a [m], alpha [rad] of the UR5e, as Universal Robots publishes them
DH = [
    (0.1625, 0.0, np.pi / 2),
    (0.0, -0.425, 0.0),
    (0.0, -0.3922, 0.0),
    (0.1333, 0.0, np.pi / 2),
    (0.0997, 0.0, -np.pi / 2),
    (0.0996, 0.0, 0.0),
]


def denavit_hartenberg(joints: np.ndarray) -> np.ndarray:
    """Joints `[6]` -> pose `[4, 4]` of the flange in the base_link frame, which is that of the parameters turned by half a turn."""
    pose = np.diag([-1.0, -1.0, 1.0, 1.0])
    for q, (d, a, alpha) in zip(joints, DH, strict=True):
        (s, c), (sa, ca) = (np.sin(q), np.cos(q)), (np.sin(alpha), np.cos(alpha))
        pose = pose @ [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
    return pose


@pytest.mark.parametrize("arm", ROBOT.arms, ids=lambda arm: arm.name)
def test_the_urdf_is_the_product_of_the_published_parameters(arm):
    names = tuple(joint.name for joint in arm.joints)
    flange = PinocchioKinematics(URDF, names, arm.base_frame, f"{arm.name}_tool0")
    gripper = arm_kinematics(ROBOT, arm.name, FILE.parent)
    for joints in np.random.default_rng(0).uniform(-np.pi, np.pi, (50, 6)):
        pose = denavit_hartenberg(joints)
        position, rotation, _ = flange.tool(joints)
        np.testing.assert_allclose(position, pose[:3, 3], atol=1e-9)
        np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-9)
        np.testing.assert_allclose(gripper.tool(joints)[0], (pose @ [0, 0, 0.16, 1])[:3], atol=1e-9)


def test_the_urdf_has_the_joints_and_limits_of_the_description():
    joints = {
        j.get("name"): j.find("limit").attrib
        for j in ElementTree.parse(URDF).iter("joint")
        if j.get("type") == "revolute"
    }
    described = [joint for arm in ROBOT.arms for joint in arm.joints]
    assert list(joints) == [joint.name for joint in described]
    for joint in described:
        limit = {key: float(value) for key, value in joints[joint.name].items() if key != "effort"}
        assert limit == {"lower": joint.min, "upper": joint.max, "velocity": joint.max_velocity}


def test_the_controllers_take_what_the_description_sends():
    controllers = yaml.safe_load(CONTROLLERS.read_text())
    manager = controllers.pop("controller_manager")["ros__parameters"]
    takes = {f"/{name}/commands": config["ros__parameters"]["joints"] for name, config in controllers.items()}
    sends = {}
    for arm in ROBOT.arms:
        sends[arm.output.topic] = [joint.name for joint in arm.joints]
        sends[arm.output.gripper_topic] = [arm.gripper.name]
    assert takes == sends
    assert all(config["ros__parameters"]["interface_name"] == "position" for config in controllers.values())
    kind = {"type": "forward_command_controller/ForwardCommandController"}
    assert all(manager[name] == kind for name in controllers)


def test_its_urdf_is_found_though_a_folder_of_ones_own_comes_first(ros_domain, tmp_path, monkeypatch):
    monkeypatch.setenv("ALOE_ROBOTS", str(tmp_path))
    with node_here(TeleopNode, robot="bimanual_ur5e") as node:
        assert list(node.arms) == ["left", "right"]


def test_without_a_urdf_teleoperation_ends_with_what_is_missing(start_node, tmp_path):
    description = yaml.safe_load(FILE.read_text())
    del description["urdf"]
    bare = tmp_path / "bare.yaml"
    bare.write_text(yaml.safe_dump(description))
    teleop = start_node("aloe_intervention", "teleop_node", {"robot": str(bare)})
    assert teleop.wait(60.0) == 1
    assert "teleoperation needs the kinematics of 'bimanual_ur5e': give 'urdf' in its description" in teleop.output
    assert "Traceback" not in teleop.output


def test_a_person_takes_over_an_arm_of_the_mock_hardware_and_lowers_its_tool(ros_domain, start_node, tmp_path):
    description = yaml.safe_load(FILE.read_text())  # for a machine that stands still for seconds now and then
    description["safety"] |= {"observation_timeout": 5.0, "observation_stop_timeout": 60.0, "teleop_timeout": 2.0}
    description["safety"]["tracking_error_time"] = 60.0
    patient = tmp_path / "patient.yaml"
    patient.write_text(yaml.safe_dump(description))
    start_node("aloe_robot", "mock_robot_node", {"robot": "bimanual_ur5e"})
    start_node("aloe_robot", "control_node", {"robot": str(patient), "tick_source": "timer"})
    hands = {"stale_after": 5.0, "linear_speed": 0.1}
    teleop = start_node("aloe_intervention", "teleop_node", {"robot": "bimanual_ur5e", **hands})
    teleop.wait_for("teleoperation of left, right ready")
    peer = Peer()
    try:
        peer.listen(ControlState, "control/state", 10)
        peer.listen(TeleopCommand, "left/teleop/command", 10)
        twists = peer.publisher(Twist, "left/spacenav/twist", 10)
        joys = peer.publisher(Joy, "left/spacenav/joy", 10)

        def hold(z: float, buttons: list[int], until, topic: str = "control/state"):
            """Stick and buttons held so, 50 messages a second, until a message suits."""
            peer.got[topic].clear()
            for _ in range(3000):
                joys.publish(Joy(axes=[0.0] * 6, buttons=buttons))
                twists.publish(Twist(linear=Vector3(z=z)))
                message = peer.look(topic, until, timeout=0.02)
                if message is not None:
                    return message
            pytest.fail(f"twist {z}, buttons {buttons}: none suits, the last is {peer.got[topic][-1]}")

        hold(0.0, [0, 0], lambda m: True)
        start_ns = peer.node.get_clock().now().nanoseconds
        event = EpisodeEvent(event=int(EventType.STARTED), episode_id="e1", instruction="x")
        event.header = header_msg(ros_make, start_ns)
        peer.publisher(EpisodeEvent, "episode/event", EVENTS, subscribers=2).publish(event)
        hold(0.0, [0, 0], lambda m: m.episode_id == "e1")
        # Buttons count that were seen up since the start.
        hold(0.0, [0, 0], lambda m: m.healthy and stamp_to_ns(m.header.stamp) > start_ns, "left/teleop/command")
        taken = hold(0.0, [1, 1], lambda m: list(m.mode) == [Mode.HUMAN, Mode.HOLD])

        def tool(state: ControlState) -> np.ndarray:
            return arm_kinematics(ROBOT, "left", FILE.parent).tool(np.array(state.measured[:6]))[0]

        hold(0.0, [0, 0], lambda m: list(m.mode) == [Mode.HUMAN, Mode.HOLD])
        lowered = hold(-1.0, [0, 0], lambda m: tool(m)[2] < tool(taken)[2] - 0.05)
    finally:
        peer.close()
    np.testing.assert_allclose(tool(lowered)[:2], tool(taken)[:2], atol=0.01)
    np.testing.assert_allclose(lowered.measured[7:], ROBOT.home[7:], atol=1e-6)
