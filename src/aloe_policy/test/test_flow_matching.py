"""The flow-matching convention, against fields known in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aloe_policy import flow_matching as fm

MEAN, STD = 1.5, 0.3


def gaussian_field(x: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
    """E[eps - a | x_eta = x] for a ~ N(MEAN, STD^2), eps ~ N(0, 1): the exact minimiser of the loss, by Gaussian conditioning."""
    eta = eta[:, None, None]
    variance = eta**2 * STD**2 + (1 - eta) ** 2
    residual = x - eta * MEAN
    noise = (1 - eta) / variance * residual
    action = MEAN + eta * STD**2 / variance * residual
    return noise - action


def noise(batch: int = 4000, horizon: int = 2, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, horizon, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("method", "steps", "tolerance"), [("euler", 400, 5e-3), ("midpoint", 60, 5e-4)])
def test_integrating_the_exact_field_of_a_gaussian_gives_that_gaussian(
    method: str, steps: int, tolerance: float
) -> None:
    start = noise()
    end = fm.integrate(gaussian_field, start, steps, method)
    # the probability flow of a Gaussian is linear: x_1 = MEAN + STD x_0
    assert (end - (MEAN + STD * start)).abs().max() < tolerance * 4


def test_the_sign_matters() -> None:
    wrong = fm.integrate(lambda x, eta: -gaussian_field(x, eta), noise(), 100)
    assert (wrong.mean() - MEAN).abs() > 1.0


def test_midpoint_is_of_second_order() -> None:
    start, exact = noise(100), MEAN + STD * noise(100)
    error = [(fm.integrate(gaussian_field, start, n, "midpoint") - exact).abs().max() for n in (20, 40)]
    assert error[0] / error[1] > 3.0


def test_straight_paths_are_integrated_exactly_in_one_step() -> None:
    action, start = noise(seed=1), noise()
    end = fm.integrate(lambda x, eta: fm.field_target(action, start), start, 1)
    torch.testing.assert_close(end, action)


@given(eta=st.floats(0.0, 0.99), seed=st.integers(0, 100))
def test_action_and_field_determine_each_other(eta: float, seed: int) -> None:
    action, eps = noise(2, seed=seed), noise(2, seed=seed + 1)
    time = torch.full((2,), eta, dtype=torch.float64)
    x = fm.interpolate(action, eps, time)
    field = fm.field_target(action, eps)
    torch.testing.assert_close(fm.action_from_field(x, field, time), action)
    torch.testing.assert_close(fm.field_from_action(x, action, time), field)


def test_path_starts_at_noise_and_ends_at_action() -> None:
    action, eps = noise(2, seed=1), noise(2)
    torch.testing.assert_close(fm.interpolate(action, eps, torch.zeros(2, dtype=torch.float64)), eps)
    torch.testing.assert_close(fm.interpolate(action, eps, torch.ones(2, dtype=torch.float64)), action)


def test_masked_rows_do_not_count_and_empty_samples_are_zero() -> None:
    error = torch.tensor([[[1.0], [100.0]], [[5.0], [7.0]], [[2.0], [4.0]]])
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    torch.testing.assert_close(fm.masked_mean_square(error, mask), torch.tensor([1.0, 0.0, 10.0]))


def test_guidance_weights_follow_the_paper() -> None:
    weights = fm.guidance_weights(horizon=10, frozen=3, known=7)
    assert weights[:3].eq(1).all()
    assert weights[7:].eq(0).all()
    soft = weights[3:7]
    assert (soft.diff() < 0).all()
    assert 0 < soft[-1] < soft[0] < 1
    c = (7 - 3) / (7 - 3 + 1)
    assert soft[0].item() == pytest.approx(c * (2.718281828**c - 1) / (2.718281828 - 1), rel=1e-5)


def correlated_field(horizon: int) -> fm.Field:
    """The exact field for chunks that are smooth in time: a ~ N(0, C) with C_ij = exp(-|i - j|^2 / 50)."""
    index = torch.arange(horizon, dtype=torch.float64)
    covariance = torch.exp(-((index[:, None] - index) ** 2) / 50) + 1e-4 * torch.eye(horizon, dtype=torch.float64)

    def field(x: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
        time = float(eta[0])
        total = time**2 * covariance + (1 - time) ** 2 * torch.eye(horizon, dtype=torch.float64)
        solved = torch.einsum("ij,bja->bia", torch.linalg.inv(total), x)
        return (1 - time) * solved - time * torch.einsum("ij,bja->bia", covariance, solved)

    return field


def test_a_chunk_continues_its_prefix_without_a_jump() -> None:
    horizon, frozen, known = 30, 5, 15
    field = correlated_field(horizon)
    running = fm.integrate(field, noise(1, horizon, 2, seed=5), 100)[0]
    prefix = running[:known]
    free = fm.integrate(field, noise(64, horizon, 2), 20)
    guided = fm.integrate_with_prefix(field, noise(64, horizon, 2), 20, prefix, frozen)
    torch.testing.assert_close(guided[:, :frozen], prefix[:frozen].expand(64, -1, -1))

    def seam(chunks: torch.Tensor) -> float:
        return (chunks[:, frozen] - prefix[frozen - 1]).abs().mean().item()

    assert seam(guided) < 0.2 * seam(free)
    soft = (guided[:, frozen:known] - prefix[frozen:]).abs().mean(dim=(0, 2))
    assert soft.mean() < 0.5 * (free[:, frozen:known] - prefix[frozen:]).abs().mean()
    tail = guided[:, -1].std(0)  # rows the prefix does not reach stay diverse
    assert (tail > 0.5).all()


def test_without_known_rows_guidance_changes_nothing() -> None:
    field = correlated_field(8)
    empty = torch.zeros(0, 2, dtype=torch.float64)
    torch.testing.assert_close(
        fm.integrate_with_prefix(field, noise(3, 8, 2), 10, empty, 0), fm.integrate(field, noise(3, 8, 2), 10)
    )
