"""The report's timeline of an episode is what the bag says, and its film is taken where it is drawn."""

import numpy as np
import pytest
import replay_rig as rig

from aloe_core.synthetic import SyntheticEpisode
from aloe_critic import improvement
from aloe_critic.episode_figures import Judged, timeline
from aloe_critic.film import film_strip
from aloe_critic.report_episodes import episode_timeline

ROBOT = rig.ROBOT
STEPS = 40


def test_a_timeline_shows_the_episode_as_it_was_recorded(tmp_path):
    first = SyntheticEpisode(ROBOT, steps=25, seed=1, cameras=("overhead",))
    second = SyntheticEpisode(ROBOT, steps=STEPS, seed=2, human=(10, 20), cameras=("overhead",))
    first.write(tmp_path / "bags" / "e1")
    second.write(tmp_path / "bags" / "e2")
    store, _ = improvement.ingest(tmp_path / "run", [tmp_path / "bags"], rig.save_policy(tmp_path / "policy"), ROBOT)
    judged = {"executed": Judged(np.array([0.0, 0.4]), np.array([-1.0, -0.5]), np.array([-0.9, -0.6]))}
    film = film_strip(tmp_path / "bags" / "e2", ROBOT, frames=4)
    shown = episode_timeline(store, 1, ROBOT, judged, film)
    np.testing.assert_allclose(shown.time_s, 0.02 * np.arange(STEPS))
    assert list(shown.drivers) == ["policy"] * 10 + ["human"] * 10 + ["policy"] * 20
    assert shown.interventions == [(pytest.approx(0.2), pytest.approx(0.4))]
    np.testing.assert_array_equal(shown.commanded, second.executed)
    np.testing.assert_array_equal(shown.proposed, second.proposal)
    ticks = [5, 15, 24, 34]  # the middles of four stretches of ticks 0 to 39
    assert [int(frame.mean().round()) for frame in film["overhead"]] == [second.grey("overhead", t) for t in ticks]
    figure = timeline(shown)
    assert [ax.get_ylabel().split("\n")[0] for ax in figure.axes] == [
        "overhead",
        "scaled return",
        "",
        "drives",
        *ROBOT.arm_names,
    ]
    dashed = [line.get_ydata() for line in figure.axes[-1].lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(np.array(dashed).T, second.proposal[:, ROBOT.arm_slices[-1]])
