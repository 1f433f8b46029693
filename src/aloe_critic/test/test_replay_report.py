"""The page about a replayed bag: what is on its time axis is what the bag says."""

import re

import numpy as np
import pytest
import replay_rig as rig

from aloe_core.errors import AloeError
from aloe_core.policy import load_policy
from aloe_core.synthetic import SyntheticEpisode
from aloe_critic import episode_figures
from aloe_critic.recording import Recording
from aloe_critic.replay_report import FRAMES, timeline, write_page
from aloe_critic.replay_shadow import replay
from aloe_critic.replay_summary import read_replayed, summarise
from aloe_critic.scoring import ChunkScorer

ROBOT = rig.ROBOT


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """An episode of 40 ticks with two cameras in which a person drove from tick 10 to 20, replayed with a policy and judged by a critic."""
    folder = tmp_path_factory.mktemp("replayed")
    SyntheticEpisode(ROBOT, steps=40, human=(10, 20), cameras=("overhead", "left_wrist")).write(folder / "bags" / "e1")
    policy, critic = rig.save_policy(folder / "policy"), rig.save_toy_critic(folder / "critic", "test")
    recording = Recording(folder / "bags" / "e1")
    replay(
        recording, load_policy(str(policy), ROBOT), folder / "out" / "e1", ChunkScorer(critic, policy, ROBOT, samples=2)
    )
    recording.close()
    return folder / "out" / "e1"


def test_the_time_axis_is_that_of_the_bag(replayed):
    episode = read_replayed(replayed)
    shown = timeline(episode)
    episode.recording.close()
    np.testing.assert_allclose(shown.time_s, 0.02 * np.arange(40))
    assert shown.end_s == pytest.approx(0.8)
    assert shown.interventions == [(pytest.approx(0.2), pytest.approx(0.4))]
    assert list(shown.drivers) == ["policy"] * 10 + ["human"] * 10 + ["policy"] * 20
    assert {name: len(frames) for name, frames in shown.film.items()} == {"overhead": FRAMES, "left_wrist": FRAMES}
    grey = [
        int(frame.mean().round()) for frame in shown.film["overhead"]
    ]  # 7 levels more per tick, an image every other one
    assert grey == [14 * round(((k + 0.5) / FRAMES * 39) // 2) % 256 for k in range(FRAMES)]
    for name, values in (("recorded", episode.recorded_values), ("proposed", episode.proposed_values)):
        judged = shown.judged[name]
        np.testing.assert_allclose(judged.time_s, 0.1 * np.arange(8))
        np.testing.assert_allclose(judged.advantage, [v.advantage for _, v in sorted(values.items())], atol=1e-6)
    assert np.isfinite(shown.proposed).all()


def test_the_page_needs_nothing_else(replayed, tmp_path):
    numbers = summarise(replayed) | {"left_out": ["nothing of <importance>"]}
    page = write_page(replayed, tmp_path, numbers).read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "human" in page
    assert "nothing of &lt;importance&gt;" in page
    assert {p.name for p in tmp_path.iterdir()} == {"e1.html", "e1_timeline.png", "e1_joints.png"}


def test_a_bag_of_ros_itself_has_neither_values_nor_drivers(tmp_path):
    rig.foreign_bag(tmp_path / "ros")
    policy = load_policy(str(rig.save_policy(tmp_path / "policy", objects=0)), ROBOT)
    recording = Recording(tmp_path / "ros", ROBOT)
    replay(recording, policy, tmp_path / "out" / "ros")
    recording.close()
    episode = read_replayed(tmp_path / "out" / "ros", ROBOT)
    shown = timeline(episode)
    episode.recording.close()
    assert (shown.commanded_name, shown.judged, shown.interventions) == ("measured one tick later", {}, [])
    assert len(episode_figures.timeline(shown).axes) == 1 + 1 + 2  # one camera, who drives, two arms
    episode = read_replayed(tmp_path / "ros", ROBOT)
    with pytest.raises(AloeError, match="no proposals"):
        timeline(episode)
    episode.recording.close()
