"""What worked from here, and progress, on a replay of a task in one dimension."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome, Source
from aloe_critic.commands.from_here import episode_number
from aloe_critic.from_here import from_here
from aloe_critic.progress import success_features, train_progress

LENGTH = 12


class Line:
    """Four episodes of twelve steps from 0 to 1 and beyond, backed up over three; the two in the middle succeed, one sooner than it seems."""

    def __init__(self, returns=(-0.9, -0.2, -0.5, -0.8)):
        episodes = len(returns)
        rows = LENGTH + 1
        start = np.concatenate([np.arange(LENGTH) + e * rows for e in range(episodes)])
        step = np.tile(np.arange(LENGTH), episodes)
        episode = np.repeat(np.arange(episodes), LENGTH)
        outcome = np.where((episode == 1) | (episode == 2), Outcome.SUCCESS, Outcome.FAILURE)
        self.samples_of = SimpleNamespace(
            start=start,
            bootstrap=start + np.minimum(3, LENGTH - step),
            episode=episode,
            episodes=list(range(episodes)),
            fragment=episode,
            train_critic=np.ones(len(start), bool),
            source=np.full(len(start), int(Source.POLICY)),
            outcome=outcome,
            chunk_return=np.full(len(start), -0.03),
            bootstrap_discount=np.where(LENGTH - step > 3, 0.97, 0.0),
            return_to_go=np.array(returns)[episode],
        )
        self.samples_of = _Sized(self.samples_of.__dict__)
        position = np.tile(np.linspace(0, 1, rows), episodes)[:, None]
        self.ticks = len(position)
        self.store = SimpleNamespace(
            root="line",
            arrays={"state": position, "object_state": np.ones_like(position)},
            episodes=[SimpleNamespace(episode_id=f"e{n}", start=n * rows, steps=LENGTH) for n in range(episodes)],
            outcome=lambda n: Outcome.SUCCESS if n in (1, 2) or n > 3 else Outcome.FAILURE,
        )

    def observe(self, rows):
        return {"state": torch.from_numpy(self.store.arrays["state"][rows.numpy()])}


class _Sized(SimpleNamespace):
    def __init__(self, facts):
        super().__init__(**facts)

    def __len__(self):
        return len(self.start)


def test_the_best_stretches_near_by_are_found_one_per_fragment():
    found = from_here(Line(), 0, 4, reach=0.2, top_share=1.0)
    assert [(s.number, s.step) for s in found] == [(1, 4), (2, 4), (3, 4)]
    assert found[0].value == pytest.approx(-0.03 + 0.97 * -0.2)
    assert (found[0].distance, found[0].outcome, found[0].source) == (0.0, "success", "policy")
    assert [s.number for s in from_here(Line(), 0, 4, reach=0.2, top_share=0.3)] == [1]


def test_stretches_are_ranked_by_a_critics_value_where_they_end():
    def value(index):
        return np.where(np.isin(index // LENGTH, [3]), -0.1, -0.9)

    found = from_here(Line(), 0, 4, reach=0.2, top_share=0.4, end_value=value)
    assert [(s.number, round(s.value, 4)) for s in found] == [(3, -0.127), (1, -0.903)]


def test_an_end_that_nobody_knows_does_not_count_and_a_terminal_one_is_worth_nothing_more():
    line = Line((np.nan, np.nan, -0.5, -0.8))
    assert [s.number for s in from_here(line, 0, 4, reach=0.2, top_share=1.0)] == [2, 3]
    last = from_here(line, 0, 11, reach=0.05, top_share=1.0)
    assert [s.value for s in last] == pytest.approx([-0.03] * 3)


def test_where_is_here():
    with pytest.raises(AloeError, match="has 4 episodes, numbered from 0; there is no 4"):
        from_here(Line(), 4, 0)
    with pytest.raises(AloeError, match=r"observations 0 \.\. 12, not 13"):
        from_here(Line(), 0, 13)
    assert episode_number(["ab", "ac", "b"], "b") == 2
    assert episode_number(["ab", "ac", "b"], "1") == 1
    with pytest.raises(AloeError, match="2 of 3 episodes are called 'a'"):
        episode_number(["ab", "ac", "b"], "a")


def test_progress_is_learned_from_successes_and_orders_those_held_out():
    line = Line((-0.9, -0.2, -0.5, -0.8, -0.3, -0.3))
    episodes = success_features(line, frames=8)
    assert [len(e) for e in episodes] == [8] * 4
    _, found = train_progress(episodes, steps=60)
    assert (found.train, found.held_out) == (3, 1)
    assert found.voc > 0.9
