"""Fragments of hand-worked episodes, and what must hold for any episode."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe_core.errors import AloeError
from aloe_core.fragments import PROTOCOLS, Fragment, chunk_stops, derive_fragments, tick_sources
from aloe_core.vocabulary import Outcome, Source

LETTERS = {"-": Source.NONE, "S": Source.SCRIPTED, "P": Source.POLICY, "H": Source.HUMAN}
S, P, H, N = Source.SCRIPTED, Source.POLICY, Source.HUMAN, Source.NONE
UNLABELLED, SUCCESS, FAILURE, TIMEOUT = Outcome.UNLABELLED, Outcome.SUCCESS, Outcome.FAILURE, Outcome.TIMEOUT


def arms(left: str, right: str) -> np.ndarray:
    return np.array([[LETTERS[a], LETTERS[b]] for a, b in zip(left, right, strict=True)], np.uint8).reshape(-1, 2)


# One attempt of 16 ticks: the policy waits two ticks for its first chunk and drives; a human takes the right arm, later
# both, and lets go; after a tick in which nobody drives the policy goes on and finishes.
#                0123456789012345
EPISODE = arms("--PPPPPPHHH-PPPP", "--PPPHHHHHH-PPPP")


def test_the_source_of_a_tick_is_human_as_soon_as_one_arm_is():
    assert tick_sources(EPISODE).tolist() == [N, N, P, P, P, H, H, H, H, H, H, N, P, P, P, P]
    assert tick_sources(arms("SPPH-", "--SPH")).tolist() == [S, P, P, H, H]


def test_aloe_by_hand():
    assert derive_fragments(EPISODE, SUCCESS, "aloe") == [
        Fragment(0, 5, P, FAILURE, terminal=True, truncated=False, train_policy=True, train_critic=True),
        Fragment(5, 12, H, UNLABELLED, terminal=False, truncated=True, train_policy=True, train_critic=True),
        Fragment(12, 16, P, SUCCESS, terminal=True, truncated=False, train_policy=True, train_critic=True),
    ]


def test_hil_serl_by_hand():
    assert derive_fragments(EPISODE, SUCCESS, "hil_serl") == [
        Fragment(0, 5, P, UNLABELLED, terminal=False, truncated=False, train_policy=True, train_critic=True),
        Fragment(5, 12, H, UNLABELLED, terminal=False, truncated=False, train_policy=True, train_critic=True),
        Fragment(12, 16, P, SUCCESS, terminal=True, truncated=False, train_policy=True, train_critic=True),
    ]
    assert [f.demonstration for f in derive_fragments(EPISODE, SUCCESS, "hil_serl")] == [False, True, False]


def test_hg_dagger_by_hand():
    assert derive_fragments(EPISODE, SUCCESS, "hg_dagger") == [
        Fragment(0, 5, P, UNLABELLED, terminal=False, truncated=True, train_policy=False, train_critic=False),
        Fragment(5, 12, H, UNLABELLED, terminal=False, truncated=True, train_policy=True, train_critic=False),
        Fragment(12, 16, P, SUCCESS, terminal=True, truncated=False, train_policy=False, train_critic=False),
    ]


def test_chunk_stops_by_hand():
    at = list(range(16))
    aloe = chunk_stops(EPISODE, derive_fragments(EPISODE, SUCCESS, "aloe"), "aloe")
    assert aloe.policy.tolist() == aloe.critic.tolist() == [5] * 5 + [12] * 7 + [16] * 4
    stream = chunk_stops(EPISODE, derive_fragments(EPISODE, SUCCESS, "hil_serl"), "hil_serl")
    assert stream.policy.tolist() == stream.critic.tolist() == [16] * 16
    dagger = chunk_stops(EPISODE, derive_fragments(EPISODE, SUCCESS, "hg_dagger"), "hg_dagger")
    assert dagger.policy.tolist() == at[:5] + [11] * 6 + at[11:]  # tick 11 holds: it is no example of driving
    assert dagger.critic.tolist() == at


def test_the_human_finishes_the_task():
    policy, human = derive_fragments(arms("PPPHHH", "PPPPPP"), SUCCESS, "aloe")
    assert (policy.outcome, policy.terminal, human.outcome, human.terminal) == (FAILURE, True, SUCCESS, True)


def test_only_a_take_over_by_a_human_is_a_failure():
    scripted, policy, again = derive_fragments(arms("SSPPSS", "SSPPSS"), SUCCESS, "aloe")
    assert (scripted.outcome, scripted.truncated) == (policy.outcome, policy.truncated) == (UNLABELLED, True)
    assert again.outcome == SUCCESS


def test_a_second_take_over_after_holding_is_the_same_fragment():
    fragments = derive_fragments(arms("PH--HP", "PP--PP"), FAILURE)
    assert [(f.start, f.stop, f.source) for f in fragments] == [(0, 1, P), (1, 5, H), (5, 6, P)]


@pytest.mark.parametrize(
    ("outcome", "timeout_is_failure", "terminal"),
    [
        (SUCCESS, False, True),
        (FAILURE, False, True),
        (TIMEOUT, True, True),
        (TIMEOUT, False, False),
        (UNLABELLED, True, False),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_ends_an_episode_for_good(protocol, outcome, timeout_is_failure, terminal):
    (only,) = derive_fragments(arms("PPP", "PPP"), outcome, protocol, timeout_is_failure=timeout_is_failure)
    assert (only.outcome, only.terminal, only.truncated) == (outcome, terminal, not terminal)


def test_nobody_drives_and_nothing_recorded():
    (only,) = derive_fragments(arms("---", "---"), TIMEOUT)
    assert (only.start, only.stop, only.source) == (0, 3, N)
    assert derive_fragments(np.empty((0, 2), np.uint8), UNLABELLED) == []


@given(
    st.lists(st.tuples(*[st.sampled_from(list(Source))] * 2), min_size=1, max_size=60),
    st.sampled_from(list(Outcome)),
    st.sampled_from(PROTOCOLS),
    st.booleans(),
)
def test_any_episode(rows, outcome, protocol, timeout_is_failure):
    source = np.array(rows, np.uint8)
    fragments = derive_fragments(source, outcome, protocol, timeout_is_failure=timeout_is_failure)
    # They cover every tick once.
    assert [f.start for f in fragments] == [0, *(f.stop for f in fragments[:-1])]
    assert fragments[-1].stop == len(source)
    assert all(f.start < f.stop for f in fragments)
    # Borders lie exactly where the driver changes, idle ticks aside.
    tick = tick_sources(source)
    for f in fragments:
        assert set(tick[f.start : f.stop].tolist()) <= {f.source, Source.NONE}
    for a, b in pairwise(fragments):
        assert a.source != b.source
        assert tick[b.start] == b.source
    # The episode's outcome is that of the last fragment, and no other can end in success.
    assert fragments[-1].outcome == outcome
    assert fragments[-1].terminal != fragments[-1].truncated
    assert all(f.outcome in (UNLABELLED, FAILURE) for f in fragments[:-1])
    assert all(a.terminal == (protocol == "aloe" and b.source == H) for a, b in pairwise(fragments))
    # Chunks never leave their stream, and `hg_dagger` imitates demonstrators alone.
    stops = chunk_stops(source, fragments, protocol)
    for t in range(len(source)):
        (home,) = [f for f in fragments if f.start <= t < f.stop]
        for stop in (stops.policy[t], stops.critic[t]):
            assert t <= stop <= (len(source) if protocol == "hil_serl" else home.stop)
        if protocol == "hg_dagger":
            assert set(tick[t : stops.policy[t]].tolist()) <= {S, H}
            assert (stops.policy[t] > t) == (tick[t] in (S, H))
        else:
            assert stops.policy[t] == stops.critic[t] > t


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: derive_fragments(EPISODE, SUCCESS, "dagger"), "unknown intervention protocol 'dagger'"),
        (lambda: derive_fragments(EPISODE, 7), "unknown outcome 7"),
        (lambda: derive_fragments(np.zeros(5, np.uint8), SUCCESS), "shape"),
        (lambda: derive_fragments(np.full((5, 2), 9, np.uint8), SUCCESS), "unknown source 9"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(AloeError, match=says):
        call()
