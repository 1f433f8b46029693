"""Runs the nodes of a launch file as processes and keeps them together: `aloe up` without ROS 2's `launch`.

Every node gets its own process group and its output is prefixed with its name. An interrupt is forwarded as SIGINT;
what has not ended after `SIGTERM_TIMEOUT` is sent SIGTERM, after another `SIGKILL_TIMEOUT` SIGKILL. Nodes do not
outlive the supervisor.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from aloe_core.errors import AloeError
from aloe_core.supervisor_launchfile import NodeSpec

SIGTERM_TIMEOUT = 5.0  # [s] after SIGINT; this and the next are the defaults of ROS 2's launch
SIGKILL_TIMEOUT = 5.0  # [s] after SIGTERM
_POLL_PERIOD = 0.05  # [s]
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

_libc = ctypes.CDLL(None, use_errno=True)


def node_command(package: str, executable: str) -> list[str]:
    """Command of a node: `lib/<package>/<executable>` of an ament prefix, else the console script of that name."""
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        file = Path(prefix, "lib", package, executable)
        if prefix and os.access(file, os.X_OK):
            return [str(file)]
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise AloeError(
            f"package {package!r} is not installed; run `make setup`, or build and source the workspace"
        ) from None
    scripts = {entry.name: entry for entry in distribution.entry_points if entry.group == "console_scripts"}
    if executable not in scripts:
        raise AloeError(f"package {package!r} has no executable {executable!r}; it has: {', '.join(sorted(scripts))}")
    entry = scripts[executable]
    # Without the working directory, in which `-c` looks for modules first: it may hold somebody else's files.
    start = f"import sys; sys.path[:] = [p for p in sys.path if p]; from {entry.module} import {entry.attr}; sys.exit({entry.attr}())"
    return [sys.executable, "-c", start]


def ros_arguments(
    *,
    name: str | None = None,
    namespace: str | None = None,
    parameters: Iterable[str | Mapping[str, Any]] = (),
    remappings: Iterable[tuple[str, str]] = (),
    extra: Sequence[str] = (),
) -> list[str]:
    """`--ros-args ...` for a node; `parameters` are file names and name-value mappings, later ones win."""
    arguments = ["--ros-args", *extra]
    if name:
        arguments += ["-r", f"__node:={name}"]
    if namespace:
        arguments += ["-r", f"__ns:={namespace if namespace.startswith('/') else '/' + namespace}"]
    for item in parameters:
        if isinstance(item, str):
            arguments += ["--params-file", item]
        else:
            for key, value in item.items():
                arguments += ["-p", f"{key}:={_yaml_value(value)}"]
    for source, target in remappings:
        arguments += ["-r", f"{source}:={target}"]
    return arguments


def _yaml_value(value: Any) -> str:
    """A parameter value in the YAML that rcl's argument parser reads; JSON, but for non-finite numbers."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml_value(item) for item in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)


class Supervisor:
    """The processes of one launch.

    `run()` returns the exit code: 1 if a node failed on its own or did not end when interrupted, else 0.
    """

    def __init__(self, nodes: Sequence[NodeSpec], print_line: Callable[[str], None] = print) -> None:
        self._print_line = print_line
        self._stop = threading.Event()
        self._impatient = threading.Event()
        self._failed = False
        self._processes = [_Process(spec, number, self._print) for number, spec in enumerate(nodes, start=1)]

    def run(self) -> int:
        """Start everything, wait until it has ended or SIGINT/SIGTERM arrives, stop everything."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for process in self._processes:
                process.start()
            while not self._stop.wait(_POLL_PERIOD):
                running = [self._watch(process) for process in self._processes]
                if not any(running):
                    break
        finally:
            self._shut_down()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return int(self._failed)

    def _print(self, line: str) -> None:
        try:
            self._print_line(line)
        except BrokenPipeError:  # nobody reads any more, as with `aloe up ... | head`: end, but in order
            self._stop.set()
        except (OSError, ValueError):
            pass  # a full disk or a closed terminal costs the line, never a node

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stop.is_set():
            self._impatient.set()
        self._stop.set()

    def _watch(self, process: _Process) -> bool:
        """Whether the process runs or will run again; names it when it has ended."""
        code = process.ended()
        if code is None:
            return process.pending
        self._print(f"[aloe] {process.label} ({process.where}) {_how(code)}")
        if process.may_respawn():
            self._print(f"[aloe] {process.label} starts again in {process.spec.respawn_delay:g} s")
            process.respawn()
            return True
        self._failed |= code != 0
        if process.spec.shutdown_on_exit:
            self._print(f"[aloe] stopping all nodes, because {process.label} has ended")
            self._stop.set()
        return False

    def _shut_down(self) -> None:
        stages = (
            (signal.SIGINT, SIGTERM_TIMEOUT),
            (signal.SIGTERM, SIGKILL_TIMEOUT),
            (signal.SIGKILL, SIGKILL_TIMEOUT),
        )
        for number, patience in stages:
            running = [process for process in self._processes if process.alive]
            self._impatient.clear()
            for process in running:
                if number != signal.SIGINT:
                    self._failed = True
                    self._print(f"[aloe] {process.label} has not ended, sending {number.name}")
                process.send(number)
            deadline = time.monotonic() + patience
            while any(process.alive for process in running) and time.monotonic() < deadline:
                if self._impatient.wait(_POLL_PERIOD):
                    break
        for process in self._processes:
            process.close()


def _how(code: int) -> str:
    if code == 0:
        return "has ended"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"died with exit code {code}"


class _Process:
    """One node: its command, its process group and the thread that prints its output."""

    def __init__(self, spec: NodeSpec, number: int, print_line: Callable[[str], None]) -> None:
        self.spec = spec
        self.label = f"{spec.name or spec.executable}-{number}"
        self.where = f"{spec.package} {spec.executable}"
        self.command = [
            *node_command(spec.package, spec.executable),
            *spec.arguments,
            *ros_arguments(
                name=spec.name,
                namespace=spec.namespace,
                parameters=spec.parameters,
                remappings=spec.remappings,
                extra=spec.ros_arguments,
            ),
        ]
        self._print = print_line
        self._popen: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._start_at: float | None = None
        self._respawns = 0
        self._reported = False

    def start(self) -> None:
        self._start_at = None
        self._reported = False
        self._popen = subprocess.Popen(
            self.command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.spec.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(target=self._read, args=(self._popen,), daemon=True)
        self._reader.start()

    def _read(self, popen: subprocess.Popen[str]) -> None:
        """Reads the pipe to its end whatever becomes of the lines: a node would block as soon as 64 KiB wait in it."""
        assert popen.stdout is not None
        log = _Log(self.label, self._print) if self.spec.output in ("log", "both") else None
        for line in popen.stdout:
            if self.spec.output in ("screen", "both"):
                self._print(f"[{self.label}] {line.rstrip()}")
            if log is not None:
                log.write(line)
        if log is not None:
            log.close()

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pending(self) -> bool:
        """Whether the process runs or waits to be started again; starts it when its time has come."""
        if self._start_at is not None and time.monotonic() >= self._start_at:
            self.start()
        return self.alive or self._start_at is not None

    def ended(self) -> int | None:
        """Exit code, reported once per run; None while running or when already reported."""
        if self._popen is None or self._reported or self._popen.poll() is None:
            return None
        self._reported = True
        assert self._reader is not None
        self._reader.join(1.0)
        return self._popen.returncode

    def may_respawn(self) -> bool:
        retries = self.spec.respawn_max_retries
        return self.spec.respawn and (retries < 0 or self._respawns < retries)

    def respawn(self) -> None:
        self._respawns += 1
        self._start_at = time.monotonic() + self.spec.respawn_delay

    def send(self, number: signal.Signals) -> None:
        assert self._popen is not None
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            pass  # it ended between the look and the signal

    def close(self) -> None:
        """Kill what is left of the process group and finish printing."""
        if self._popen is None or self._reader is None:
            return
        self.send(signal.SIGKILL)
        self._popen.wait()
        self._reader.join(1.0)


def _end_with_parent() -> None:
    """In the child, before exec: be interrupted when the supervisor dies, however it dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


class _Log:
    """The log file of a node; given up, and that said once, when it cannot be opened or written."""

    def __init__(self, label: str, print_line: Callable[[str], None]) -> None:
        self._label, self._print = label, print_line
        self._file: IO[str] | None = None
        try:
            self._file = _log_file(label)
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home directory
            self._give_up(error)

    def write(self, line: str) -> None:
        """Appends a line, which is with the operating system afterwards."""
        if self._file is None:
            return
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            self.close()
            self._give_up(error)

    def close(self) -> None:
        """Closes the file; what cannot be written any more is lost."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:
            pass

    def _give_up(self, error: Exception) -> None:
        self._print(f"[aloe] cannot log what {self._label} prints: {error}")


def _log_file(label: str) -> IO[str]:
    folder = Path(os.environ.get("ROS_LOG_DIR") or Path(os.environ.get("ROS_HOME") or Path.home() / ".ros", "log"))
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{label}-{os.getpid()}.log").open("a", encoding="utf-8")
