"""The critic network: shapes, masking, ensembles, and what it learns about chunks outside its data."""

import pytest
import torch

from aloe_core.errors import AloeError
from aloe_critic.critic import ChunkCritic, CriticConfig, EnsembleLinear, pessimistic, repeat_batch, small
from aloe_critic.losses import critic_loss


def batch(size=3, horizon=10, generator=None):
    g = generator or torch.Generator().manual_seed(0)
    return {
        "state": torch.randn(size, 4, generator=g),
        "object_state": torch.randn(size, 7, generator=g),
        "features": {camera: torch.randn(size, 3, 5, generator=g) for camera in ("high", "low")},
        "instruction": torch.randn(size, 6, generator=g),
        "action": torch.randn(size, horizon, 2, generator=g),
        "action_mask": torch.ones(size, horizon, dtype=torch.bool),
    }


def apply(function, samples):
    """`function` of every floating-point tensor, masks untouched unless it only selects."""
    out = {}
    for key, value in samples.items():
        if isinstance(value, dict):
            out[key] = apply(function, value)
        else:
            out[key] = value if value.dtype == torch.bool and function is torch.Tensor.double else function(value)
    return out


def config(**changes):
    inputs = {
        "state_dim": 4,
        "object_dim": 7,
        "action_dim": 2,
        "horizon": 10,
        "cameras": ("high", "low"),
        "feature_tokens": 3,
        "feature_dim": 5,
        "instruction_dim": 6,
    }
    return small(**{**inputs, "width": 16, "attention_heads": 2, **changes})


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("outputs", [1, 11])
@pytest.mark.parametrize("horizon", [0, 5, 10])
def test_shapes(separate, outputs, horizon):
    critic = ChunkCritic(config(heads=3, separate_trunks=separate, outputs=outputs, horizon=horizon))
    values = critic(batch())
    assert values.shape == ((3, 3) if outputs == 1 else (3, 3, 11))


STATES = {"cameras": (), "feature_tokens": 1, "feature_dim": 0, "network": "mlp", "steps_per_token": 1}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("horizon", [0, 1, 5, 10])
def test_an_mlp_of_states_sees_order_and_mask(separate, horizon):
    critic = ChunkCritic(config(heads=3, separate_trunks=separate, horizon=horizon, **STATES)).double()
    one = apply(torch.Tensor.double, batch())
    values = critic(one)
    assert values.shape == (3, 3)
    assert len(set(values[0].tolist())) == 3  # the heads start apart
    swapped = {**one, "action": one["action"].flip(1)}
    assert torch.equal(critic(swapped), values) == (horizon == 0)
    shorter = {**one, "action_mask": one["action_mask"].clone()}
    shorter["action_mask"][:, 3:] = 0
    hidden = {**shorter, "action": shorter["action"].clone()}
    hidden["action"][:, 3:] = 1e3
    assert torch.equal(critic(shorter), critic(hidden))
    assert torch.equal(critic(shorter), values) == (horizon < 4)
    critic(one).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())


def test_an_mlp_refuses_cameras():
    with pytest.raises(AloeError, match="mlp"):
        config(network="mlp")


def test_the_default_has_the_papers_size():
    critic = ChunkCritic(CriticConfig(state_dim=14, action_dim=14))
    assert sum(p.numel() for p in critic.parameters()) == pytest.approx(5e6, rel=0.05)


@pytest.mark.parametrize("steps_per_token", [1, 5])
def test_masked_steps_cannot_be_seen(steps_per_token):
    critic = ChunkCritic(config(steps_per_token=steps_per_token)).double()
    one = apply(torch.Tensor.double, batch())
    one["action_mask"][:, 3:] = 0
    other = {**one, "action": one["action"].clone()}
    other["action"][:, 3:] = 1e3
    assert torch.equal(critic(one), critic(other))
    longer = {**one, "action_mask": one["action_mask"].clone()}
    longer["action_mask"][:, 3] = 1
    assert not torch.allclose(critic(one), critic(longer))


def test_a_critic_of_the_executed_prefix_ignores_the_rest():
    critic = ChunkCritic(config(horizon=5))
    one = batch()
    other = {**one, "action": one["action"].clone()}
    other["action"][:, 5:] += 1
    assert torch.equal(critic(one), critic(other))


@pytest.mark.parametrize("separate", [False, True])
def test_samples_of_a_batch_do_not_mix(separate):
    critic = ChunkCritic(config(separate_trunks=separate)).double()
    everything = apply(torch.Tensor.double, batch(4))
    one = apply(lambda x: x[2:3], everything)
    assert torch.allclose(critic(everything)[2:3], critic(one), atol=1e-12)


def test_ensemble_linear_equals_a_loop_over_members():
    layer = EnsembleLinear(3, 4, 5).double()
    x = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    loop = torch.stack([x[e] @ layer.weight[e] + layer.bias[e] for e in range(3)])
    assert torch.allclose(layer(x), loop, atol=1e-12)


def test_separate_trunks_share_nothing():
    critic = ChunkCritic(config(heads=3, separate_trunks=True))
    critic(batch())[:, 1].sum().backward()
    for name, parameter in critic.named_parameters():
        used = parameter.grad.flatten(1).abs().sum(dim=1) > 0
        assert not used[0], name
        assert not used[2], name
        assert used[1] or "bias" in name, name


def test_heads_of_a_shared_trunk_differ():
    values = ChunkCritic(config(heads=4))(batch())
    assert (values.std(dim=1) > 1e-4).all()


def test_statistics_normalise_and_leave_constants_alone():
    critic = ChunkCritic(config())
    one = batch()
    before = critic(one)
    critic.set_statistics(state=(torch.full((4,), 2.0), torch.tensor([0.5, 0.5, 0.5, 0.0])))
    scale = torch.tensor([0.5, 0.5, 0.5, 1.0])
    assert torch.allclose(critic({**one, "state": one["state"] * scale + 2}), before, atol=1e-5)


def test_configuration_errors_name_the_key():
    with pytest.raises(AloeError, match="width 30"):
        config(width=30, attention_heads=4)
    with pytest.raises(AloeError, match="steps_per_token 4"):
        config(steps_per_token=4)
    with pytest.raises(AloeError, match="judges 10 action steps, this chunk has 7"):
        ChunkCritic(config())(batch(horizon=7))


def test_repeat_keeps_samples_together():
    repeated = repeat_batch({"x": torch.tensor([1, 2])}, 2)
    assert repeated["x"].tolist() == [1, 1, 2, 2]


def test_pessimism_costs_more_outside_the_support():
    """A toy with known support: chunks within a radius of 2, whose return depends on their direction alone, so that no trend leads outside. What holds there is
    that the heads disagree more, and that the minimum over them lies further below their mean. Whether it lies below the values inside is chance: that takes a
    penalty, see `test_pessorl_lowers_values_outside_the_data`."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    critic = ChunkCritic(small(state_dim=2, action_dim=2, horizon=5, heads=4, width=32, separate_trunks=True))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3)

    def chunks(radius):
        direction = torch.nn.functional.normalize(torch.randn(len(radius), 1, 2, generator=generator), dim=-1)
        return {"state": torch.zeros(len(radius), 2), "action": (radius * direction).expand(-1, 5, -1)}

    for _ in range(300):
        data = chunks(2 * torch.rand(128, 1, 1, generator=generator))
        loss, _ = critic_loss(critic(data), -(data["action"][:, 0, 0] > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        costs = []
        for radius in (1.0, 8.0):
            judged = chunks(torch.full((256, 1, 1), radius))
            costs.append((critic(judged).mean(dim=1) - pessimistic(critic, judged)).mean().item())
    inside, outside = costs
    assert inside < 0.02
    assert outside > 3 * inside
