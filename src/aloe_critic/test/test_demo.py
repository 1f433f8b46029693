"""The whole loop, as small as it goes: every stage runs for real, and the summary says what the files say."""

import json
from pathlib import Path

import pytest

from aloe_core.bag_reader import read_episode
from aloe_core.cli import main
from aloe_core.statistics import wilson_interval

SMALL = (
    "--demonstrations 2 --bc-steps 20 --episodes 1 --new-episodes 1 --evaluation-episodes 2 --time-limit 1.5 "
    "--critic-steps 6 --actor-steps 6 --jobs 1"
)


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
