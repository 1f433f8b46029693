"""The related methods on cases with closed-form answers."""

import math

import numpy as np
import pytest
import torch

from aloe_core.errors import AloeError
from aloe_critic.estimators import density_log_ratio
from aloe_critic.ope import Refused
from aloe_critic.related import adaptation, density_ratio, ota, pessorl, variance_aware, vita, vlearn

GAMMA = 0.99


def test_ota_value_of_a_long_way():
    assert ota.distance_value(100, 10, GAMMA) == pytest.approx(-9.561792, abs=1e-6)
    value = torch.zeros(11)  # states 0, 10, .. 100 steps from the goal
    for _ in range(20):
        value = ota.option_target(torch.cat([value[:1], value[:-1]]), torch.arange(11) == 0, GAMMA)
    assert value[10].item() == pytest.approx(-9.561792, abs=1e-5)


@pytest.mark.parametrize(("distance", "options"), [(0, 0), (1, 1), (10, 1), (11, 2), (95, 10), (101, 11)])
def test_ota_counts_the_last_option_as_a_whole_one(distance, options):
    assert ota.distance_value(distance, 10, GAMMA) == pytest.approx(-(1 - GAMMA**options) / (1 - GAMMA))
    value = torch.zeros(distance + 1, dtype=torch.float64)
    reached = torch.arange(distance + 1) == 0
    following = (torch.arange(distance + 1) - 10).clamp(min=0)  # an option ends at the goal at the latest
    for _ in range(options + 1):
        value = ota.option_target(value[following], reached, GAMMA)
    assert value[distance].item() == pytest.approx(ota.distance_value(distance, 10, GAMMA))


def test_ota_keeps_the_order_of_ten_thousand_steps():
    near, far = 9_000, 10_000
    per_step = [-(1 - GAMMA**d) / (1 - GAMMA) for d in (near, far)]
    per_option = [ota.distance_value(d, 100, GAMMA) for d in (near, far)]
    assert np.float32(per_step[0]) == np.float32(per_step[1])
    assert np.float32(per_option[0]) > np.float32(per_option[1])
    assert ota.ordered_share(np.array([-3.0, -2.0, -1.0])) == 1.0
    assert ota.ordered_share(np.array([-1.0, -1.0])) == 0.5


def test_pessorl_gap():
    value, zeta = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    gap, info = pessorl.state_gap(value, 4 * zeta, value[:2])
    assert info["ood_soft_max"].item() == pytest.approx(1.549691, abs=1e-6)
    assert gap.item() == pytest.approx(1.049691, abs=1e-6)
    assert info["ood_excess"].item() == pytest.approx(1.5)
    assert pessorl.action_gap(torch.tensor([1.0, 3.0]), torch.tensor([1.0])).item() == 1.0


def test_pessorl_dual_settles_where_the_gap_meets_its_budget():
    log_eps = torch.zeros((), dtype=torch.float64)
    for _ in range(2000):
        gap = 2.0 - log_eps.exp()  # a gap that shrinks with the penalty
        log_eps = pessorl.dual_step(log_eps, gap, budget=0.5, rate=0.05)
    assert 2.0 - log_eps.exp().item() == pytest.approx(0.5, abs=1e-6)
    for _ in range(2000):  # a budget that cannot be met
        log_eps = pessorl.dual_step(log_eps, torch.tensor(1.0), budget=0.5, rate=0.05, limit=10.0)
    assert log_eps.exp().item() == pytest.approx(10.0)


def test_pessorl_weighs_by_shares_of_the_disagreement():
    value, data = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    u = torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64)
    gaps = [pessorl.state_gap(value, scale * u, data)[0].item() for scale in (1.0, 0.01, 100.0)]
    assert gaps == pytest.approx([math.log(0.75 * math.e + 0.25 * math.e**2)] * 3)
    uniform = pessorl.state_gap(value, torch.zeros(3, dtype=torch.float64), data)[0].item()
    assert uniform == pytest.approx(math.log((1 + math.e + math.e**2) / 3))
    shifted = pessorl.state_gap(value - 7, u, data - 7)[0].item()
    assert shifted == pytest.approx(gaps[0])  # only the scale of values matters, not where they begin


def test_pessorl_perturbs_by_the_spread_of_the_data():
    data = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0])
    moved = pessorl.perturbed(data, 0.5, torch.Generator().manual_seed(1)) - data
    assert moved.std(dim=0).tolist() == pytest.approx([0.5, 5.0], rel=0.05)


def test_vlearn_learns_the_value_of_the_overlap():
    policy, behaviour, returns = (torch.tensor(x, dtype=torch.float64) for x in ([0.9, 0.1], [0.5, 0.5], [1.0, 0.0]))
    assert vlearn.fixed_point(policy, behaviour, returns, limit=math.inf).item() == pytest.approx(0.9)
    assert vlearn.fixed_point(policy, behaviour, returns).item() == pytest.approx(0.8333333, abs=1e-6)
    value = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.5)
    for _ in range(200):  # the behaviour draws both chunks equally often
        loss, info = vlearn.truncated_value_loss(value.expand(2), returns, policy / behaviour)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert value.item() == pytest.approx(0.8333333, abs=1e-6)
    assert info["overlap"].item() == pytest.approx(1 - 0.4)  # one minus the total variation
    assert (0.5 * policy / behaviour).clamp(max=0.5) @ returns == pytest.approx(
        0.5
    )  # what weighting the target alone would give


def test_vlearns_fixed_point_moves_with_the_limit_from_the_behaviours_value_to_the_policys():
    policy, behaviour, returns = (
        torch.tensor(x, dtype=torch.float64) for x in ([0.7, 0.2, 0.1], [0.2, 0.3, 0.5], [1.0, 0.5, 0.0])
    )
    points = [vlearn.fixed_point(policy, behaviour, returns, limit).item() for limit in (1e-6, 0.5, 1.0, 2.0, 3.5, 9.0)]
    assert points[0] == pytest.approx((behaviour * returns).sum().item())
    assert points[-1] == points[-2] == pytest.approx((policy * returns).sum().item())
    assert points == sorted(points)
    ratio = torch.tensor([0.0, 0.0])  # no overlap: nothing is learned
    loss, info = vlearn.truncated_value_loss(torch.ones(2, requires_grad=True), torch.zeros(2), ratio)
    assert (loss.item(), info["overlap"].item()) == (0.0, 0.0)


def test_a_classifier_finds_the_ratio_of_two_sources():
    """Chunks 0 and 1, drawn by the policy with (.9, .1) and by the recording with (.5, .5); one pair of logits per chunk."""
    policy, data = torch.tensor([0] * 9 + [1]), torch.tensor([0] * 5 + [1] * 5)
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = vlearn.classified_ratio(logits[policy], logits[data])[1]
        loss.backward()
        return loss

    optimizer.step(closure)
    ratio, _, info = vlearn.classified_ratio(logits[policy], logits[data])
    assert ratio[[0, 9]].tolist() == pytest.approx([1.8, 0.2], abs=1e-5)
    assert info["ratio_mean"].item() == pytest.approx(1.0, abs=1e-5)
    assert ratio.clamp(max=1).mean().item() == pytest.approx(0.6, abs=1e-5)


def test_piece_means_count_executed_steps_only():
    chunk = torch.arange(8.0).view(1, 8, 1)
    means, seen = vlearn.piece_means(chunk, torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(), 2)
    assert means.squeeze().tolist() == [1.5, 4.0]
    assert seen.tolist() == [[True, True]]
    assert vlearn.piece_means(chunk, torch.zeros(1, 8).bool(), 2)[1].tolist() == [[False, False]]


def test_variance_aware_weights():
    phi = np.array([[1, 0], [0, 1], [0.5, 0.5]])
    target, variance = np.array([3.0, 1.0, 3.0]), np.array([4.0, 0.0, 2.0])

    def solve(sigma):
        return variance_aware.weighted_ridge(phi, target, sigma).weights

    floor = variance_aware.floor_variance
    assert solve(floor(variance, 1.0)) == pytest.approx([3.526316, 1.210526], abs=1e-6)
    assert solve(floor(variance, 1.0, add_floor=False)) == pytest.approx([3.615385, 1.153846], abs=1e-6)
    assert solve(1.0) == pytest.approx([10 / 3, 4 / 3])
    with pytest.raises(AloeError, match="do not determine 2 weights"):
        variance_aware.weighted_ridge(phi[:1], target[:1])


def test_variance_aware_value_of_a_chain():
    """Two states: s0 costs 1 and leads to s1, s1 costs 1 and ends; plus a state whose target is noisy."""
    generator = np.random.default_rng(0)
    where = generator.integers(2, size=4000)
    phi, next_phi = np.eye(2)[where], np.tile([0.0, 1.0], (4000, 1))
    discount = np.where(where == 0, 0.9, 0.0)
    chunk_return = -1 + generator.normal(0, 0.1, 4000)
    data = variance_aware.Transitions(phi, chunk_return, discount, next_phi, np.arange(4000))
    value, variance = variance_aware.variance_aware_value(
        data.of(np.arange(2000)), data.of(np.arange(2000, 4000)), 1e-6
    )
    assert value.weights == pytest.approx([-1.9, -1.0], abs=0.02)
    assert variance == pytest.approx(0.02)  # V(s') is certain: the floor, twice
    mean, error = value.predict(np.eye(2))
    assert mean == pytest.approx(value.weights)
    assert (error > 0).all()


def test_the_interval_of_a_linear_value_counts_episodes_not_chunks():
    """Ten chunks of an episode with one and the same return: as uncertain as one, s / sqrt(episodes)."""
    generator = np.random.default_rng(0)
    returns = generator.normal(-0.5, 0.2, 50)
    episode = np.repeat(np.arange(50), 10)
    ones = np.ones((500, 1))
    data = variance_aware.Transitions(ones, returns[episode], np.zeros(500), ones, episode)
    value, _ = variance_aware.variance_aware_value(data, data, ridge=0.0)
    mean, error = value.predict(np.ones((1, 1)))
    assert mean[0] == pytest.approx(returns.mean())
    assert error[0] == pytest.approx(returns.std(ddof=1) / math.sqrt(50))


def test_linear_fitted_q_that_does_not_settle_is_refused():
    """Two states that share a feature, 1 and 2: the textbook case in which fitted Q grows without end."""
    phi, following = np.array([[1.0], [1.0]]), np.array([[2.0], [2.0]])
    data = variance_aware.Transitions(phi, np.full(2, -1.0), np.full(2, 0.9), following, np.arange(2))
    with pytest.raises(Refused, match="does not settle"):
        variance_aware.variance_aware_value(data, data, ridge=0.0, add_floor=False)


def test_conditional_variance_finds_the_noisy_state():
    generator = np.random.default_rng(1)
    where = generator.integers(2, size=4000)
    next_value = np.where(where == 0, generator.normal(0, 2.0, 4000), -1.0)
    variance = variance_aware.conditional_variance(np.eye(2)[where], next_value, np.eye(2), 1e-6, 0.01, add_floor=False)
    assert variance == pytest.approx([4.0, 0.01], rel=0.1)


def test_estimated_behaviour_beats_the_true_one():
    """30 x L with returns that sum to 6, 10 x R to 8; the evaluation policy draws L with .25 and R with .75."""
    left = np.arange(40) < 30
    returns = np.where(left, 6 / 30, 8 / 10)
    policy = np.where(left, 0.25, 0.75)
    estimated = density_ratio.ratio_value(policy, np.where(left, 30 / 40, 10 / 40), returns)
    assert estimated.value == pytest.approx(0.650)
    assert pytest.approx(0.650) == 0.25 * 6 / 30 + 0.75 * 8 / 10  # the plug-in estimate
    true = density_ratio.ratio_value(policy, np.full(40, 0.5), returns)
    assert true.value == pytest.approx(0.375)
    assert density_ratio.ratio_value(policy, np.full(40, 0.5), returns, self_normalised=True).value == pytest.approx(
        0.5
    )
    assert estimated.effective_samples == pytest.approx(17.142857, abs=1e-6)
    assert true.effective_samples == pytest.approx(30.0)
    with pytest.raises(AloeError, match=r"only 17\.1 effective samples of 40"):
        density_ratio.ratio_value(policy, np.where(left, 0.75, 0.25), returns, min_effective=20)
    with pytest.warns(UserWarning, match="all ratios are 1"):
        density_ratio.ratio_value(policy, policy, returns)
    clipped = density_ratio.ratio_value(policy, np.where(left, 0.75, 0.25), returns, clip=1.0)
    assert clipped.value == pytest.approx((6 / 3 + 8) / 40)
    with pytest.raises(AloeError, match=r"only 0\.0 effective samples"):
        density_ratio.ratio_value(np.zeros(40), policy, returns)


def test_densities_fitted_to_the_same_pairs_warn():
    generator = np.random.default_rng(0)
    state, chunk = generator.normal(size=(60, 2)), generator.normal(size=(60, 3))
    log_ratio = density_log_ratio(state, chunk, chunk, np.full(60, 2), np.arange(60))
    with pytest.warns(UserWarning, match="all ratios are 1"):
        density_ratio.ratio_value(np.exp(log_ratio), np.ones(60), np.ones(60))


def test_gaussian_densities_tell_sources_apart():
    generator = np.random.default_rng(0)
    state = generator.normal(size=(500, 3))
    chunk = state @ generator.normal(size=(3, 2)) + 0.1 * generator.normal(size=(500, 2))
    density = density_ratio.GaussianDensity.fit(state, chunk)
    assert density.log_density(state, chunk).mean() > density.log_density(state, chunk + 1).mean() + 10


def test_vita_memory_in_one_dimension():
    model = vita.ProgressValue(1, 1, rate=0.1)
    for layer in (model.key, model.query, model.content, model.read):
        torch.nn.init.ones_(layer.weight)
    values, losses = model(torch.ones(5, 1))
    assert values.tolist() == pytest.approx([0.2, 0.36, 0.488, 0.5904, 0.67232], abs=1e-6)
    assert losses[0].item() == 1.0
    loss, _ = vita.progress_loss(model, torch.ones(5, 1))
    loss.backward()
    assert model.initial.grad.abs().sum() > 0  # meta-training reaches the memory's start through the updates


def test_distances_and_values_are_inverse():
    assert adaptation.distance_to_value(50, GAMMA) == pytest.approx(-39.499393, abs=1e-6)
    assert adaptation.value_to_distance(adaptation.distance_to_value(50, GAMMA), GAMMA) == pytest.approx(50)
    assert adaptation.value_to_distance(-100.0, GAMMA) == math.inf
    assert adaptation.value_to_distance(-200.0, GAMMA) == math.inf
    assert adaptation.value_to_distance(0.0, GAMMA) == 0
    for distance in (0, 1, 1000):
        assert adaptation.value_to_distance(adaptation.distance_to_value(distance, GAMMA), GAMMA) == pytest.approx(
            distance
        )


def test_what_worked_from_here_is_near_and_good():
    states = np.array([[0.0], [0.1], [0.2], [5.0], [0.1]])
    found = adaptation.what_worked_from_here(
        np.zeros(1), states, np.array([-1.0, -0.2, -0.5, 0.0, -0.3]), np.zeros(5), reach=0.5, top_share=0.5
    )
    assert found.tolist() == [1, 4]
