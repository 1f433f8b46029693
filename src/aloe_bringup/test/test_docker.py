"""The container descriptions, as far as they can be judged without a container engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVICE_KEYS = {
    *("build", "command", "user", "group_add", "network_mode", "ipc", "devices", "environment", "volumes"),
    *("stop_signal", "stop_grace_period", "shm_size", "deploy"),
}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_hadolint_has_no_complaint(file):
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_what_is_copied_exists_and_is_not_ignored(file):
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    copies = re.findall(r"^COPY (.+) \S+$", file.read_text(), re.MULTILINE)
    assert copies
    for source in " ".join(copies).split():
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] not in ignored


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_containers_run_as_an_ordinary_user_from_a_named_version(file):
    text = file.read_text()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "1000"
    assert re.search(r"^FROM \S+:(?!latest)\S+$", text, re.MULTILINE)


def test_installed_packages_exist():
    text = (ROOT / "docker/trainer.Dockerfile").read_text()
    editable = re.findall(r'--editable "?([\w/]+)(?:\[(\w+)\])?"?', text)
    assert [Path(package).name for package, _ in editable] == [
        *("aloe_core", "aloe_robot", "aloe_intervention", "aloe_policy", "aloe_critic")
    ]
    for package, extra in editable:
        setup = (ROOT / package / "setup.py").read_text()
        assert not extra or f'"{extra}": [' in setup


def test_the_robot_container_knows_the_command_line():
    """`docker compose run robot aloe check`: what is no launch file is run as a command."""
    assert '*) exec "$@"' in (ROOT / "docker/robot_entrypoint.bash").read_text()
    (path,) = re.findall(r"^ENV PATH=(\S+)$", (ROOT / "docker/robot.Dockerfile").read_text(), re.MULTILINE)
    environment = path.replace("/opt/aloe/.venv/bin", str(Path(sys.executable).parent)).replace(
        "$PATH", "/usr/bin:/bin"
    )
    result = subprocess.run(["env", f"PATH={environment}", "aloe", "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_file_is_whole():
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert sorted(services) == ["robot", "trainer"]
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS
        context = (ROOT / "docker" / service["build"]["context"]).resolve()
        assert context == ROOT
        assert (context / service["build"]["dockerfile"]).name == f"{name}.Dockerfile"
        assert (context / service["build"]["dockerfile"]).is_file()
        assert service["user"] == "${UID:-1000}:${GID:-1000}"
        assert service["network_mode"] == "host"
        for volume in service["volumes"]:
            host, inside = volume.split(":")
            assert (ROOT / "docker" / host).resolve().parent == ROOT
            assert inside.startswith("/data/")
    for device in services["robot"]["devices"]:
        assert re.fullmatch(r"(/dev/\w+):\1", device)


def test_the_robot_starts_a_launch_file_with_arguments_it_has():
    from aloe_core.supervisor_launchfile import declared_arguments

    file, *arguments = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["robot"]["command"]
    assert (ROOT / "launch" / file).is_file()
    declared = {a.name for a in declared_arguments((ROOT / "launch" / file).with_suffix(".yaml"))}
    assert {argument.split(":=")[0] for argument in arguments} <= declared
