"""The arms' state machine: every entry of the table, and when a human counts as driving."""

import pytest

from aloe_core.vocabulary import Mode
from aloe_robot.control.arbiter import MODES, TRANSITIONS, Arbiter, ArmState, Event

S, E = ArmState, Event


def expected(state: ArmState, event: Event) -> ArmState:
    """The table in words."""
    if event is E.STOP:
        return S.STOPPED  # a stop wins over everything
    if state is S.STOPPED:
        return S.IDLE if event is E.RESET else S.STOPPED  # and only a reset ends it
    if event is E.END:
        return S.IDLE
    if event is E.START:
        return S.HOLD  # an episode begins with nobody driving
    if state is S.IDLE:
        return S.IDLE  # outside an episode nobody drives
    human = state in (S.HUMAN, S.LOST)
    if event is E.ENGAGE:
        return S.HUMAN  # the human comes first
    if event is E.RELEASE:
        return S.HOLD if human else state
    if event in (E.SILENCE, E.RECOVERY):
        return (S.LOST if event is E.SILENCE else S.HUMAN) if human else state
    if event in (E.CHUNK, E.STARVED) and not human:
        return S.POLICY if event is E.CHUNK else S.HOLD  # the policy never takes an arm from a human
    return state


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", ArmState)
def test_every_entry_of_the_table(state, event):
    assert TRANSITIONS[state, event] is expected(state, event)
    arbiter = Arbiter(engage_ticks=2)
    arbiter.state = state
    assert arbiter.fire(event) == (expected(state, event) is not state)
    assert arbiter.state is expected(state, event)


def test_every_state_has_a_mode():
    assert set(MODES) == set(ArmState)
    assert MODES[S.LOST] is Mode.HOLD


def started(engage_ticks: int = 2) -> Arbiter:
    arbiter = Arbiter(engage_ticks)
    arbiter.fire(Event.START)
    arbiter.hear(False, True)
    arbiter.supply(True)
    assert arbiter.state is S.POLICY
    return arbiter


def test_a_twitch_of_one_tick_is_no_intervention():
    arbiter = started()
    for engaged in (True, False, True, False, False, True):
        assert arbiter.hear(engaged, True) is None
        assert arbiter.state is S.POLICY


def test_take_over_is_one_event_and_so_is_release():
    arbiter = started()
    wishes = [True] * 5 + [False] * 3
    assert [arbiter.hear(w, True) for w in wishes] == [None, E.ENGAGE, None, None, None, E.RELEASE, None, None]
    assert arbiter.state is S.HOLD


def test_a_button_held_at_the_start_gives_no_control_and_no_motion():
    arbiter = Arbiter(2)
    arbiter.fire(Event.START)
    for _ in range(5):
        assert arbiter.hear(True, True) is None
        arbiter.supply(True)
        assert arbiter.state is S.HOLD
    arbiter.hear(False, True)
    arbiter.supply(True)
    assert arbiter.state is S.POLICY
    arbiter.hear(True, True)
    assert arbiter.hear(True, True) is E.ENGAGE


def test_unusable_targets_never_engage_and_hold_a_human_arm():
    arbiter = started()
    for _ in range(4):
        assert arbiter.hear(True, False) is None
    assert arbiter.state is S.POLICY
    arbiter.hear(True, True)
    assert arbiter.hear(True, True) is E.ENGAGE
    arbiter.hear(True, False)
    assert arbiter.state is S.LOST
    arbiter.supply(True)
    assert arbiter.state is S.LOST, "the policy does not take the arm of a human who went silent"
    arbiter.hear(True, True)
    assert arbiter.state is S.HUMAN
    arbiter.hear(True, False)
    assert arbiter.hear(False, False) is E.RELEASE


def test_starving_holds():
    arbiter = started()
    arbiter.supply(False)
    assert arbiter.state is S.HOLD
    arbiter.supply(True)
    assert arbiter.state is S.POLICY
