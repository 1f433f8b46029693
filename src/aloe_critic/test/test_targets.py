"""Targets against closed forms, including the acceptance cases of the methods they are taken from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aloe_critic import targets

GAMMA = 0.99
G5 = GAMMA**5


def test_discounted_sum_stops_at_the_mask():
    rewards = torch.full((2, 5), -0.1, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.float64)
    got = targets.discounted_sum(rewards, mask, GAMMA)
    assert got.tolist() == pytest.approx([-0.1 * (1 - G5) / (1 - GAMMA), -0.1 - 0.099])


def test_terminal_has_no_bootstrap_and_truncation_has():
    chunk_return = torch.tensor([-1.0, -1.0])
    bootstrap_discount = torch.tensor([0.0, G5])  # terminated, truncated
    target, info = targets.td_target(chunk_return, bootstrap_discount, torch.tensor([math.inf, -2.0]))
    assert target.tolist() == pytest.approx([-1.0, -1.0 - 2 * G5])
    assert info["bootstrap_share"].item() == 0.5


def test_no_gradient_flows_through_a_target():
    value = torch.zeros(3, requires_grad=True)
    target, _ = targets.td_target(torch.ones(3), torch.full((3,), G5), value)
    assert not target.requires_grad


def test_one_step_td_is_the_case_n_1():
    reward, value = torch.tensor([-0.3]), torch.tensor([2.0])
    target, _ = targets.td_target(
        targets.discounted_sum(reward[:, None], torch.ones(1, 1), GAMMA), torch.tensor([GAMMA]), value
    )
    assert target.item() == pytest.approx(-0.3 + GAMMA * 2.0)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6))
def test_reductions_are_ordered(heads):
    q = torch.tensor([heads], dtype=torch.float64)
    low, mean, lower = (targets.reduce_heads(q, how).item() for how in ("min", "mean", "mean_minus_std"))
    assert low <= mean + 1e-9
    assert lower <= mean + 1e-9
    assert mean == pytest.approx(sum(heads) / len(heads), abs=1e-9)


def test_mean_minus_std_in_closed_form():
    assert targets.reduce_heads(torch.tensor([[0.0, 4.0]]), "mean_minus_std").item() == 0.0
    assert targets.reduce_heads(torch.tensor([[0.0, 4.0]]), "mean_minus_std", std_weight=0.5).item() == 1.0
    with pytest.raises(ValueError, match="not one of: min, mean"):
        targets.reduce_heads(torch.zeros(1, 2), "max")  # type: ignore[arg-type]


def minimise(values: torch.Tensor, expectile: float) -> float:
    """The V that minimises the expectile loss against equally likely `values`."""
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [v], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss, _ = targets.expectile_loss(values - v, expectile)
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    return v.item()


def test_expectile_of_a_coin():
    """IQL's case: returns {0, 1} with P(1) = .25 and tau = .9 have V = .75."""
    assert minimise(torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64), 0.9) == pytest.approx(0.75, abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_expectile_one_half_is_the_mean(values):
    assert minimise(torch.tensor(values, dtype=torch.float64), 0.5) == pytest.approx(
        sum(values) / len(values), abs=1e-5
    )


@pytest.mark.parametrize(("share", "expected"), [(0.0, -0.2523520), (0.5, -0.0383792), (1.0, 0.1755935)])
def test_bee_on_two_states(share, expected):
    """s0 -- five steps of reward -.1 --> s1; there `bad` ends with 0 and `good` with 1; replay 50/50, pi(good) = .25, tau = .7."""
    q_bad_good = torch.tensor([0.0, 1.0], dtype=torch.float64)
    replay_value = torch.tensor([minimise(q_bad_good, 0.7)], dtype=torch.float64)
    policy_value = (torch.tensor([0.75, 0.25], dtype=torch.float64) * q_bad_good).sum()[None]
    chunk_return = targets.discounted_sum(torch.full((1, 5), -0.1, dtype=torch.float64), torch.ones(1, 5), GAMMA)
    target, _ = targets.td_target(
        chunk_return, torch.tensor([G5], dtype=torch.float64), targets.blend(policy_value, replay_value, share)
    )
    assert target.item() == pytest.approx(expected, abs=1e-6)


def test_blend_is_bit_identical_at_its_ends():
    policy, replay = torch.randn(100), torch.randn(100)
    assert torch.equal(targets.blend(policy, replay, 0.0), policy)
    assert torch.equal(targets.blend(policy, replay, 1.0), replay)


def test_uncertainty_weight_of_two_targets():
    """UWAC's case: targets 0 (Var 0) and 1 (Var 1), beta = .5: a constant Q ends at .268941 = w1^2 / (1 + w1^2)."""
    from aloe_critic.losses import critic_loss

    weight = targets.uncertainty_weight(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5)
    q = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([q], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss, _ = critic_loss(q.expand(2, 1), torch.tensor([0.0, 1.0], dtype=torch.float64), weight)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert q.item() == pytest.approx(0.268941, abs=1e-6)


def test_uncertainty_weight_forms_are_clipped():
    variance = torch.tensor([0.0, 0.5, 2.0])
    assert targets.uncertainty_weight(variance, 1.0, "inverse").tolist() == pytest.approx([1.0, 1.0, 0.5])
    assert targets.uncertainty_weight(variance, 1.0, "exp").tolist() == pytest.approx(
        [1.0, math.exp(-0.5), math.exp(-2)]
    )


def test_polyak():
    online, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    torch.nn.init.constant_(online.weight, 1.0)
    torch.nn.init.constant_(target.weight, 0.0)
    for _ in range(3):
        targets.polyak_(target, online, 0.1)
    assert target.weight.detach().flatten().tolist() == pytest.approx([1 - 0.9**3] * 2)
