"""Which episode runs, out of the events, the old ones of a late start among them."""

import pytest

from aloe_core.errors import AloeError
from aloe_core.vocabulary import EventType, Outcome
from aloe_robot.control.episodes import SETTLE_TIME, End, EpisodeFollower, Start

STARTED, STOPPED, LABELLED, DISCARDED = EventType


def hear(follower, event, episode="e1", running="", late=False, now=0.0, outcome=Outcome.SUCCESS):
    return follower.hear(int(event), Start(episode, "do it", 7), int(outcome), running, late, now)


def test_live_events_count_at_once():
    follower = EpisodeFollower()
    assert hear(follower, STARTED) == Start("e1", "do it", 7)
    assert hear(follower, STARTED, running="e1") is None
    assert hear(follower, STOPPED, "e0", running="e1") is None
    assert hear(follower, STOPPED, running="e1") == End(Outcome.SUCCESS)
    assert hear(follower, LABELLED) is None, "it has ended before"
    assert follower.settled(1e9) is None


@pytest.mark.parametrize("event", [LABELLED, DISCARDED])
def test_without_its_stopped_an_episode_ends_with_what_comes_after(event):
    assert hear(EpisodeFollower(), event, running="e1", outcome=Outcome.FAILURE) == End(Outcome.FAILURE)


def test_of_old_events_only_the_newest_counts():
    follower = EpisodeFollower()
    for now, (event, episode) in enumerate([(STARTED, "e1"), (STOPPED, "e1"), (STARTED, "e2")]):
        assert hear(follower, event, episode, late=True, now=now * 0.1) is None
    assert follower.settled(0.2 + SETTLE_TIME / 2) is None, "more may follow"
    assert follower.settled(0.2 + SETTLE_TIME) == Start("e2", "do it", 7, resumed=True)
    assert follower.settled(9.0) is None


def test_an_old_episode_that_is_over_is_not_resumed():
    for late in (True, False):
        follower = EpisodeFollower()
        assert hear(follower, STARTED, late=True) is None
        assert hear(follower, STOPPED, late=late) is None
        assert follower.settled(9.0) is None
    hear(follower, STARTED, late=True)
    assert hear(follower, STARTED, "e2") == Start("e2", "do it", 7)
    assert follower.settled(9.0) is None


def test_events_that_make_no_sense_do_no_harm():
    with pytest.raises(AloeError, match="without an id"):
        hear(EpisodeFollower(), STARTED, "")
    end = hear(EpisodeFollower(), STOPPED, running="e1", outcome=99)
    assert end == End(Outcome.UNLABELLED, "episode 'e1' ends with the unknown outcome 99")
    assert hear(EpisodeFollower(), 77, running="e1") is None
