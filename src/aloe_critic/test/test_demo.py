"""The whole loop, as small as it goes: every stage runs for real, and the summary says what the files say."""

import json
from pathlib import Path

import pytest

from aloe_core.bag_reader import read_episode
from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.statistics import wilson_interval
from aloe_critic.commands.learn import Quarters
from aloe_critic.demo import Demo, DemoConfig, closing_lines, expected_seconds

SMALL = (
    "--demonstrations 2 --bc-steps 20 --episodes 1 --new-episodes 1 --evaluation-episodes 2 --time-limit 1.5 "
    "--critic-steps 6 --actor-steps 6 --jobs 1"
)


def test_a_method_without_a_critic_has_a_summary_but_no_report(tmp_path, capsys):
    iteration = tmp_path / "learner" / "001"
    iteration.mkdir(parents=True)
    (iteration / "result.json").write_text('{"critic": ""}')
    demo = Demo(tmp_path, DemoConfig(method="hg_dagger"), tmp_path)
    result = {"success": 0.5, "n": 2}
    summary = {"success_before": result, "success_after": result, "takeover_rates": [0.0, 0.0, 0.0], "interventions": 0}
    summary |= {"report": "", "config": demo.config.__dict__}
    assert demo._report(summary, iteration.parent, iteration) == summary
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert "none: the method 'hg_dagger' has no critic to report on" in capsys.readouterr().out
    assert closing_lines(summary)[-1] == "report         none, for the method has no critic"


def test_it_says_what_comes_and_how_long_it_takes(tmp_path, capsys):
    config = DemoConfig()
    demo = Demo(tmp_path, config, tmp_path)
    assert sum(map(sum, expected_seconds(config).values())) == pytest.approx(394, abs=40), "README.md: 394 s"
    with demo._stage_of("demonstrations", "6 episodes"):
        pass
    with demo._stage_of("evaluation_before", "100 episodes"):
        pass
    printed = capsys.readouterr().out
    assert "[1/10] demonstrations: 6 episodes; about 3 s" in printed
    assert "0 s; 8 stages left, about 6 min" in printed


def test_lines_instead_of_a_bar():
    quarters = Quarters()
    assert quarters.lines(2, 10, 100, now=5.0) == ["critic ..."]
    assert quarters.lines(2, 20, 100, now=6.0) == []
    assert quarters.lines(2, 30, 100, now=7.0) == ["critic 25 %, about 7 s left"]
    assert quarters.lines(2, 80, 100, now=12.0) == ["critic 75 %, about 2 s left"]
    assert quarters.lines(2, 100, 100, now=14.0) == []
    assert quarters.lines(4, 0, 0, now=15.0) == ["saving ..."]


@pytest.fixture
def dead_graph(tmp_path, monkeypatch):
    """A demonstration whose launch file refuses its arguments, and a launch file that runs for ever."""
    node = tmp_path / "lib" / "fake" / "sleeper"
    node.parent.mkdir(parents=True)
    node.write_text("#!/bin/sh\nexec sleep 1000\n")
    node.chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    launch, waits = tmp_path / "dead.launch.yaml", tmp_path / "waits.launch.yaml"
    launch.write_text("launch: []\n")
    waits.write_text("launch: [{node: {pkg: fake, exec: sleeper}}]\n")
    demo = Demo(tmp_path, DemoConfig(), launch)
    return demo, demo._graph(tmp_path / "policy", tmp_path / "bags", tmp_path / "run", tmp_path / "p.yaml"), waits


def test_a_graph_that_ended_is_named_when_a_command_fails(dead_graph, tmp_path):
    demo, graph, _ = dead_graph
    with pytest.raises(AloeError, match=rf"the command above failed with exit code .*; .* {tmp_path}/graph.log"), graph:
        demo._aloe("bags", "show", tmp_path / "absent")


def test_a_command_does_not_wait_for_a_graph_that_ended(dead_graph, tmp_path):
    demo, graph, waits = dead_graph
    with pytest.raises(AloeError, match=rf"ended by itself; see {tmp_path}/graph.log"), graph:
        demo._aloe("up", waits)
    assert "has no argument 'policy'" in (tmp_path / "graph.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_loop_closes(tmp_path, capfd):
    output = tmp_path / "run"
    assert main(["demo", "--output", str(output), *SMALL.split()]) == 0
    printed = capfd.readouterr().out
    summary = json.loads((output / "summary.json").read_text())
    for name in ("before", "after"):
        measured, reported = json.loads((output / f"{name}.json").read_text()), summary[f"success_{name}"]
        assert (reported["success"], reported["n"]) == (measured["success"], 2)
        assert reported["interval"] == list(wilson_interval(round(2 * reported["success"]), 2))
    assert len(set(summary["policy_versions"])) == 3
    assert summary["episodes"] == 3
    listed = [
        e
        for n in ("collected-1", "collected-2", "renewed")
        for e in json.loads((output / f"{n}.json").read_text())["episodes"]
    ]
    assert len(listed) == 3
    for episode in listed:  # other bags there are those of starts that were given up: a node was not ready yet
        assert Path(episode["bag"]).parent == Path(summary["bags"])
        assert read_episode(Path(episode["bag"])).outcome.name.lower() == episode["outcome"]
    assert Path(summary["report"]).read_text().startswith("<!")
    assert set(summary["wall_seconds"]) == {
        *(
            "demonstrations",
            "cloning",
            "evaluation_before",
            "episodes",
            "learning",
            "renewed",
            "evaluation_after",
            "report",
        ),
    }
    assert "success before" in printed
    assert "success after" in printed
    log = (output / "graph.log").read_text()
    for version in summary["policy_versions"][1:]:
        assert f"{version} answers" in log, "the running robot took the new policy"
