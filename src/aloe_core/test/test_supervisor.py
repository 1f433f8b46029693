"""`aloe up` with real processes: arguments, output, signals, deaths, and nobody left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from aloe_core.errors import AloeError
from aloe_core.supervisor import node_command, ros_arguments

NODES = {
    "show": "import json, sys, os; print(json.dumps([sys.argv[1:], os.environ.get('FLAVOUR')]))",
    "patient": """
        import signal, time
        def stop(number, frame):
            print('asked to stop', flush=True)
            raise SystemExit(0)
        signal.signal(signal.SIGINT, stop)
        print('running', flush=True)
        time.sleep(60)
    """,
    "stubborn": """
        import signal, time
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: print('ignoring', int(number), flush=True))
        print('running', flush=True)
        while True:
            time.sleep(60)
    """,
    "chatty": """
        import time
        while True:
            print('tick', flush=True)
            time.sleep(0.02)
    """,
    "broken": "raise SystemExit(3)",
    "talkative": """
        import os
        for number in range(4000):  # four times what a pipe holds
            print(f'{number:064}', flush=True)
        open(os.environ['DONE'], 'w').close()
    """,
}


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start_process: Callable) -> Callable:
    """Launch the given nodes of package `fake` with `aloe up` in a process of its own, which waits `patience` [s] for nodes to end.

    `before` is a Python statement that this process executes first.
    """
    folder = tmp_path / "lib" / "fake"
    folder.mkdir(parents=True)
    for name, code in NODES.items():
        lines = code.split("\n")
        indent = len(code) - len(code.lstrip()) - 1 if len(lines) > 1 else 0
        body = "\n".join(line[indent:] for line in lines)
        (folder / name).write_text(f"#!{sys.executable}\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "logs"))

    def up(*nodes: dict, arguments: tuple[str, ...] = (), patience: float = 5.0, before: str = "pass"):
        path = tmp_path / "test.launch.yaml"
        entries = [{"node": {"pkg": "fake", "output": "screen", **node}} for node in nodes]
        path.write_text(yaml.safe_dump({"launch": [{"arg": {"name": "side", "default": "left"}}, *entries]}))
        code = f"""
            import os, sys
            from aloe_core import cli, supervisor
            {before}
            supervisor.SIGTERM_TIMEOUT = supervisor.SIGKILL_TIMEOUT = {patience}
            sys.exit(cli.main(sys.argv[1:]))
        """
        command = [sys.executable, "-c", textwrap.dedent(code), "up", str(path), *arguments]
        return start_process(command, name="aloe up")

    return up


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return status != "Z"


def test_a_node_gets_its_arguments_and_its_output_is_prefixed(up: Callable) -> None:
    node = {
        "exec": "show",
        "name": "$(var side)_camera",
        "namespace": "cameras",
        "args": "--mode fast",
        "env": [{"name": "FLAVOUR", "value": "sour"}],
        "param": [{"name": "rate", "value": 30.0}, {"name": "text", "value": "a: b"}],
        "remap": [{"from": "image", "to": "image_raw"}],
    }
    process = up(node, arguments=("side:=right",))
    line = process.wait_for(r"^\[right_camera-1\] (\[.*)").group(1)
    assert process.wait() == 0
    expected = ["--mode", "fast", "--ros-args", "-r", "__node:=right_camera", "-r", "__ns:=/cameras"]
    expected += ["-p", "rate:=30.0", "-p", 'text:="a: b"', "-r", "image:=image_raw"]
    assert json.loads(line) == [expected, "sour"]
    process.wait_for(r"^\[aloe\] right_camera-1 \(fake show\) has ended$")


def test_an_interrupt_reaches_every_node_once(up: Callable) -> None:
    process = up({"exec": "patient", "name": "a"}, {"exec": "patient", "name": "b"})
    process.wait_for(r"\[a-1\] running")
    process.wait_for(r"\[b-2\] running")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 0
    assert sorted(re.findall(r"\[(.-.)\] asked to stop", process.output)) == ["a-1", "b-2"]


def test_a_second_interrupt_does_not_wait_for_a_stubborn_node(up: Callable) -> None:
    process = up({"exec": "stubborn"}, patience=1000.0)
    process.wait_for("running")
    for said in ("ignoring 2", "sending SIGTERM", "sending SIGKILL"):
        os.kill(process.pid, signal.SIGINT)
        process.wait_for(said)
    assert process.wait() == 1


def test_a_node_that_dies_is_named_and_can_take_the_others_along(up: Callable) -> None:
    process = up({"exec": "patient"}, {"exec": "broken", "on_exit": "shutdown"})
    process.wait_for(r"\[aloe\] broken-2 \(fake broken\) died with exit code 3")
    process.wait_for("stopping all nodes, because broken-2 has ended")
    assert process.wait() == 1
    assert "stubborn" not in process.output


def test_a_node_respawns_as_often_as_it_may(up: Callable) -> None:
    process = up({"exec": "broken", "respawn": "true", "respawn_max_retries": 2})
    assert process.wait() == 1
    assert process.output.count("died with exit code 3") == 3
    assert process.output.count("starts again in 0 s") == 2


def test_output_can_go_to_a_log_file(up: Callable, tmp_path: Path) -> None:
    process = up({"exec": "show", "output": "log"})
    assert process.wait() == 0
    assert "[show-1]" not in process.output
    (log,) = (tmp_path / "logs").glob("show-1-*.log")
    assert json.loads(log.read_text())[1] is None


FULL_LOG = "os.makedirs('{logs}'); os.symlink('/dev/full', f'{logs}/talkative-1-{{os.getpid()}}.log')"


@pytest.mark.parametrize(
    ("before", "reason"),
    [(FULL_LOG, "No space left on device"), ("open('{logs}', 'w').close()", "File exists")],
)
@pytest.mark.parametrize("output", ["log", "both"])
def test_a_log_that_cannot_be_written_never_blocks_a_node(
    up: Callable, tmp_path: Path, before: str, reason: str, output: str
) -> None:
    node = {"exec": "talkative", "output": output, "env": [{"name": "DONE", "value": str(tmp_path / "done")}]}
    process = up(node, before=before.format(logs=tmp_path / "logs"))
    assert process.wait() == 0
    assert (tmp_path / "done").exists()
    (complaint,) = re.findall(r"^\[aloe\] cannot log what talkative-1 prints: (.*)", process.output, re.MULTILINE)
    assert reason in complaint
    assert process.output.count("[talkative-1]") == (4000 if output == "both" else 0)
    assert "Traceback" not in process.output


def test_a_full_disk_behind_the_output_never_blocks_a_node(
    up: Callable, tmp_path: Path, start_process: Callable
) -> None:
    node = {"exec": "talkative", "env": [{"name": "DONE", "value": str(tmp_path / "done")}]}
    assert up(node, arguments=("--show-args",)).wait() == 0
    launch = f"{sys.executable} -m aloe_core.cli up {tmp_path / 'test.launch.yaml'} > /dev/full; echo ended"
    process = start_process(["sh", "-c", launch])
    process.wait_for("ended", timeout=60)
    assert (tmp_path / "done").exists()
    assert "Traceback" not in process.output


def test_nodes_do_not_outlive_a_killed_supervisor(up: Callable, tmp_path: Path) -> None:
    process = up({"exec": "patient"})
    process.wait_for("running")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(alive(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    assert not any(alive(int(child)) for child in children)


def test_nodes_end_when_nobody_reads_their_output_any_more(
    up: Callable, tmp_path: Path, start_process: Callable
) -> None:
    assert up({"exec": "chatty"}, arguments=("--show-args",)).wait() == 0
    launch = f"{sys.executable} -m aloe_core.cli up {tmp_path / 'test.launch.yaml'} | head -n 3; echo piped"
    process = start_process(["sh", "-c", launch])
    process.wait_for("piped", timeout=60)
    assert process.wait() == 0
    assert "Traceback" not in process.output


def test_bad_arguments_are_one_sentence(up: Callable) -> None:
    process = up({"exec": "show"}, arguments=("side=right",))
    process.wait_for("aloe: a launch argument is written name:=value, not 'side=right'")
    assert process.wait() == 1
    process = up({"exec": "shwo"})
    process.wait_for("aloe: package 'fake' is not installed")
    assert process.wait() == 1


def test_show_args_starts_nothing(up: Callable) -> None:
    process = up({"exec": "broken"}, arguments=("--show-args",))
    process.wait_for(r"'side'")
    process.wait_for(r"\(default: 'left'\)")
    assert process.wait() == 0


def test_executables_of_an_installed_package_without_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    command = node_command("aloe_core", "aloe")
    assert command[0] == sys.executable
    assert "from aloe_core.cli import main" in command[-1]
    with pytest.raises(AloeError, match="has no executable 'alo'; it has: aloe"):
        node_command("aloe_core", "alo")
    with pytest.raises(AloeError, match="'no_such_package' is not installed"):
        node_command("no_such_package", "node")


def test_nodes_import_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    for stranger in ("aloe_core", "yaml"):
        (tmp_path / f"{stranger}.py").write_text("raise SystemExit('code of a stranger')\n")
    command = [*node_command("aloe_core", "aloe"), "robot", "show", "aloha_sim"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ros_arguments_are_yaml_that_rcl_reads() -> None:
    values = {"a": True, "b": 1, "c": 1e-5, "d": "1", "e": [1.0, 2.0], "f": float("inf"), "g": "", "h": ["x", "y z"]}
    arguments = ros_arguments(parameters=[values])
    assert arguments[0] == "--ros-args"
    read = {}
    for flag, rule in zip(arguments[1::2], arguments[2::2], strict=True):
        assert flag == "-p"
        name, text = rule.split(":=", 1)
        read[name] = yaml.load(text, Loader=yaml.SafeLoader)
    assert read.pop("c") in (1e-5, "1e-05")  # PyYAML wants a dot in a float; rcl uses strtod
    values.pop("c")
    assert read == values
