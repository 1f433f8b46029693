"""Off-policy evaluation: metrics against cases worked out by hand, estimates against known values."""

import math

import numpy as np
import pytest
import torch
from critic_toys import CRITIC, ToyReplay, toy_policy

from aloe_core.errors import AloeError
from aloe_critic import ope
from aloe_critic.critic import ChunkCritic


def test_spearman_with_ties_and_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    assert ope.spearman([1, 2, 3], [10, 20, 25]) == pytest.approx(1.0)
    assert ope.spearman([3, 2, 1], [10, 20, 25]) == pytest.approx(-1.0)
    g = np.random.default_rng(0)
    a, b = g.integers(5, size=30), g.integers(5, size=30)
    assert ope.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(ope.spearman([1, 1], [1, 2]))


def test_regret_is_normalised_by_the_span_of_values():
    truth = [0.0, 0.5, 1.0]
    assert ope.regret_at_k([3, 2, 1], truth, 1) == 1.0
    assert ope.regret_at_k([3, 2, 1], truth, 2) == 0.5
    assert ope.regret_at_k([1, 2, 3], truth, 1) == 0.0
    assert ope.regret_at_k([1, 2], [0.7, 0.7], 1) == 0.0


def test_bootstrap_interval_covers_the_mean():
    g = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        estimate = ope.bootstrap_estimate(g.normal(0.3, 1.0, size=60), resamples=500)
        hits += estimate.low <= 0.3 <= estimate.high
    assert hits >= 88
    constant = ope.bootstrap_estimate(np.full(5, -0.5))
    assert (constant.value, constant.low, constant.high) == (-0.5, -0.5, -0.5)
    with pytest.raises(AloeError, match="at least one episode"):
        ope.bootstrap_estimate(np.array([]))


def test_calibration_of_a_perfect_predictor_is_the_diagonal():
    values = np.linspace(-1, 0, 40)
    curve = ope.calibration_curve(values, values, bins=4)
    assert [count for *_, count in curve] == [10] * 4
    assert all(predicted == actual for predicted, actual, _ in curve)


def test_action_auc_counts_ties_half():
    assert ope.action_auc(np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])) == 0.5


def test_value_order():
    assert ope.value_order_correlation(np.array([-3.0, -2.0, -1.0])) == pytest.approx(1.0)


def test_state_values_average_the_policys_chunks():
    class Constant(ChunkCritic):
        def forward(self, batch):
            return batch["state"][:, :1].expand(-1, 2) + torch.tensor([0.0, 1.0])

    seen = ToyReplay().observe(torch.arange(7))
    values = ope.state_values(Constant(CRITIC), toy_policy(), seen, 3, (0,))
    assert torch.allclose(values, seen["state"][:, 0])


def test_compare_needs_policies_known_to_both():
    scores = ope.compare({"a": -1.0, "b": -0.5, "c": -0.9}, {"a": -1.0, "b": -0.4})
    assert scores.pop("calibration") == [(-1.0, -1.0, 1), (-0.5, -0.4, 1)]
    assert scores == pytest.approx(
        {"policies": 2, "spearman": 1.0, "regret_at_1": 0.0, "regret_at_2": 0.0, "absolute_error": 0.05}
    )
    with pytest.raises(AloeError, match="two policies or more"):
        ope.compare({"a": 1.0}, {"a": 1.0})
