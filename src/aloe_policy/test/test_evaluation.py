import json

import pytest
from random_policy import save_random_policy

from aloe_core.cli import main
from aloe_policy.evaluation import RolloutSpec, run_episodes, summarise
from aloe_robot.control.config import ControlConfig

SPEC = RolloutSpec("scripted", control=ControlConfig(execute_steps=50), time_limit=4.0)


def test_the_number_of_processes_does_not_matter():
    alone, shared = list(run_episodes(SPEC, [3, 4, 5])), list(run_episodes(SPEC, [3, 4, 5], jobs=2))
    assert [(r.seed, r.steps, r.outcome, r.max_jerk) for r in alone] == [
        (r.seed, r.steps, r.outcome, r.max_jerk) for r in shared
    ]
    summary = summarise(SPEC, alone, wall_s=2.0)
    assert (summary["success"], summary["n"]) == (1.0, 3)
    assert summary["interval"][0] < 0.5 < summary["interval"][1] == 1.0
    robot_s = sum(r.steps for r in alone) * 0.02
    assert summary["real_time_factor"] == pytest.approx(robot_s / 2)
    assert summary["successes_per_hour"] == pytest.approx(3 * 3600 / robot_s)


def test_an_episode_does_not_depend_on_those_before_it(tmp_path):
    """A policy that draws its chunks at random; once its noise counted on with the requests of all episodes of a process."""
    spec = RolloutSpec(str(save_random_policy(tmp_path / "policy")), time_limit=1.2)
    after = list(run_episodes(spec, [3, 4]))[1]
    (alone,) = run_episodes(spec, [4])
    assert (after.max_jerk, after.rms_jerk) == (alone.max_jerk, alone.rms_jerk)


def test_command_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "deep" / "result.json"
    arguments = ["rollout", "--policy", "scripted", "--episodes", "1", "--seed", "7", "--time-limit", "0.2", "--json"]
    assert main([*arguments, str(file)]) == 0
    summary = json.loads(file.read_text())
    assert {"success", "n", "interval", "real_time_factor", "episodes"} <= summary.keys()
    assert summary["failures"]["timeout"] == 1
    assert "success 0/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--policy nowhere", "'nowhere' is neither a checkpoint folder nor a known policy"),
        ("--policy nowhere --jobs 2", "'nowhere' is neither a checkpoint folder nor a known policy"),
        ("--policy scripted --task juggling", "unknown task 'juggling'"),
        ("--policy scripted --robot nobody", "unknown robot 'nobody'"),
        ("--policy scripted --operator nobody", "unknown operator 'nobody'"),
        ("--policy scripted --policy-latency 5", "request_timeout"),
        ("--policy scripted --episodes 0", "--episodes must be at least 1"),
        ("--policy scripted --episodes -3", "--episodes must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, capsys):
    assert main(["rollout", *arguments.split()]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
