"""PessORL, OTA and Vlearn as methods of the learner: closed forms, and one improvement each that is resumed."""

import math

import pytest
import torch
from critic_toys import CRITIC, ToyReplay, toy_learner

from aloe_core.errors import AloeError
from aloe_critic.learner import STATE_FILE, Cancelled
from aloe_critic.methods import make_method
from aloe_critic.methods.pessorl import moved
from aloe_critic.metrics import read_metrics
from aloe_critic.targets import td_target
from aloe_policy.training_state import read_state

LOGGED = {
    "pessorl": {"action_gap", "state_gap", "ood_excess", "eps"},
    "ota": {"above_share"},
    "vlearn": {"overlap", "ratio_mean", "told_apart"},
}


def make(name, **options):
    torch.manual_seed(0)
    return make_method(name, CRITIC, options)


def toy_batch(size=32):
    replay, g = ToyReplay(), torch.Generator().manual_seed(0)
    batch = replay.samples(torch.arange(size))
    batch["bootstrap_discount"] = torch.where(torch.arange(size) % 2 == 0, 0.9, 0.0)
    for key in ("policy_action", "next_policy_action"):
        batch[key] = torch.randn(size, 1, 10, 2, generator=g)
    return batch


@pytest.mark.parametrize("method", LOGGED)
def test_one_improvement_resumes_bit_by_bit(tmp_path, method):
    steps = {"critic_steps": 6, "actor_steps": 6, "checkpoint_every": 2, "log_every": 2}
    for stop in (("critic", 5), ("actor", 3)):
        with pytest.raises(Cancelled):
            toy_learner(tmp_path / "stopped", method, lambda p, s=stop: (p.stage, p.step) != s, **steps).run()
    toy_learner(tmp_path / "stopped", method, **steps).run()
    toy_learner(tmp_path / "whole", method, **steps).run()
    (tensors, facts), (others, other_facts) = (read_state(tmp_path / n / STATE_FILE) for n in ("whole", "stopped"))
    assert (facts, tensors.keys()) == (other_facts, others.keys())
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "stopped")
    critic = [row for row in read_metrics(tmp_path / "whole") if row["stage"] == "critic"]
    assert all(LOGGED[method] <= row.keys() for row in critic)
    for buffer in {"pessorl": ["method/log_eps"], "vlearn": ["method/overlap"]}.get(method, []):
        assert tensors[buffer] != make(method).state_dict()[buffer.removeprefix("method/")]


def test_pessorl_of_a_constant_critic_is_half_the_td_loss():
    method, batch = make("pessorl", complete_share=0.0), toy_batch()
    torch.nn.init.zeros_(method.critic.last.weight)
    torch.nn.init.zeros_(method.critic.last.bias)
    loss, info = method(batch)
    target = td_target(batch["chunk_return"], batch["bootstrap_discount"], method._next_value(batch)[0])[0]
    assert loss.item() == pytest.approx(0.5 * target.square().mean().item(), rel=1e-5)
    assert (info["action_gap"].item(), info["ood_excess"].item()) == (0.0, 0.0)
    method.after_step()  # a gap of 0 leaves .02 of the budget: eps shrinks
    assert method.log_eps.item() == pytest.approx(math.log(0.1) - 0.1 * 0.02, abs=1e-6)
    method._gap = torch.tensor(0.52)
    method.after_step()
    assert method.log_eps.item() == pytest.approx(math.log(0.1) - 0.1 * 0.02 + 0.1 * 0.5, abs=1e-6)


def test_pessorl_is_in_shares_of_the_range_of_returns():
    gaps = []
    for width in (1.0, 4.0):
        torch.manual_seed(0)
        method = make_method("pessorl", CRITIC, {}, (-width, 0.0))
        torch.manual_seed(1)
        _, info = method(toy_batch())
        gaps.append(info["action_gap"].item())
    assert gaps[0] == pytest.approx(4 * gaps[1], rel=1e-4)


def test_pessorl_lowers_values_outside_the_data():
    """The state gap alone, from the same start: values of moved states fall against those of the data."""
    excess = {}
    for eps in (0.0, 3.0):
        method, batch = make("pessorl", alpha=0.0, eps_start=max(eps, 1e-9), perturbation=3.0), toy_batch()
        optimizer = torch.optim.Adam(method.critic.parameters(), lr=1e-3)
        for step in range(25):
            torch.manual_seed(step)
            loss, info = method(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        excess[eps] = info["state_gap"].item()
    assert excess[3.0] < excess[0.0] - 0.02


def test_only_what_is_observed_of_the_scene_is_moved():
    observed = {
        "state": torch.randn(50, 2),
        "instruction": torch.randn(50, 3),
        "features": {"top": torch.randn(50, 4, 5)},
    }
    other = moved(observed, 0.5)
    assert torch.equal(other["instruction"], observed["instruction"])
    assert (other["state"] != observed["state"]).all()
    assert (other["features"]["top"] != observed["features"]["top"]).all()
    assert all(torch.equal(x, y) for x, y in zip(moved(observed, 0.0)["state"], observed["state"], strict=True))


def test_ota_of_a_long_way_on_the_replays_batches():
    """States 0 .. 10 options from the goal: V = -(1 - gamma^10), the paper's -9.561792 times 1 - gamma; a failure is -1."""
    method = make("ota")
    batch = {
        "chunk_return": torch.full((11,), -0.3),
        "bootstrap_discount": torch.tensor([0.0] + [0.6] * 9 + [0.0]),
        "success": torch.tensor([True] + [False] * 10),
    }
    options = method.in_options(batch)
    value = torch.zeros(11)
    for _ in range(20):
        value = td_target(options["chunk_return"], options["bootstrap_discount"], torch.cat([value[:1], value[:-1]]))[0]
    assert 100 * value[9].item() == pytest.approx(-9.561792, abs=1e-4)
    assert value[10].item() == pytest.approx(-1.0)


def test_ota_compares_the_value_at_the_end_of_an_option_with_that_at_its_start():
    method, batch = make("ota"), toy_batch()
    found = method.evaluate(batch)
    v = method.critic(batch).min(dim=1).values.clamp(-1, 0)
    ahead = method.critic(batch["next"]).min(dim=1).values.clamp(-1, 0)
    end = torch.where(batch["success"], 0.0, -1.0)
    expected = torch.where(batch["bootstrap_discount"] > 0, ahead, end) - v
    assert torch.allclose(found["advantage"], expected, atol=1e-6)
    assert torch.allclose(found["v"], v)


def test_vlearn_learns_the_value_of_the_overlap():
    """One state, chunks of mean 1 (return 1) and -1 (return 0), drawn with (.5, .5); the policy draws them with (.9, .1): V = .8333."""
    method = make("vlearn")
    size = 40
    state = {"state": torch.zeros(size, 2)}
    sign = torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0)
    own = torch.where(torch.arange(size) % 10 == 0, -1.0, 1.0)
    batch = state | {
        "action": sign.view(-1, 1, 1).expand(-1, 10, 2),
        "action_mask": torch.ones(size, 10, dtype=torch.bool),
        "policy_action": own.view(-1, 1, 1, 1).expand(-1, 1, 10, 2),
        "chunk_return": (sign > 0).float(),
        "bootstrap_discount": torch.zeros(size),
        "next": state,
    }
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for step in range(150):
        loss, info = method(batch)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 150)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert info["overlap"].item() == pytest.approx(0.6, abs=0.02)
    assert method.critic(state).mean().item() == pytest.approx(0.8333, abs=0.02)


def test_vlearn_says_when_the_recording_does_not_show_the_policy():
    method = make("vlearn")
    method.overlap.fill_(0.03)
    with pytest.warns(UserWarning, match=r"overlap by 0\.03 only"):
        method.weights(torch.zeros(400), ToyReplay().facts)
    assert method.chunk_steps == 10


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("pessorl", {"models": 1}, "cannot disagree"),
        ("pessorl", {"bootstrap": "expectile"}, "penalises values of the policy's chunks"),
        ("ota", {"action_level": True}, "values states"),
        ("vlearn", {"pieces": 3}, "3 pieces do not divide the critic's horizon 10"),
        ("vlearn", {"td_weight": "exp"}, "weights of its own"),
        ("iql", {"td_weight": "exp"}, "the bootstrap 'expectile' does not ask"),
        ("monte_carlo_q", {"td_weight": "inverse"}, "the bootstrap 'monte_carlo' does not ask"),
    ],
)
def test_options_that_contradict_a_method_are_named(name, options, complaint):
    with pytest.raises(AloeError, match=complaint):
        make(name, **options)
