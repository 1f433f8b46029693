"""The command `aloe`: finds sub-commands, keeps them lazy, turns mistakes into one sentence."""

import importlib
import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from aloe_core import cli
from aloe_core.errors import AloeError


def greet(name: str = "you", *, fail: bool = False) -> int:
    """Say hello.

    Args:
        name: Whom to greet.
        fail: Refuse to.
    """
    if fail:
        raise AloeError(f"{name} is not to be greeted; try another name")
    print(f"hello {name}")
    return 3


def interrupted() -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


def lonely() -> None:
    """Need a package that is not there."""
    raise ModuleNotFoundError("No module named 'aloe_absent'", name="aloe_absent")


def talk(module: str = "rclpy.node") -> None:
    """Talk to nodes.

    Args:
        module: What it imports.
    """
    importlib.import_module(module)


HERE = "test_cli"


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    targets = {
        "greet": f"{HERE}:greet",
        "say.greet": f"{HERE}:greet",
        "say.lonely": f"{HERE}:lonely",
        "interrupted": f"{HERE}:interrupted",
        "talk": f"{HERE}:talk",
        "absent": "aloe_absent.module:function",
    }
    entries = [EntryPoint(name, value, cli.GROUP) for name, value in targets.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)


def test_the_longest_command_wins_and_the_rest_are_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "--name", "ada"]) == 3
    assert cli.main(["say", "greet", "--name", "grace"]) == 3
    assert capsys.readouterr().out == "hello ada\nhello grace\n"


def test_overview_lists_commands_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert "say greet          Say hello." in printed
    assert "absent             (needs the Python package 'aloe_absent')" in printed
    assert cli.main(["say"]) == 0
    printed = capsys.readouterr().out
    assert "say greet" in printed
    assert "interrupted" not in printed


def test_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gret"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unknown command 'gret'" in captured.err
    assert "say greet" in captured.err


def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "--name", "ada", "--fail"]) == 1
    assert capsys.readouterr().err == "aloe: ada is not to be greeted; try another name\n"
    assert cli.main(["interrupted"]) == 130
    assert capsys.readouterr().err == "aloe: interrupted\n"
    for command in (["say", "lonely"], ["absent"]):
        assert cli.main(command) == 1
        assert "needs the package 'aloe_absent', which is not installed" in capsys.readouterr().err


def test_what_aloe_starts_stays_on_this_machine_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "ROS_AUTOMATIC_DISCOVERY_RANGE"
    monkeypatch.setenv(variable, "SUBNET")
    assert cli.main(["greet"]) == 3
    assert os.environ[variable] == "SUBNET"
    monkeypatch.delenv(variable)
    assert cli.main(["greet"]) == 3
    assert subprocess.check_output(["printenv", variable], text=True) == "LOCALHOST\n"


@pytest.mark.parametrize("module", ["rclpy.node", "aloe_msgs.srv"])
def test_commands_that_talk_to_nodes_say_that_they_need_ros(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = module.partition(".")[0]
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, module, raising=False)
    assert cli.main(["talk", "--module", module]) == 1
    assert (
        capsys.readouterr().err == f"aloe: 'talk' needs ROS 2 (Python package '{package}'); see docs/installation.md\n"
    )


def test_help_of_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["greet", "--help"])
    assert exit_.value.code == 0
    assert "Whom to greet." in capsys.readouterr().out


def test_the_installed_command_survives_a_closed_pipe() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "aloe_core.cli"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # as `| head -0`
    errors = process.stderr.read()
    process.wait(60)
    process.stderr.close()
    assert "Traceback" not in errors
