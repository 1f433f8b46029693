"""Robot descriptions: the order of vectors, units of devices, and errors that name the key."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription, load_robot, robot_file, robot_folder

ROBOTS = [p.stem for p in sorted(robot_folder().glob("*.yaml"))]


def description() -> dict[str, Any]:
    joint = {"min": -1, "max": 2, "max_velocity": 1, "max_acceleration": 2, "max_jerk": 3, "home": 0.5}
    return {
        "name": "two_arms",
        "control_rate_hz": 30,
        "arms": [
            {
                "name": "a",
                "joints": [{"name": "a1", **joint}, {"name": "a2", **joint}],
                "gripper": {"name": "ag", "closed": 0.8, "open": 0.0, "home": 1},
                "output": {"topic": "/a/commands"},
            },
            {"name": "b", "joints": [{"name": "b1", **joint}], "output": {"topic": "/b/commands"}},
        ],
        "cameras": [{"name": "c", "topic": "/c"}],
    }


def write(tmp_path: Path, data: Any) -> Path:
    file = tmp_path / "robot.yaml"
    file.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return file


@pytest.mark.parametrize("name", ROBOTS)
def test_descriptions_that_come_with_the_project(name: str) -> None:
    robot = load_robot(name)
    assert robot.name == name
    assert len(robot.arms) == 2
    assert robot.action_dim == len(set(robot.action_names)) == 14
    assert (robot.position_min < robot.position_max).all()
    assert (robot.home >= robot.position_min).all()
    assert (robot.home <= robot.position_max).all()


def test_order_units_and_limits(tmp_path: Path) -> None:
    robot = load_robot(write(tmp_path, description()))
    assert robot.action_names == ("a1", "a2", "ag", "b1")
    assert robot.arm_slices == (slice(0, 3), slice(3, 4))
    assert robot.gripper_mask.tolist() == [False, False, True, False]
    assert robot.control_dt_ns == 33_333_333
    assert robot.position_min.tolist() == [-1, -1, 0, -1]
    assert robot.position_max.tolist() == [2, 2, 1, 2]
    assert robot.home.tolist() == [0.5, 0.5, 1, 0.5]
    assert robot.max_jerk.tolist() == [3, 3, 30000, 3]
    action = np.array([0.1, 0.2, 0.25, 0.3])
    np.testing.assert_allclose(robot.to_device(action), [0.1, 0.2, 0.6, 0.3])
    np.testing.assert_allclose(robot.from_device(robot.to_device(action)), action)
    batch = np.tile(action, (5, 2, 1))
    np.testing.assert_allclose(robot.to_device(batch)[3, 1], [0.1, 0.2, 0.6, 0.3])
    camera = robot.camera("c")
    assert camera.compressed_topic == "/c/image_raw/compressed"
    assert camera.info_topic == "/c/camera_info"


def test_hash_stands_for_the_meaning_of_vectors() -> None:
    same, base = description(), RobotDescription.model_validate(description())
    same["arms"][0]["joints"][0]["max_velocity"] = 9
    same["arms"][0]["output"]["topic"] = "/elsewhere"
    same["cameras"][0]["rate_hz"] = 10
    assert RobotDescription.model_validate(same).hash == base.hash
    assert len(base.hash) == 16
    for change in (
        lambda d: d.update(control_rate_hz=50),
        lambda d: d["arms"].reverse(),
        lambda d: d["arms"][0].pop("gripper"),
        lambda d: d["arms"][0]["joints"].reverse(),
        lambda d: d["cameras"][0].update(name="other"),
    ):
        other = description()
        change(other)
        assert RobotDescription.model_validate(other).hash != base.hash


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(control_rate=30), "control_rate: unknown key"),
        (lambda d: d["arms"][0].update(jionts=[]), r"arms\.0\.jionts: unknown key"),
        (lambda d: d["arms"][1]["joints"][0].pop("max_jerk"), r"arms\.1\.joints\.0\.max_jerk: Field required"),
        (lambda d: d["arms"][1]["joints"][0].update(min=3), "joint 'b1': min 3.0 must be below max 2.0"),
        (lambda d: d["arms"][1]["joints"][0].update(home=5), r"joint 'b1': home 5.0 lies outside \[-1.0, 2.0\]"),
        (lambda d: d["arms"][1]["joints"][0].update(max_velocity=0), "max_velocity: Input should be greater than 0"),
        (lambda d: d["arms"][1]["joints"][0].update(max=float("inf")), r"max: Input should be a finite number"),
        (lambda d: d["arms"][0]["gripper"].update(open=0.8), "gripper 'ag': closed and open are both 0.8"),
        (lambda d: d["arms"][1]["joints"][0].update(name="a1"), "joint or gripper named twice: a1"),
        (lambda d: d["arms"][1].update(name="a"), "arm named twice: a"),
        (lambda d: d["arms"][1]["output"].update(topic="/a/commands"), "command topic named twice: /a/commands"),
        (lambda d: d["cameras"].append({"name": "c", "topic": "/d"}), "camera named twice: c"),
        (lambda d: d["arms"].clear(), "arms: "),
        (lambda d: d["arms"][0]["output"].update(type="magic"), r"arms\.0\.output\.type: Input should be"),
        (lambda d: d["arms"][0]["output"].update(topic="no spaces allowed"), r"arms\.0\.output\.topic"),
        (lambda d: d.update(safety={"policy_timeout": -1}), r"safety\.policy_timeout: Input should be greater than 0"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, change: Any, sentence: str) -> None:
    data = description()
    change(data)
    with pytest.raises(AloeError, match=rf"robot\.yaml: .*{sentence}"):
        load_robot(write(tmp_path, data))


def test_several_mistakes_are_one_line(tmp_path: Path) -> None:
    data = description()
    data["typo"] = data["mistake"] = 1
    with pytest.raises(AloeError, match="mistake: unknown key; typo: unknown key") as error:
        load_robot(write(tmp_path, {**data}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [1", "not a readable YAML file"), ("- 1", "is a mapping of keys, this file is a list"), ("", "NoneType")],
)
def test_files_that_are_something_else(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(AloeError, match=sentence):
        load_robot(write(tmp_path, text))


def test_unknown_robots_and_cameras_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        AloeError,
        match=r"unknown robot 'aloha_smi': .* known robots: aloha_sim, bimanual_ur5e; give .* --robot my_robot\.yaml$",
    ):
        load_robot("aloha_smi")
    with pytest.raises(AloeError, match=r"no file .*/absent\.yaml; known robots: aloha_sim, bimanual_ur5e$"):
        load_robot(tmp_path / "absent.yaml")
    for impossible in ("x" * 1000, "a\0b"):
        with pytest.raises(AloeError, match="unknown robot"):
            load_robot(impossible)
    with pytest.raises(
        AloeError, match="robot 'aloha_sim' has no camera 'nose'; it has: overhead, left_wrist, right_wrist"
    ):
        load_robot("aloha_sim").camera("nose")


def test_a_folder_of_ones_own_comes_before_that_of_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped = robot_folder()
    own = write(tmp_path, description())
    monkeypatch.setenv("ALOE_ROBOTS", str(tmp_path))
    assert load_robot("robot").name == "two_arms"
    assert robot_file("robot") == own
    assert robot_file("aloha_sim") == shipped / "aloha_sim.yaml"
    with pytest.raises(AloeError) as error:
        load_robot("nobody")
    for part in (f"{tmp_path}/nobody.yaml or {shipped}/nobody.yaml", "known robots: robot, aloha_sim, bimanual_ur5e;"):
        assert part in str(error.value)
    own.rename(tmp_path / "aloha_sim.yaml")
    assert load_robot("aloha_sim").name == "two_arms"
