"""Critic loss, advantage, weights and the weighted actor loss against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aloe_critic import losses


def test_critic_loss_is_the_mean_square_over_heads_that_share_a_target():
    q = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    loss, info = losses.critic_loss(q, torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx((0 + 4 + 4 + 0) / 4)
    assert info["td_error"].item() == pytest.approx(1.0)
    assert info["head_std"].item() == pytest.approx(1.0)


def test_critic_loss_leaves_the_target_alone():
    target = torch.ones(4, requires_grad=True)
    loss, _ = losses.critic_loss(torch.zeros(4, 2, requires_grad=True), target)
    loss.backward()
    assert target.grad is None


def test_advantage_compares_with_the_policys_own_chunks():
    got = losses.advantage(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [2.0, 4.0]]))
    assert got.tolist() == [0.5, -3.0]


def test_weight_of_no_advantage_is_one():
    assert losses.advantage_weight(torch.zeros(3), beta=0.3, clip=2.0).tolist() == [1.0, 1.0, 1.0]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3), st.floats(0, 5))
def test_weights_are_bounded_and_monotonic(advantage, beta, clip):
    a = torch.tensor([advantage, advantage + 1.0], dtype=torch.float64)
    low, high = losses.advantage_weight(a, beta, clip).tolist()
    assert math.exp(-clip) * (1 - 1e-12) <= low <= high <= math.exp(clip) * (1 + 1e-12)


def test_no_gradient_through_the_weights():
    a = torch.zeros(2, requires_grad=True)
    weight = losses.advantage_weight(a, 1.0, 1.0)
    flow = torch.ones(2, requires_grad=True)
    loss, _ = losses.weighted_flow_loss(flow, weight)
    loss.backward()
    assert not weight.requires_grad
    assert a.grad is None
    assert flow.grad.tolist() == [0.5, 0.5]


def test_weighted_flow_loss_scales_with_the_weights():
    flow = torch.tensor([1.0, 2.0])
    loss, info = losses.weighted_flow_loss(flow, torch.tensor([3.0, 0.0]))
    assert loss.item() == pytest.approx(1.5)
    assert info["weight_effective"].item() == pytest.approx(0.5)
    unweighted, _ = losses.weighted_flow_loss(flow, torch.ones(2))
    assert unweighted.item() == flow.mean().item()
