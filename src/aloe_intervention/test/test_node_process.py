"""The processes that tests start end with the test run, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys, time
from conftest import NodeProcess
print(NodeProcess("sleeper", ["sleep", "1000"]).pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_node_does_not_outlive_the_test_run(signum):
    run = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with run:
        node = int(run.stdout.readline())
        run.send_signal(signum)
    deadline = time.monotonic() + 20.0
    while alive(node):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
