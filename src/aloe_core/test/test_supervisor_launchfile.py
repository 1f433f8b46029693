"""The launch-file subset of `aloe up`: values, scopes, conditions, and a located sentence for everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aloe_core.errors import AloeError
from aloe_core.supervisor_launchfile import NodeSpec, declared_arguments, plan
from aloe_core.supervisor_substitutions import Scope, as_bool, package_share, substitute

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "test.launch.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def only_node(path: Path, **given: str) -> NodeSpec:
    (node,) = plan(path, given)
    return node


def test_a_node_with_everything(write: Write, tmp_path: Path) -> None:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("/**: {ros__parameters: {rate: 50.0}}\n")
    path = write("""
launch:
  - arg: {name: rate, default: "30.0", description: "Camera rate [Hz]"}
  - arg: {name: device, default: "0"}
  - node:
      pkg: aloe_robot
      exec: camera_node
      name: top
      namespace: cameras
      output: both
      args: --verbose 'two words'
      ros_args: --log-level debug
      respawn: "true"
      respawn_delay: 2.0
      respawn_max_retries: 3
      on_exit: shutdown
      env: [{name: OMP_NUM_THREADS, value: "1"}]
      remap: [{from: image, to: top/image_raw}]
      param:
        - from: $(dirname)/parameters.yaml
        - {name: rate, value: $(var rate)}
        - {name: device, value: $(var device), type: str}
        - {name: gains, value: [1.0, 2.5]}
        - {name: label, value: "007"}
        - {name: flip, value: false}
        - {name: scale, value: 2, type: float}
""")
    assert only_node(path) == NodeSpec(
        package="aloe_robot",
        executable="camera_node",
        name="top",
        namespace="cameras",
        parameters=(
            str(parameters),
            {"rate": 30.0},
            {"device": "0"},
            {"gains": [1.0, 2.5]},
            {"label": "007"},
            {"flip": False},
            {"scale": 2.0},
        ),
        remappings=(("image", "top/image_raw"),),
        arguments=("--verbose", "two words"),
        ros_arguments=("--log-level", "debug"),
        environment={"OMP_NUM_THREADS": "1"},
        output="both",
        respawn=True,
        respawn_delay=2.0,
        respawn_max_retries=3,
        shutdown_on_exit=True,
    )


def test_conditions_choose_nodes(write: Write) -> None:
    path = write("""
launch:
  - arg: {name: mock, default: "false", choice: [{value: "true"}, {value: "false"}]}
  - arg: {name: robot, default: aloha_sim}
  - node: {pkg: p, exec: mock, if: $(var mock)}
  - node: {pkg: p, exec: real, unless: $(var mock)}
  - node: {pkg: p, exec: aloha, if: $(and $(not $(var mock)) $(equals $(var robot) aloha_sim))}
""")
    assert [node.executable for node in plan(path, {})] == ["real", "aloha"]
    assert [node.executable for node in plan(path, {"mock": "true"})] == ["mock"]
    assert [node.executable for node in plan(path, {"robot": "ur5e"})] == ["real"]


def test_let_is_bounded_by_its_group_unless_the_group_is_not_scoped(write: Write) -> None:
    text = """
launch:
  - let: {name: side, value: left}
  - group:
      scoped: %s
      children:
        - let: {name: side, value: right}
        - node: {pkg: p, exec: e, name: $(var side)}
  - node: {pkg: p, exec: e, name: $(var side)}
"""
    assert [node.name for node in plan(write(text % "true"), {})] == ["right", "left"]
    assert [node.name for node in plan(write(text % "false"), {})] == ["right", "right"]


def test_an_include_takes_arguments_and_declares_its_own(write: Write) -> None:
    write(
        """
launch:
  - arg: {name: device, description: Camera device}
  - arg: {name: rate, default: "30", description: "Rate [Hz]"}
  - node: {pkg: p, exec: camera, name: "camera_$(var device)_$(var rate)"}
""",
        "camera.launch.yaml",
    )
    path = write("""
launch:
  - arg: {name: robot, description: Robot}
  - include:
      file: $(dirname)/camera.launch.yaml
      arg: [{name: device, value: $(var robot)}]
""")
    assert [(a.name, a.default) for a in declared_arguments(path)] == [("robot", None), ("rate", "30")]
    assert only_node(path, robot="aloha", rate="15").name == "camera_aloha_15"


@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        ("  - timer: {period: 1.0}", 2, "the action `timer` is not supported by `aloe up`; it knows arg, let, group"),
        ("  - node: {pkg: p, exec: e, launch-prefix: gdb}", 2, "the key `launch-prefix` of `node` is not supported"),
        ("  - node: {pkg: p}", 2, "`node` needs the key `exec`"),
        ("  - node: {pkg: p, exec: e, if: $(var missing)}", 2, "$(var missing) names no argument or variable"),
        ("  - node: {pkg: p, exec: e, if: maybe}", 2, "a condition must be true or false, not 'maybe'"),
        ("  - node: {pkg: p, exec: e, output: nowhere}", 2, "`output` is 'nowhere', but must be one of: screen"),
        (
            "  - node: {pkg: p, exec: e, respawn_delay: soon}",
            2,
            "`respawn_delay` must be of type float for ROS 2's launch, not 'soon'",
        ),
        (
            "  - node: {pkg: p, exec: e, respawn_delay: 3}",
            2,
            "`respawn_delay` must be of type float for ROS 2's launch, not 3",
        ),
        ("  - node: {pkg: p, exec: e, respawn: true}", 2, "`respawn` must be of type str for ROS 2's launch, not True"),
        ("  - node: {pkg: $(eval '1+1'), exec: e}", 2, "the substitution $(eval) is not supported by `aloe up`"),
        ("  - node: {pkg: $(find-pkg-share), exec: e}", 2, "$(find-pkg-share) takes 1 argument(s), got 0"),
        ("  - node:\n      pkg: p\n      exec: e\n      param: [{name: x}]", 5, "a `param` has either `from`, or"),
        ("  - node: {pkg: p, exec: e, param: [{from: /no/such}]}", 2, "the parameter file '/no/such' does not exist"),
        ("  - node: {pkg: p, exec: e, param: [{name: x, value: a, type: int}]}", 2, "must be of type int"),
        ("  - node: {pkg: p, exec: e, pkg: q}", 2, "'pkg' is given twice"),
        ("  - arg: {name: rate, default: 30}", 2, '`default` of an arg must be text; put it in quotes: "30"'),
        ("  - arg: {name: rate}", 2, "the argument rate:=... must be given (no description given)"),
        ("  - arg: {name: m, default: c, choice: [{value: a}, {value: b}]}", 2, "'c', but must be one of: a, b"),
        ("  - let: {name: a, value: b, if: 'true', unless: 'true'}", 2, "`if` and `unless` exclude each other"),
        ("  - let: {name: a, value: $(env ALOE_NO_SUCH_VARIABLE)}", 2, "'ALOE_NO_SUCH_VARIABLE' is not set"),
        ("  - let: {name: a, value: $(var b}", 2, "is not closed"),
    ],
)
def test_what_cannot_be_done_is_named_with_file_and_line(write: Write, body: str, line: int, message: str) -> None:
    path = write(f"launch:\n{body}\n")
    with pytest.raises(AloeError) as error:
        plan(path, {})
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert message in str(error.value)


def test_a_relative_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("launch:\n  - node: {pkg: p, exec: e, name: $(dirname)}\n", "inner.launch.yaml").parent
    write("launch:\n  - include: {file: $(dirname)/inner.launch.yaml}\n", "outer.launch.yaml")
    monkeypatch.chdir(folder.parent)
    assert only_node(Path(folder.name, "outer.launch.yaml")).name == str(folder)


def test_arguments_of_an_include_that_a_variable_names(write: Write) -> None:
    write("launch:\n  - arg: {name: rate, default: '30'}\n", "camera.launch.yaml")
    path = write("""
launch:
  - arg: {name: kind, default: camera}
  - let: {name: file, value: $(var kind).launch.yaml}
  - include: {file: $(var file)}
""")
    assert [argument.name for argument in declared_arguments(path)] == ["kind", "rate"]
    assert plan(path, {"rate": "15"}) == []


def test_errors_of_an_included_file_name_that_file(write: Write) -> None:
    inner = write("launch:\n  - let: {name: a, value: $(var nothing)}\n", "inner.launch.yaml")
    outer = write("launch:\n  - include: {file: inner.launch.yaml}\n")
    with pytest.raises(AloeError, match="names no argument") as error:
        plan(outer, {})
    assert str(error.value).startswith(f"{inner}:2: ")


def test_other_bad_files(write: Write, tmp_path: Path) -> None:
    with pytest.raises(AloeError, match=r"cannot read the launch file .*: No such file"):
        plan(tmp_path / "absent.yaml", {})
    with pytest.raises(AloeError, match="not a readable YAML file"):
        plan(write("launch: ["), {})
    with pytest.raises(AloeError, match="the single key `launch`"):
        plan(write("nodes: []"), {})
    with pytest.raises(AloeError, match="Python launch files need ROS 2's own"):
        plan(write("", "a.launch.py"), {})
    with pytest.raises(AloeError, match="has no argument 'robt'; it has: robot"):
        plan(write("launch:\n  - arg: {name: robot, default: a}"), {"robt": "b"})


def test_a_file_that_includes_itself_is_refused(write: Write) -> None:
    path = write("launch:\n  - include: {file: test.launch.yaml}\n")
    with pytest.raises(AloeError, match="includes itself"):
        plan(path, {})


def test_substitutions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALOE_TEST", "value")
    scope = Scope({"a": "one", "name": "a", "on": "True", "off": "0"}, tmp_path)
    for text, expected in {
        "plain": "plain",
        "$(var a)-$(var a)": "one-one",
        "$(var $(var name))": "one",
        "$(var b 'with space')": "with space",
        "$(env ALOE_TEST)": "value",
        '$(env ALOE_ABSENT "")': "",
        "$(dirname)/x": f"{tmp_path}/x",
        r"\$(var a)": "$(var a)",
        "5$ (cheap)": "5$ (cheap)",
        "$(or $(var on) $(var off))": "true",
        "$(not $(var on))": "false",
        "$(equals 1.0 1)": "true",
        "$(equals true 1)": "true",
        "$(equals left right)": "false",
    }.items():
        assert substitute(text, scope) == expected, text


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True ", True), ("1", True), ("FALSE", False), ("0", False)]
)
def test_truth(text: str, value: bool) -> None:
    assert as_bool(text) is value


def test_package_share_prefers_the_ament_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = tmp_path / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    (index / "some_robot").touch()
    (tmp_path / "share/some_robot").mkdir()
    with pytest.raises(AloeError, match="'some_robot' is not installed here"):
        package_share("some_robot")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert package_share("some_robot") == tmp_path / "share/some_robot"
