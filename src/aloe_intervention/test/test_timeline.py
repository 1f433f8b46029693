"""The picture of an episode is drawn from a real recording, and says what happened."""

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from aloe_core.bag_reader import read_episode
from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.timeline import SOURCE_COLOURS, draw_timeline
from aloe_core.vocabulary import Source
from aloe_intervention.lockstep import LockstepOperator
from aloe_intervention.operator_sim import OperatorConfig
from aloe_robot.rollout import Lockstep

ROBOT = load_robot("aloha_sim")


class Still:
    """A policy that stays at home, so that somebody has to help."""

    version, horizon, cameras, image_size, uses_task_state = "still-0", 50, (), None, False

    def propose(self, observation, generator, prefix=None, prefix_steps=0):
        return np.repeat(ROBOT.home[None], 50, 0).astype(np.float32)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """Two seconds: the policy stands still, a human takes over after 0.8 s."""
    operator = LockstepOperator(ROBOT, "transfer_cube", OperatorConfig(patience=0.5, reaction_time=0.2))
    folder = tmp_path_factory.mktemp("bags")
    return Lockstep(ROBOT, "transfer_cube", Still(), operator=operator).run(1, 2.0, folder, "helped").bag


def test_what_it_says(bag):
    record = read_episode(bag)
    figure = draw_timeline(record, "aloe")
    words = [t.get_text() for axis in figure.axes for t in axis.texts] + [figure._suptitle.get_text()]
    assert figure.axes[0].get_yticklabels()[-1].get_text() == "fragments\n(aloe)"
    assert "intervention 1" in words
    assert "failure" in words, "the policy's fragment under the paper's protocol"
    assert "timeout" in words
    assert any("still-0" in w and "timeout (time limit)" in w for w in words)
    human = (record.source == Source.HUMAN).any(axis=1)
    first = (record.stamps_ns[human][0] - record.stamps_ns[0]) / 1e9
    colours = {to_rgb(SOURCE_COLOURS[s]) for s in (Source.POLICY, Source.HUMAN)}
    bars = [p for p in figure.axes[0].patches if p.get_facecolor()[:3] in colours]
    assert {round(b.get_x(), 6) for b in bars} == {0.0, round(first, 6)}
    assert sum(b.get_width() for b in bars) == pytest.approx(2 * len(record) * 0.02)
    left = figure.axes[1]
    np.testing.assert_array_equal(left.lines[0].get_ydata(), record.executed[:, 0])
    np.testing.assert_array_equal(left.lines[1].get_ydata(), record.proposal[:, 0])


def test_the_command_writes_a_picture(bag, tmp_path, capsys):
    path = tmp_path / "episode.png"
    assert main(["bags", "timeline", str(bag), "--output", str(path), "--protocol", "hil_serl"]) == 0
    picture = cv2.imread(str(path))
    assert min(picture.shape[:2]) > 500
    orange = np.array(to_rgb(SOURCE_COLOURS[Source.HUMAN]))[::-1] * 255
    assert (np.abs(picture - orange).max(axis=-1) < 3).sum() > 1000
    assert capsys.readouterr().out.strip() == str(path)


def test_show_draws_the_same_picture(bag, tmp_path, capsys):
    shown, drawn = tmp_path / "shown.png", tmp_path / "drawn.png"
    assert main(["bags", "show", str(bag), "--picture", str(shown), "--protocol", "hg_dagger"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"picture      {shown}"
    assert main(["bags", "timeline", str(bag), "--output", str(drawn), "--protocol", "hg_dagger"]) == 0
    np.testing.assert_array_equal(cv2.imread(str(shown)), cv2.imread(str(drawn)))


def test_bad_input(bag, tmp_path, capsys):
    assert main(["bags", "timeline", str(bag), "--output", str(tmp_path / "episode.docx")]) == 1
    assert "cannot write the picture" in capsys.readouterr().err
    record = read_episode(bag)
    record.step = record.step[:0]
    with pytest.raises(AloeError, match="no transitions"):
        draw_timeline(record)
