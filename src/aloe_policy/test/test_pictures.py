"""`aloe show policy`: the numbers behind the picture, and a picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from test_checkpoint import HORIZON, make_policy

from aloe_core.bag_reader import read_episode
from aloe_core.cli import main
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_policy.pictures import chunks_along, mean_error

ROBOT = load_robot("aloha_sim")


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    SyntheticEpisode(ROBOT, steps=30, cameras=["overhead"]).write(tmp_path / "episode")
    return tmp_path / "episode"


class Replayed:
    """Proposes what was executed, plus an offset."""

    version, horizon, cameras, image_size, uses_task_state = "replayed", 8, ("overhead",), (16, 16), True

    def __init__(self, executed: np.ndarray, offset: float) -> None:
        self.executed, self.offset = executed, offset

    def propose(self, observation, generator, prefix=None, prefix_steps=0) -> np.ndarray:
        assert observation.images["overhead"].shape == (16, 16, 3)
        assert observation.object_state is not None
        tick = (observation.stamp_ns - 1_000_000_000) // ROBOT.control_dt_ns
        rows = np.minimum(np.arange(tick, tick + 8), len(self.executed) - 1)
        return (self.executed[rows] + self.offset).astype(np.float32)


def test_the_error_is_that_of_the_rows_that_were_executed(bag: Path) -> None:
    episode = read_episode(bag, ROBOT)
    chunks = chunks_along(Replayed(episode.executed, 0.25), episode, every=7, samples=2)
    assert list(chunks) == [0, 7, 14, 21, 28]
    assert chunks[0].shape == (2, 8, 14)
    assert mean_error(chunks, episode.executed) == pytest.approx(0.25, abs=1e-5)


def test_the_command_writes_a_picture(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_policy(ROBOT).save(tmp_path / "policy", "bc-0")
    file = tmp_path / "out" / "policy.png"
    assert (
        main(["show", "policy", str(tmp_path / "policy"), str(bag), "--output", str(file), "--every", str(HORIZON)])
        == 0
    )
    assert "bc-0-" in capsys.readouterr().out
    image = cv2.imread(str(file))
    assert image.shape[0] > 800
    assert image.std() > 10
    assert main(["show", "policy", str(tmp_path / "policy"), str(bag), "--output", str(file), "--every", "0"]) == 1
