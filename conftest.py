"""Fixtures shared by the tests of every package: an isolated ROS domain and real node processes."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

# One thread per process: several ROS processes share the cores of a test machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("aloe", derandomize=True, deadline=None)
settings.load_profile("aloe")


_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    """In the child, before exec: be killed when the test run dies, however it dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class NodeProcess:
    """A process in its own process group whose merged output is collected line by line."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.lines: list[str] = []
        self._grew = threading.Condition()
        self._process = subprocess.Popen(
            list(command),
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._grew:
                self.lines.append(line.rstrip("\n"))
                self._grew.notify_all()
        with self._grew:
            self._grew.notify_all()

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the process group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, `-signal` if killed, None while running."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = 150.0) -> re.Match[str]:
        """Block until a line matches the regular expression; fails with the output after `timeout` [s] or on exit."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._grew:
            while True:
                for line in self.lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if not self._reader.is_alive() or left <= 0:
                    state = "still running" if self.returncode is None else f"exit code {self.returncode}"
                    pytest.fail(f"{self.name} never printed {pattern!r} ({state}):\n{self.output}")
                self._grew.wait(min(left, 0.5))

    def send(self, signum: int = signal.SIGINT) -> None:
        """Send a signal to the whole process group."""
        os.killpg(self.pid, signum)

    def wait(self, timeout: float = 60.0) -> int:
        """Exit code of the process, once it has ended and its output is read to the end; limit in [s]."""
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self, signum: int = signal.SIGINT, timeout: float = 60.0) -> int:
        """Signal the group, wait for the process to end, return its exit code."""
        if self.returncode is None:
            self.send(signum)
        return self.wait(timeout)

    def close(self) -> None:
        """Kill whatever is left of the process group and collect the process."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._reader.join(5.0)
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """A ROS_DOMAIN_ID no other test process uses, discovery kept on this machine, logs in the test's folder."""
    coordinator = pytest.importorskip("domain_coordinator", reason="needs ROS 2")
    with coordinator.domain_id() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "ros_log"))
        yield domain


@pytest.fixture
def start_process() -> Iterator[Callable[..., NodeProcess]]:
    """`start_process(command, name=..., env=...)`: a real process, killed with its group when the test ends.

    Its output is printed at the end, so pytest shows it for a test that failed.
    """
    with ExitStack() as stack:

        def start(command: Sequence[str], *, name: str = "", env: Mapping[str, str] | None = None) -> NodeProcess:
            process = NodeProcess(name or Path(command[0]).name, command, env)
            stack.callback(_report, process)
            return process

        yield start


def _report(process: NodeProcess) -> None:
    process.close()
    print(f"--- {process.name} (exit code {process.returncode})\n{process.output}")


@pytest.fixture
def start_node(ros_domain: int, start_process: Callable[..., NodeProcess]) -> Callable[..., NodeProcess]:
    """`start_node("aloe_robot", "sim_node", {"task": "transfer_cube"}, remap={"from": "to"}, namespace="/left")`."""
    from aloe_core.supervisor import node_command, ros_arguments

    def start(
        package: str,
        executable: str,
        parameters: Mapping[str, object] | None = None,
        *,
        name: str | None = None,
        namespace: str | None = None,
        remap: Mapping[str, str] | None = None,
        params_files: Sequence[str | Path] = (),
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> NodeProcess:
        ros_args = ros_arguments(
            name=name,
            namespace=namespace,
            parameters=[*map(str, params_files), dict(parameters or {})],
            remappings=list((remap or {}).items()),
        )
        command = [*node_command(package, executable), *arguments, *ros_args]
        return start_process(command, name=name or executable, env=env)

    return start
