"""Set-up: what a machine lacks is one sentence, and nothing is done twice."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"

if not SCRIPTS.is_dir():
    pytest.skip("the package is not in its checkout", allow_module_level=True)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """scripts/setup_environment.py as a module whose checkout is an empty folder, on a machine that has everything."""
    spec = importlib.util.spec_from_file_location("setup_environment", SCRIPTS / "setup_environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "include").mkdir()
    (tmp_path / "include/Python.h").touch()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMPS", tmp_path / "stamps")
    monkeypatch.setattr(module, "LOG", tmp_path / "log" / "setup.log")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path / "include"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=50e9))
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    return module


def test_a_complete_machine_passes(setup: ModuleType) -> None:
    setup.check_machine(with_ros=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda m: setattr(m.platform, "machine", lambda: "aarch64"),
            "wheels exist for x86-64 only .* is aarch64: install",
        ),
        (lambda m: setattr(m.platform, "libc_ver", lambda: ("glibc", "2.17")), "need glibc 2.28 .* has glibc 2.17"),
        (lambda m: setattr(m.platform, "libc_ver", lambda: ("", "")), "this system has another C library"),
        (
            lambda m: setattr(m.shutil, "which", lambda name: None),
            r"no C\+\+ compiler was found.*sudo apt install g\+\+",
        ),
        (
            lambda m: setattr(m.sysconfig, "get_path", lambda name: "/nowhere"),
            r"the headers of python3\.\d+ are missing",
        ),
        (
            lambda m: setattr(m.shutil, "disk_usage", lambda p: SimpleNamespace(free=1.5e9)),
            "1.5 GB are free in .* 10 GB",
        ),
        (lambda m: setattr(m.sys, "platform", "darwin"), "ROS 2 nodes run on Linux"),
    ],
)
def test_what_a_machine_lacks_is_one_sentence(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, change: Callable[[ModuleType], None], sentence: str
) -> None:
    monkeypatch.setattr(setup, "platform", SimpleNamespace(**vars(setup.platform)))
    monkeypatch.setattr(setup, "shutil", SimpleNamespace(**vars(setup.shutil)))
    monkeypatch.setattr(setup, "sysconfig", SimpleNamespace(**vars(setup.sysconfig)))
    monkeypatch.setattr(setup, "sys", SimpleNamespace(**vars(setup.sys)))
    change(setup)
    with pytest.raises(setup.SetupError, match=sentence) as error:
        setup.check_machine(with_ros=False)
    assert "\n" not in str(error.value)


def test_a_sourced_ros_needs_its_own_python(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert setup.uses_ros_installation()
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(setup, "subprocess", SimpleNamespace(run=lambda *args, **kwargs: failed))
    with pytest.raises(setup.SetupError, match=r"ROS 2 jazzy is sourced, but .* cannot import rclpy"):
        setup.check_machine(with_ros=True)
    monkeypatch.setattr(setup.shutil, "which", lambda name: None if name == "colcon" else name)
    with pytest.raises(setup.SetupError, match="colcon is missing"):
        setup.check_machine(with_ros=True)


def test_a_step_is_done_once_for_the_same_sources_and_again_after_a_failure(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "stamps").mkdir()
    source = tmp_path / "source.txt"
    source.write_text("1")
    done: list[str] = []

    def step(action: Callable[[], None]) -> bool:
        return setup.step("name", "do it", [source], action)

    assert step(lambda: done.append("first"))
    assert not step(lambda: done.append("never"))
    source.write_text("2")
    with pytest.raises(ZeroDivisionError):
        step(lambda: done.append(str(1 / 0)))
    assert step(lambda: done.append("again"))
    assert done == ["first", "again"]


def test_a_failing_command_shows_its_last_lines(setup: ModuleType) -> None:
    setup.LOG.parent.mkdir()
    with pytest.raises(setup.SetupError, match=r"(?s)`sh -c .*failed with exit code 4 .*the reason"):
        setup.run(["sh", "-c", "echo the reason; exit 4"])


def test_include_paths_of_the_wheels_are_corrected(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    file = setup.VENV / "share/some_msgs/cmake/export.cmake"
    file.parent.mkdir(parents=True)
    container = "/opt/python/cp311-cp311"
    file.write_text(f"{container}/include/python3.11;{container}/lib/python3.11/site-packages/numpy/_core/include;/x")
    answer = SimpleNamespace(stdout="/usr/include/python3.11\n/venv/numpy/include\n")
    monkeypatch.setattr(setup, "subprocess", SimpleNamespace(run=lambda *args, **kwargs: answer))
    setup.correct_include_paths()
    assert file.read_text() == "/usr/include/python3.11;/venv/numpy/include;/x"


def run_setup(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copytree(SCRIPTS, tmp_path / "scripts", dirs_exist_ok=True)
    return subprocess.run(
        [tmp_path / "scripts/setup"], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_an_unsupported_python_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.8.20' && exit 0\nexit 1\n")
    old.chmod(0o755)
    result = run_setup(tmp_path, PYTHON=str(old))
    assert result.returncode == 1
    assert "is Python 3.8.20, but Python 3.10, 3.11, 3.12 or 3.13 is needed" in result.stderr
    result = run_setup(tmp_path, PYTHON="python3.99")
    assert result.returncode == 1
    assert "there is no interpreter PYTHON=python3.99" in result.stderr
    assert not (tmp_path / ".venv").exists()
