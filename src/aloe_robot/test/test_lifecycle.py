"""How a node's process ends: an interrupt is no error wherever it strikes, any other error is one."""

import subprocess
import sys

import pytest

NODE = """
import signal
import rclpy
from rclpy.node import Node
from aloe_robot.nodes.lifecycle import spin

def make_node():
    node = Node("made")
    try:
        {before}
    except KeyboardInterrupt:  # as rclpy does, which converts a message in C
        pass
    raise RuntimeError("Unable to convert call argument '0' to Python object")

rclpy.ok = lambda *_: True  # the context is not down yet: rclpy's thread is about to shut it down
spin("made", make_node)
"""


@pytest.mark.parametrize(("before", "code"), [("signal.raise_signal(signal.SIGINT)", 0), ("pass", 1)])
def test_an_interrupt_that_becomes_an_error_of_rclpy_is_the_end_that_was_asked_for(before, code):
    done = subprocess.run(
        [sys.executable, "-c", NODE.format(before=before)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert ("Unable to convert" in done.stderr) == (code != 0)
