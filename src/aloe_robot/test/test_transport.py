"""A command's participant opens no shared memory, which another command that ends could take away."""

import os
import subprocess
import sys

import pytest

PARTICIPANT = """
import contextlib, os
from pathlib import Path
import rclpy
from rclpy.node import Node
from std_msgs.msg import String
from aloe_robot.nodes.qos import LATCHED
from aloe_robot.nodes.transport import without_shared_memory

before = dict(os.environ)
with {around}:
    rclpy.init()
    node = Node("command")
assert dict(os.environ) == before
heard = []
node.create_subscription(String, "news", heard.append, LATCHED)
while not heard:
    rclpy.spin_once(node, timeout_sec=0.1)
print("heard", "shared" if "fastrtps_port" in Path("/proc/self/maps").read_text() else "udp")
node.destroy_node()
rclpy.shutdown()
"""
TALKER = """
import rclpy
from rclpy.node import Node
from std_msgs.msg import String
from aloe_robot.nodes.qos import LATCHED

rclpy.init()
node = Node("talker")
publisher = node.create_publisher(String, "news", LATCHED)
publisher.publish(String(data="news"))
rclpy.spin(node)
"""
NAMES = ("ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_BUILTIN_TRANSPORTS", "FASTRTPS_DEFAULT_PROFILES_FILE")


@pytest.mark.skipif(
    os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp", reason="of Fast DDS"
)
@pytest.mark.parametrize(
    ("around", "environment", "said"),
    [
        ("without_shared_memory()", {}, "heard udp"),
        ("without_shared_memory()", {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, "heard udp"),
        ("without_shared_memory()", {"FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT"}, "heard shared"),
        ("contextlib.nullcontext()", {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, "heard shared"),
    ],
)
def test_a_command_hears_the_graph_over_udp_alone_unless_the_environment_says_otherwise(around, environment, said):
    common = {name: value for name, value in os.environ.items() if name not in NAMES}
    ranged = {name: value for name, value in environment.items() if name == "ROS_AUTOMATIC_DISCOVERY_RANGE"}
    talker = subprocess.Popen([sys.executable, "-c", TALKER], env=common | ranged)
    try:
        command = [sys.executable, "-c", PARTICIPANT.format(around=around)]
        done = subprocess.run(command, env=common | environment, capture_output=True, text=True, timeout=120)
    finally:
        talker.kill()
        talker.wait()
    assert done.stdout.strip() == said, done.stderr
