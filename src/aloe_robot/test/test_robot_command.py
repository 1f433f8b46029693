"""`aloe robot show`."""

from pathlib import Path

import pytest
import yaml

from aloe_core.cli import main
from aloe_core.robot import load_robot, robot_folder


@pytest.mark.parametrize("name", ["aloha_sim", "bimanual_ur5e"])
def test_everything_in_the_description_is_shown(name, capsys):
    assert main(["robot", "show", name]) == 0
    shown = capsys.readouterr().out
    robot = load_robot(name)
    for text in (
        robot.hash,
        f"{robot.control_rate_hz:g} Hz",
        *robot.action_names,
        *(a.output.topic for a in robot.arms),
        *(a.output.gripper_topic or "" for a in robot.arms),
        *(c.compressed_topic for c in robot.cameras),
        *(c.source for c in robot.cameras),
    ):
        assert text in shown
    lines = shown.splitlines()
    for index, joint in enumerate(robot.action_names):
        (row,) = [line.split() for line in lines if line.split()[:2] == [str(index), joint]]
        assert [float(x) for x in row[2:8]] == pytest.approx(
            [
                robot.position_min[index],
                robot.position_max[index],
                robot.home[index],
                robot.max_velocity[index],
                robot.max_acceleration[index],
                robot.max_jerk[index],
            ],
            abs=5e-5,
        )
    assert max(map(len, lines)) <= 120


def test_mistakes_are_named(tmp_path: Path, capsys):
    data = yaml.safe_load((robot_folder() / "bimanual_ur5e.yaml").read_text())
    joint = data["arms"][1]["joints"][2]
    joint["min"], joint["max"] = joint["max"], joint["min"]
    data["cameras"][0]["rate_herz"] = 30
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    assert main(["robot", "show", str(file)]) == 1
    error = capsys.readouterr().err
    assert "joint 'right_elbow_joint': min 3.1416 must be below max -3.1416" in error
    assert "cameras.0.rate_herz: unknown key" in error
    assert main(["robot", "show", "nobody"]) == 1
    assert "known robots: aloha_sim, bimanual_ur5e" in capsys.readouterr().err
