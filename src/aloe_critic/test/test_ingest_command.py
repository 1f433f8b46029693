"""`aloe ingest`: what it prints and writes."""

import json
from pathlib import Path

import pytest

from aloe_core.cli import main
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode

ROBOT = load_robot("aloha_sim")


def test_ingest_reports_what_is_used_and_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SyntheticEpisode(ROBOT, steps=20, human=(5, 10)).write(tmp_path / "bags" / "good")
    SyntheticEpisode(ROBOT, steps=20, seed=1).write(tmp_path / "bags" / "killed", close=False)
    command = ["ingest", str(tmp_path / "bags"), "--store", str(tmp_path / "store")]
    assert main([*command, "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 bags used (1 new, 0 relabelled): 20 steps" in printed
    assert "run aloe bags recover" in printed
    assert "human" in printed
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["episodes"] == [0]
    assert written["replay"]["frames"] == 20
    assert [row["source"] for row in written["replay"]["rows"]] == ["policy", "human"]
    assert main(command) == 0
    assert "(0 new, 0 relabelled)" in capsys.readouterr().out


def test_ingest_of_nothing_usable_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SyntheticEpisode(ROBOT, steps=5).write(tmp_path / "bags" / "killed", close=False)
    assert main(["ingest", str(tmp_path / "bags"), "--store", str(tmp_path / "store")]) == 1
    assert "0 of 1 bags used" in capsys.readouterr().out
    assert main(["ingest", str(tmp_path / "nothing"), "--store", str(tmp_path / "store")]) == 1
    assert "no bags in" in capsys.readouterr().err
    assert main(["ingest", str(tmp_path / "bags"), "--store", str(tmp_path / "s"), "--cameras", "nose"]) == 1
    assert "has no camera 'nose'" in capsys.readouterr().err


def test_ingest_caches_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from aloe_policy.replay import ReplayStore

    SyntheticEpisode(ROBOT, steps=6, cameras=("overhead",)).write(tmp_path / "bags" / "e")
    command = ["ingest", str(tmp_path / "bags"), "--store", str(tmp_path / "store"), "--cameras", "overhead"]
    assert main([*command, "--image-size", "32", "32", "--encoder", "efficientnet_lite0"]) == 0
    features = ReplayStore(tmp_path / "store").features("efficientnet_lite0")["overhead"]
    assert features.shape == (4, 4, 112)
