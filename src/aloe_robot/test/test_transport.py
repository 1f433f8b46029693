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
from aloe_robot.nodes.transport import without_shared_memory

with {around}:
    rclpy.init()
    node = Node("made")
print("fastrtps_port" in Path("/proc/self/maps").read_text(), os.environ.get("FASTDDS_BUILTIN_TRANSPORTS"))
node.destroy_node()
rclpy.shutdown()
"""


@pytest.mark.skipif(
    os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp", reason="of Fast DDS"
)
@pytest.mark.parametrize(
    ("around", "named", "said"),
    [
        ("without_shared_memory()", None, "False None"),
        ("without_shared_memory()", "SHM", "True SHM"),
        ("contextlib.nullcontext()", None, "True None"),
    ],
)
def test_a_participant_is_reached_over_udp_alone_unless_the_environment_says_otherwise(around, named, said):
    environment = {k: v for k, v in os.environ.items() if k != "FASTDDS_BUILTIN_TRANSPORTS"}
    environment |= {"FASTDDS_BUILTIN_TRANSPORTS": named} if named else {}
    command = [sys.executable, "-c", PARTICIPANT.format(around=around)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == said, done.stderr
