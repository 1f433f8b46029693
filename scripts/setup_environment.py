"""Makes the environment in .venv: dependencies, our packages (editable), the compiled messages. Called by scripts/setup.

Every step remembers a hash of what it was made from and is skipped while that has not changed. Uses the ROS 2 wheels,
or, where a ROS 2 installation is sourced, that installation and colcon. Standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = VENV / "aloe-setup"
LOG = ROOT / "log" / "setup.log"
REQUIREMENTS = ROOT / "requirements"
PYTHON_PACKAGES = [f"src/aloe_{name}" for name in ("core", "robot", "intervention", "policy", "critic")]
DISK_NEEDED = 10e9  # [bytes]; the environment takes 6.4 GB with torch's CUDA libraries, pip unpacks beside it
GLIBC_NEEDED = (2, 28)


class SetupError(Exception):
    """A reason not to go on, and what to do about it, in one sentence."""


def main() -> int:
    try:
        with_ros = uses_ros_installation()
        check_machine(with_ros)
        LOG.parent.mkdir(exist_ok=True)
        with (LOG.parent / "setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            set_up(with_ros)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; `make setup` continues where it stopped", file=sys.stderr)
        return 130
    return 0


def uses_ros_installation() -> bool:
    return bool(os.environ.get("ROS_DISTRO")) and shutil.which("ros2") is not None


def check_machine(with_ros: bool) -> None:
    """Refuse a machine on which a later step would fail."""
    if sys.platform != "linux":
        raise SetupError(
            f"this is {platform.system()}, but ROS 2 nodes run on Linux; the pure packages can be pip-installed."
        )
    if with_ros:
        if shutil.which("colcon") is None:
            raise SetupError(
                "ROS 2 is sourced but colcon is missing: sudo apt install python3-colcon-common-extensions"
            )
        if subprocess.run([sys.executable, "-c", "import rclpy"], capture_output=True).returncode:
            raise SetupError(
                f"ROS 2 {os.environ['ROS_DISTRO']} is sourced, but {sys.executable} ({platform.python_version()}) cannot "
                "import rclpy; name the interpreter ROS uses: PYTHON=/usr/bin/python3 make setup"
            )
    elif platform.machine() != "x86_64":
        raise SetupError(
            f"the ROS 2 wheels exist for x86-64 only and this machine is {platform.machine()}: install ROS 2, source its "
            "setup.bash and run this again."
        )
    elif glibc_version() < GLIBC_NEEDED:
        raise SetupError(
            f"the ROS 2 wheels need glibc {'.'.join(map(str, GLIBC_NEEDED))} or later, as in Debian 10 and Ubuntu 20.04; "
            f"this system has {' '.join(platform.libc_ver()).strip() or 'another C library'}."
        )
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise SetupError("no C++ compiler was found, which the messages need: sudo apt install g++")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"the headers of {version} are missing, which the messages need: sudo apt install {version}-dev"
        )
    free = shutil.disk_usage(ROOT).free
    if not VENV.exists() and free < DISK_NEEDED:
        raise SetupError(
            f"{free / 1e9:.1f} GB are free in {ROOT}, but the environment needs {DISK_NEEDED / 1e9:.0f} GB."
        )


def glibc_version() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".")) if name == "glibc" else (0,)


def set_up(with_ros: bool) -> None:
    begin = time.monotonic()
    make_venv(with_ros)
    constraints = REQUIREMENTS / ("constraints-ros.txt" if with_ros else "constraints.txt")
    lists = [REQUIREMENTS / f"{name}.txt" for name in ("robot", "learning", "dev")]
    lists += [] if with_ros else [REQUIREMENTS / "ros.txt"]
    metadata = [
        ROOT / package / name for package in PYTHON_PACKAGES for name in ("setup.py", "setup.cfg", "package.xml")
    ]
    changed = [
        step(
            "dependencies",
            "install the dependencies (several minutes the first time)",
            [*lists, constraints, REQUIREMENTS / "no-deps.txt"],
            lambda: install_dependencies(lists, constraints),
        ),
        step("packages", "install the packages of src/ into .venv", metadata, install_packages),
    ]
    interfaces = sorted((ROOT / "src/aloe_msgs").rglob("*.*"))
    if with_ros:
        sources = [*metadata, *interfaces, *sorted((ROOT / "src/aloe_bringup").glob("*.*"))]
        changed.append(step("workspace", "build the workspace with colcon (about a minute)", sources, build_workspace))
    else:
        changed.append(step("messages", "compile the messages (about half a minute)", interfaces, build_messages))
        link_bringup()
    if any(changed):
        print(f"setup: ready after {time.monotonic() - begin:.0f} s. Try ./aloe --help")
        report_rendering()


def make_venv(with_ros: bool) -> None:
    """Create .venv; make it anew if it belongs to another Python or to the other source of ROS 2."""
    kind = f"{sys.version_info.major}.{sys.version_info.minor} {os.environ['ROS_DISTRO'] if with_ros else 'wheels'}"
    stamp = STAMPS / "kind"
    if (VENV / "bin/python").exists() and (not stamp.exists() or stamp.read_text() == kind):
        STAMPS.mkdir(exist_ok=True)
        stamp.write_text(kind)
        return
    if Path(sys.prefix) == VENV:
        raise SetupError(
            f".venv was made for {stamp.read_text()}; remove it (rm -rf .venv) and run `make setup` again."
        )
    print(f"setup: make .venv with Python {platform.python_version()}")
    shutil.rmtree(VENV, ignore_errors=True)
    options = ["--system-site-packages"] if with_ros else []
    try:
        run([sys.executable, "-m", "venv", *options, str(VENV)])
    except SetupError:
        shutil.rmtree(VENV, ignore_errors=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(f"Python's venv module does not work here: sudo apt install {version}-venv") from None
    STAMPS.mkdir()
    stamp.write_text(kind)


def step(name: str, what: str, sources: Iterable[Path], action: Callable[[], None]) -> bool:
    """Do `action` unless it was done for these sources; whether it was done."""
    digest = hashlib.sha256()
    for file in sources:
        if file.is_file():
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    stamp = STAMPS / name
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return False
    print(f"setup: {what}", flush=True)
    stamp.unlink(missing_ok=True)
    action()
    stamp.write_text(digest.hexdigest())
    return True


def install_dependencies(lists: list[Path], constraints: Path) -> None:
    pip("install", "--constraint", str(constraints), *(f"--requirement={file}" for file in lists))
    pip("install", "--no-deps", f"--requirement={REQUIREMENTS / 'no-deps.txt'}")


def install_packages() -> None:
    editable = [part for package in PYTHON_PACKAGES for part in ("--editable", package)]
    pip("install", "--use-pep517", "--no-build-isolation", "--no-deps", *editable)


def build_messages() -> None:
    """Compile aloe_msgs into the environment, where the wheels' message packages lie, so that nothing needs sourcing."""
    correct_include_paths()
    build = STAMPS / "build-aloe_msgs"
    manifest = build / "install_manifest.txt"
    before = set(manifest.read_text().split()) if manifest.exists() else set()
    python = VENV / "bin/python"
    environment = {
        "VIRTUAL_ENV": str(VENV),
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "AMENT_PREFIX_PATH": str(VENV),
        "CMAKE_PREFIX_PATH": str(VENV),
    }
    cmake = str(VENV / "bin/cmake")
    options = [f"-DCMAKE_INSTALL_PREFIX={VENV}", f"-DPython3_EXECUTABLE={python}", "-DBUILD_TESTING=OFF"]
    run([cmake, "-S", "src/aloe_msgs", "-B", str(build), "-G", "Ninja", *options], environment)
    run([cmake, "--build", str(build)], environment)
    run([cmake, "--install", str(build)], environment)
    for stale in before - set(manifest.read_text().split()):
        Path(stale).unlink(missing_ok=True)
    run([str(python), "-c", "import aloe_msgs.msg, aloe_msgs.srv, aloe_msgs.action"])


def correct_include_paths() -> None:
    """The wheels' CMake files name the include folders of the container they were built in; name those of this machine."""
    query = "import numpy, sysconfig; print(sysconfig.get_path('include')); print(numpy.get_include())"
    python, numpy = subprocess.run(
        [VENV / "bin/python", "-c", query], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    container = r"/opt/python/cp\d+-cp\d+"
    for file in (VENV / "share").rglob("*.cmake"):
        text = file.read_text()
        corrected = re.sub(rf"{container}/lib/python3\.\d+/site-packages/numpy/(?:_core|core)/include", numpy, text)
        corrected = re.sub(rf"{container}/include/python3\.\d+", python, corrected)
        if corrected != text:
            file.write_text(corrected)


def link_bringup() -> None:
    """Make share/aloe_bringup resolve to launch/ and config/ of this checkout."""
    share = VENV / "share"
    index = share / "ament_index/resource_index/packages"
    (share / "aloe_bringup").mkdir(parents=True, exist_ok=True)
    index.mkdir(parents=True, exist_ok=True)
    (index / "aloe_bringup").touch()
    for name in ("launch", "config"):
        link = share / "aloe_bringup" / name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(ROOT / name, link.parent))


def build_workspace() -> None:
    """An ordinary colcon build; run by the environment's Python, so that the nodes find what is installed there."""
    python = str(VENV / "bin/python")
    options = ["--symlink-install", "--base-paths", "src", "--cmake-args", f"-DPython3_EXECUTABLE={python}"]
    run([python, "-m", "colcon", "build", *options, "-DBUILD_TESTING=OFF"])


def report_rendering() -> None:
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        print(
            "setup: note: camera images of the simulator need EGL, which this machine lacks: "
            "sudo apt install libegl1 libegl-mesa0 libgl1-mesa-dri (simulation without cameras works)."
        )


def pip(*arguments: str) -> None:
    run([str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", *arguments])


def run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command from the root of the checkout; its output goes to the log, and its end into the error."""
    with LOG.open("w", encoding="utf-8") as log:
        code = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if code:
        tail = "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        shown = " ".join(Path(word).name if word == command[0] else word for word in command[:4])
        raise SetupError(f"`{shown} ...` failed with exit code {code} (all of its output is in {LOG}):\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
