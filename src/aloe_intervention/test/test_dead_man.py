"""Take-over and hand-back: edges, debouncing, and hands that rest, mash or vanish."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe_core.errors import AloeError
from aloe_intervention.dead_man import DeadMan, DeadManConfig
from aloe_intervention.episode_buttons import EpisodeButtons, EpisodeButtonsConfig
from aloe_intervention.gate import Gate

TICK = 20_000_000
NONE, BOTH = (0, 0), (1, 1)


class Hand:
    """Feeds a dead man one message per tick."""

    def __init__(self, **config) -> None:
        self.dead_man = DeadMan(DeadManConfig(**config))
        self.now = 0

    def do(self, deflection=0.0, buttons=NONE, ticks=1, new=True, buttons_ns=None) -> bool:
        for _ in range(ticks):
            self.now += TICK
            twist = np.array([0, 0, deflection, 0, 0, 0], float)
            stamp = self.now if new else self.now // (1 << 62)
            engaged = self.dead_man.update(stamp, self.now, twist, buttons, buttons_ns)
        return engaged


def test_the_buttons_toggle_on_their_edges():
    hand = Hand(release_time=0.0)
    assert not hand.do()
    assert not hand.do(buttons=BOTH)
    assert hand.do(buttons=BOTH), "the second message"
    assert hand.do(buttons=BOTH, ticks=50), "held buttons are one edge"
    assert hand.do(ticks=50)
    assert not hand.do(buttons=BOTH)
    assert not hand.do(ticks=5)


def test_both_buttons_in_one_message_only_are_a_twitch():
    hand = Hand()
    hand.do()
    for _ in range(20):
        assert not hand.do(buttons=BOTH)
        assert not hand.do()
    assert not hand.do(buttons=BOTH, ticks=20, new=False), "nor is one message that is seen again"
    assert not hand.do()
    assert hand.do(buttons=BOTH, ticks=2)


def test_button_messages_and_not_those_of_the_twist_are_counted():
    hand = Hand()
    hand.do()
    for _ in range(20):
        assert not hand.do(buttons=BOTH, buttons_ns=7)
    assert hand.do(buttons=BOTH, buttons_ns=8)


def test_one_of_two_buttons_is_not_enough():
    hand = Hand()
    hand.do()
    assert not hand.do(buttons=(1, 0), ticks=20)
    assert not hand.do(buttons=(0, 1), ticks=20)


def test_separate_buttons_to_engage_and_release():
    hand = Hand(engage_buttons=(0,), release_buttons=(1,), release_time=0.0)
    hand.do()
    assert hand.do(buttons=(1, 0), ticks=2)
    assert hand.do(ticks=3)
    assert hand.do(buttons=(1, 0)), "engaging twice changes nothing"
    assert not hand.do(buttons=(1, 1))


def test_a_lasting_deflection_takes_over_and_a_twitch_does_not():
    hand = Hand(engage_samples=4)
    hand.do()
    for _ in range(20):
        assert not hand.do(deflection=1.0, ticks=3)
        assert not hand.do(ticks=1)
    assert hand.do(deflection=-0.5, ticks=4)


def test_the_same_message_seen_again_is_no_further_sample():
    hand = Hand(engage_samples=2)
    hand.do()
    assert not hand.do(deflection=1.0, ticks=20, new=False)


def test_rest_gives_back_after_the_release_time_and_buttons_count_as_activity():
    hand = Hand(release_time=1.0)
    hand.do()
    hand.do(deflection=1.0, ticks=10)
    assert hand.do(ticks=49)
    assert hand.do(buttons=(1, 0), ticks=100)
    assert hand.do(ticks=49)
    assert not hand.do(ticks=2)


def test_a_stick_still_deflected_at_the_release_does_not_take_over_again():
    hand = Hand(release_time=0.0)
    hand.do()
    hand.do(deflection=1.0, ticks=10)
    assert not hand.do(deflection=1.0, buttons=BOTH)
    assert not hand.do(deflection=1.0, ticks=100)
    hand.do()
    assert hand.do(deflection=1.0, ticks=10)


@pytest.mark.parametrize("held", [{"deflection": 1.0}, {"buttons": BOTH}])
def test_what_is_held_from_the_start_or_after_a_loss_is_no_edge(held):
    hand = Hand(release_time=0.0)
    assert not hand.do(**held, ticks=100)
    hand.do(ticks=2)
    assert hand.do(**held, ticks=10)
    hand.dead_man.interrupt()
    assert hand.do(**held, ticks=10), "a loss neither takes over nor gives back"


def test_with_hold_control_lasts_while_the_buttons_are_down():
    hand = Hand(hold=True, release_time=0.5)
    assert not hand.do(buttons=BOTH, ticks=20), "held from the start"
    hand.do()
    assert not hand.do(deflection=1.0, ticks=20), "nothing else takes over"
    assert not hand.do(buttons=BOTH)
    assert hand.do(buttons=BOTH)
    assert hand.do(buttons=BOTH, ticks=100), "rest does not give back"
    assert not hand.do(buttons=(1, 0)), "letting go of one does, at once"
    assert not hand.do(buttons=BOTH)
    assert hand.do(buttons=BOTH)


def test_with_hold_a_lost_stick_keeps_control_until_it_is_seen_let_go():
    hand = Hand(hold=True)
    hand.do()
    assert hand.do(buttons=BOTH, ticks=2)
    hand.dead_man.interrupt()
    assert hand.do(buttons=BOTH, ticks=3)
    hand.dead_man.interrupt()
    assert hand.dead_man.engaged
    assert not hand.do()
    hand.dead_man.interrupt()
    assert not hand.do(buttons=BOTH, ticks=20)


def test_with_hold_the_gripper_may_move_while_the_buttons_are_down():
    assert DeadMan(DeadManConfig()).buttons_down(BOTH)
    assert not DeadMan(DeadManConfig(hold=True)).buttons_down(BOTH)


@pytest.mark.parametrize("hold", [False, True])
def test_an_arm_follows_another_and_what_its_stick_is_held_at_is_no_edge(hold):
    hand = Hand(hold=hold)
    hand.do()
    hand.do(buttons=BOTH)
    hand.dead_man.follow(True)
    assert hand.do(buttons=BOTH, ticks=20)
    assert hand.do(ticks=20), "held or let go: it is the other arm's to give back"
    hand.do(deflection=1.0)
    hand.dead_man.follow(False)
    assert not hand.do(deflection=1.0, ticks=20)
    hand.do()
    assert hand.do(buttons=BOTH, ticks=2)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0])), min_size=1, max_size=200))
def test_mashed_buttons_give_back_on_an_edge_and_take_over_when_it_lasts(inputs):
    hand = Hand(release_time=0.0, engage_deflection=0.0)
    expected, ready, run = False, False, 0  # ready: the press under way may take over
    for bits, deflection in inputs:
        run = run + 1 if bits == 3 else 0
        ready = ready or not run
        if expected and run == 1:
            expected = ready = False
        elif not expected and ready and run == 2:
            expected, ready = True, False
        assert hand.do(deflection=deflection, buttons=(bits & 1, bits >> 1)) == expected


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"engage_buttons": (), "engage_deflection": 0.0}, "nobody could take over"),
        ({"release_buttons": (), "release_time": 0.0}, "nobody could let go"),
        ({"engage_deflection": 0.02}, "must exceed"),
        ({"engage_samples": 0}, "at least 1"),
        ({"engage_button_samples": 0}, "at least 1"),
        ({"hold": True, "engage_buttons": ()}, "nothing to hold"),
        ({"rest_deflection": 1.5}, "shares"),
        ({"release_time": float("nan")}, "release_time"),
    ],
)
def test_bad_settings_are_refused(config, says):
    with pytest.raises(AloeError, match=says):
        DeadManConfig(**config)


def test_episode_buttons_act_once_per_press():
    buttons = EpisodeButtons(EpisodeButtonsConfig(start_buttons=(2,), success_buttons=(3,), discard_buttons=(2, 3)))
    presses = [(0, 0, 1, 0), (0, 0, 0, 0), (0, 0, 1, 0), (0, 0, 1, 0), (0, 0, 1, 1), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0)]
    assert [buttons.update(p) for p in presses] == ["", "", "start", "", "", "", "success", ""]
    assert buttons.used
    assert not EpisodeButtons(EpisodeButtonsConfig()).used


def test_a_gate_waits_while_its_partner_lives():
    gate = Gate(2.0)
    assert not gate.passes(False, 10.0)
    assert not gate.passes(False, 11.9)
    assert gate.passes(True, 12.5)
    assert not gate.passes(False, 13.0)
    assert gate.passes(False, 15.0)
    assert gate.passes(False, 15.1), "it does not wait again for a partner that is gone"
    assert gate.passes(True, 15.2)
    assert not gate.passes(False, 15.3)
