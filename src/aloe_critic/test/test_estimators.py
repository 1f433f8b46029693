"""Linear and ratio estimates of a policy's value on episodes with a known answer: of two chunks, and of forty steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from critic_toys import CRITIC

from aloe_critic.commands.ope import lines
from aloe_critic.critic import ChunkCritic
from aloe_critic.estimators import _chunk_means, linear_value, ratio_estimate
from aloe_critic.evaluation import ESTIMATORS, Evaluation
from aloe_critic.ope import Refused, bootstrap_estimate, bootstrap_weighted

DISCOUNT = 0.9
HORIZON = 10


class Chunks:
    """Acts with chunks whose mean is normal around `shift`."""

    reads_images = False

    def __init__(self, shift):
        self.shift = shift

    def eval(self):
        return self

    def act(self, batch, generator):
        size = len(batch["state"])
        return (self.shift + torch.randn(size, 1, 1, generator=generator)).expand(-1, HORIZON, 2)


class TwoChunks:
    """Episodes of two chunks a ~ N(0, 1), each with the return -.5 + .1 a and noise; the second one is terminal. Three rows an episode."""

    def __init__(self, episodes=150, seed=0):
        g = torch.Generator().manual_seed(seed)
        size = 2 * episodes
        mean = torch.randn(size, generator=g)
        self.action = mean.view(-1, 1, 1).expand(-1, HORIZON, 2)
        self.chunk_return = -0.5 + 0.1 * mean + 0.05 * torch.randn(size, generator=g)
        first = torch.arange(size) % 2 == 0
        self.discount = torch.where(first, DISCOUNT, 0.0)
        self.state = torch.stack([first.float(), 0.1 * torch.randn(size, generator=g)], dim=1)
        self.start = torch.arange(size) + torch.arange(size) // 2
        self.bootstrap = self.start + 1
        self.ticks, self.return_range = 3 * episodes, (-2.0, 0.0)
        self.facts = SimpleNamespace(train_critic=torch.ones(size, dtype=torch.bool))
        returns = self.chunk_return + DISCOUNT * torch.where(first, self.chunk_return.roll(-1), 0.0)
        self.samples_of = Samples(
            start=self.start.numpy(),
            bootstrap=self.bootstrap.numpy(),
            episode=np.arange(size) // 2,
            terminal=~first.numpy(),
            truncated=np.zeros(size, bool),
            source=np.full(size, 2),
            return_to_go=returns.numpy(),
            horizon=HORIZON,
        )
        self.row_state = torch.zeros(self.ticks, 2)
        self.row_state[self.start] = self.state

    @property
    def starts(self):
        return self.start[::2]

    def observe(self, ticks):
        return {"state": self.row_state[ticks]}

    def samples(self, index):
        return {
            "state": self.state[index],
            "action": self.action[index],
            "action_mask": torch.ones(len(index), HORIZON, dtype=torch.bool),
            "chunk_return": self.chunk_return[index],
            "bootstrap_discount": self.discount[index],
            "next": self.observe(self.bootstrap[index]),
        }


class Samples(SimpleNamespace):
    def __len__(self):
        return len(self.start)


class Steps:
    """Episodes of 40 steps a ~ N(0, 1), each step with the reward .1 a and no discount. Chunks of up to 20 steps start at every step and are backed up over
    `backup`; those that are whole teach. 41 rows an episode.
    """

    length, horizon = 40, 20

    def __init__(self, backup, episodes=400):
        length, horizon = self.length, self.horizon
        self.steps = torch.randn(episodes, length, generator=torch.Generator().manual_seed(0))
        at = torch.arange(length).repeat(episodes)
        episode = torch.arange(episodes).repeat_interleave(length)
        to_end = length - at
        self.start = episode * (length + 1) + at
        self.bootstrap = self.start + to_end.clamp(max=backup)
        self.ticks = episodes * (length + 1)
        self.facts = SimpleNamespace(train_critic=to_end >= backup)
        rows = (at[:, None] + torch.arange(horizon)).clamp(max=length - 1)
        self.action = self.steps[episode[:, None], rows].unsqueeze(-1)
        self.action_mask = torch.arange(horizon) < to_end[:, None]
        to_go = 0.1 * self.steps.flip(1).cumsum(1).flip(1)
        self.samples_of = Samples(
            start=self.start.numpy(),
            bootstrap=self.bootstrap.numpy(),
            terminal=(to_end <= backup).numpy(),
            truncated=np.zeros(len(at), bool),
            source=np.full(len(at), 2),
            return_to_go=to_go.flatten().numpy(),
            horizon=horizon,
        )

    @property
    def starts(self):
        return self.start[:: self.length]

    def observe(self, ticks):
        return {"state": torch.zeros(len(ticks), 1)}

    def samples(self, index):
        seen = self.observe(index)
        return {**seen, "action": self.action[index], "action_mask": self.action_mask[index]}


class IndependentSteps:
    """Acts with steps a ~ N(`shift`, 1)."""

    reads_images = False

    def __init__(self, shift):
        self.shift = shift

    def eval(self):
        return self

    def act(self, batch, generator):
        return self.shift + torch.randn(len(batch["state"]), Steps.horizon, 1, generator=generator)


def truth(shift):
    return (1 + DISCOUNT) * (-0.5 + 0.1 * shift)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
def test_both_estimates_know_the_value_of_a_policy_that_others_recorded(shift):
    torch.manual_seed(0)
    replay, policy = TwoChunks(), Chunks(shift)
    linear = linear_value(replay, ChunkCritic(CRITIC), policy, replay.starts)
    ratio = ratio_estimate(replay, policy, replay.starts)
    assert linear.low <= truth(shift) <= linear.high
    assert linear.high - linear.low < 0.12
    assert ratio.value == pytest.approx(truth(shift), abs=0.05)
    assert ratio.low <= truth(shift) <= ratio.high
    assert ratio.episodes == linear.episodes == 150
    expected = 150 * np.exp(-2 * shift**2)  # two chunks of a normal moved by `shift` standard deviations
    assert ratio.effective == pytest.approx(expected, rel=0.4)


def test_policies_that_the_recording_does_not_show_are_refused():
    replay = TwoChunks(60)
    with pytest.raises(Refused, match="effective samples of 60"):
        ratio_estimate(replay, Chunks(4.0), replay.starts)
    few = TwoChunks(3)
    with pytest.raises(Refused, match="3 episodes do not give two halves"):
        linear_value(few, ChunkCritic(CRITIC), Chunks(0.0), few.starts)
    with pytest.raises(Refused, match=r"only .* effective chunks of 120, 500 are needed"):
        linear_value(replay, ChunkCritic(CRITIC), Chunks(0.0), replay.starts, least=500)
    replay.samples_of.return_to_go[:] = np.nan
    with pytest.raises(Refused, match="no episode has an outcome"):
        ratio_estimate(replay, Chunks(0.0), replay.starts)


@pytest.mark.parametrize("backup", [20, 10, 7, 5, 1])
def test_the_chunks_of_a_path_hold_every_step_of_its_episode_once(backup):
    replay = Steps(backup, episodes=3)
    of_path = (replay.start % 41 % backup == 0).nonzero().squeeze(1)
    _, recorded, _ = _chunk_means(replay, IndependentSteps(0.0), of_path, (0,))
    counts = (replay.bootstrap - replay.start)[of_path].view(3, -1).numpy()
    assert (counts.sum(axis=1) == Steps.length).all()
    sums = (counts * recorded.reshape(counts.shape)).sum(axis=1)
    assert sums == pytest.approx(replay.steps.sum(dim=1).numpy(), abs=1e-4)


@pytest.mark.parametrize("backup", [20, 10, 5])
def test_the_ratios_of_an_episode_do_not_depend_on_how_its_chunks_are_cut(backup):
    """Of T independent steps moved by s standard deviations exp(-T s^2) of the episodes are left, as if each step had its own ratio."""
    shift, replay = 0.1, Steps(backup)
    found = ratio_estimate(replay, IndependentSteps(shift), replay.starts)
    assert found.episodes == 400
    assert found.effective == pytest.approx(400 * np.exp(-Steps.length * shift**2), rel=0.15)
    assert found.low <= 0.1 * Steps.length * shift <= found.high


def test_a_protocol_without_a_critic_is_refused():
    """There no chunk is backed up to a later row, and a path would never end."""
    replay = TwoChunks(60)
    replay.facts.train_critic[:] = False
    replay.samples_of.bootstrap[:] = replay.samples_of.start
    replay.samples_of.terminal[:] = False
    with pytest.raises(Refused, match="the protocol lets no chunk teach a critic"):
        ratio_estimate(replay, Chunks(0.0), replay.starts)


def test_a_weighted_interval_leaves_out_what_has_no_weight():
    low, high = bootstrap_weighted(np.array([-1.0, -1.0, 5.0]), np.array([1.0, 2.0, 0.0]))
    assert (low, high) == (-1.0, -1.0)


def test_every_estimator_says_its_value_or_why_it_has_none():
    value = bootstrap_estimate(np.full(4, -0.5))
    found = Evaluation(
        "p", fitted_q=value, head_std=0.1, va_ope=value, refused={"dpe": "no overlap", "monte_carlo": "none"}
    )
    assert list(lines(found, list(ESTIMATORS))) == [
        "fitted Q -0.500 (95 % interval -0.500 .. -0.500, 4 episodes, effective sample size 4.0), head spread 0.100",
        "own episodes: refused, none",
        "linear, variance-aware -0.500 (95 % interval -0.500 .. -0.500, 4 episodes, effective sample size 4.0)",
        "estimated ratios: refused, no overlap",
    ]
    assert found.as_dict()["dpe"] is None
