"""What each method weighs and which target it learns."""

import math

import pytest
import torch
from critic_toys import CRITIC, ToyReplay, toy_policy

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome, Source
from aloe_critic.methods import METHODS, SampleFacts, make_method
from aloe_critic.methods.aloe import as_recorded, complete
from aloe_critic.methods.recap import ConditionedPolicy, Recap, two_hot
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation


def facts(sources, outcomes, train=None):
    size = len(sources)
    return SampleFacts(
        source=torch.tensor([int(s) for s in sources], dtype=torch.uint8),
        outcome=torch.tensor([int(o) for o in outcomes], dtype=torch.uint8),
        episode_outcome=torch.full((size,), int(Outcome.SUCCESS), dtype=torch.uint8),
        to_end=torch.ones(size, dtype=torch.bool),
        train_policy=torch.tensor(train or [True] * size),
        train_critic=torch.ones(size, dtype=torch.bool),
    )


FACTS = facts(
    [Source.SCRIPTED, Source.POLICY, Source.POLICY, Source.HUMAN],
    [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE, Outcome.SUCCESS],
)


def make(name, **options):
    torch.manual_seed(0)
    return make_method(name, CRITIC, options)


def toy_batch(size=64, samples=3):
    replay = ToyReplay()
    index = torch.arange(size)
    g = torch.Generator().manual_seed(0)
    batch = replay.samples(index)
    batch["bootstrap_discount"] = torch.where(index % 2 == 0, 0.9, 0.0)
    batch["next_policy_action"] = torch.randn(size, samples, 10, 2, generator=g)
    batch["policy_action"] = torch.randn(size, samples, 10, 2, generator=g)
    return batch


def test_imitation_chooses_chunks():
    none = torch.zeros(4)
    assert make("filtered_bc").weights(none, FACTS).tolist() == [1, 1, 0, 1]
    assert make("hg_dagger").weights(none, FACTS).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("name", METHODS)
def test_chunks_the_protocol_excludes_have_no_weight(name):
    method = make(name)
    excluded = facts([Source.HUMAN] * 3, [Outcome.SUCCESS] * 3, [True, False, True])
    weights = method.weights(torch.tensor([1.0, 2.0, -1.0]), excluded)
    assert weights[1] == 0
    assert (weights[[0, 2]] != 0).all()


def test_aloe_weights_follow_the_advantage():
    advantage = torch.tensor([0.0, 0.2, -0.2, 100.0])
    everything = {"learn_from_failures": True}
    weights = make("aloe", normalise=False, beta=0.2, clip=2.0, **everything).weights(advantage, FACTS)
    assert weights.tolist() == pytest.approx([1.0, 2.71828, 0.36788, 7.38906], rel=1e-4)
    method = make("aloe", beta=1.0, **everything)
    scaled = method.weights(3 * advantage, FACTS)
    assert torch.allclose(scaled, method.weights(advantage, FACTS))  # the scale of the reward does not matter
    assert make("aloe").weights(advantage, FACTS)[2] == 0  # a failure teaches the critic only


def test_aloe_learns_from_no_failure_whoever_drove():
    """A human who runs out of time is no teacher; one who hands back merely ends a fragment."""
    outcomes = [Outcome.SUCCESS, Outcome.FAILURE, Outcome.TIMEOUT, Outcome.UNLABELLED]
    human, policy = facts([Source.HUMAN] * 4, outcomes), facts([Source.POLICY] * 4, outcomes)
    advantage = torch.tensor([0.1, 5.0, 5.0, -0.1])
    assert (make("aloe").weights(advantage, human) > 0).tolist() == [True, False, False, True]
    assert (make("aloe").weights(advantage, policy) > 0).tolist() == [True, False, False, False]
    assert (make("aloe", learn_from_failures=True).weights(advantage, human) > 0).all()


def test_awr_learns_from_all_data_unless_told_otherwise():
    outcomes = [Outcome.SUCCESS, Outcome.FAILURE, Outcome.TIMEOUT, Outcome.UNLABELLED]
    advantage = torch.tensor([0.1, 5.0, 5.0, -0.1])
    like_aloe = {"clip": 1.0, "learn_from_failures": False}
    for source in (Source.HUMAN, Source.POLICY):
        seen = facts([source] * 4, outcomes)
        assert (make("awr").weights(advantage, seen) > 0).all()
        assert torch.equal(make("awr", **like_aloe).weights(advantage, seen), make("aloe").weights(advantage, seen))


def test_bee_at_its_ends_is_aloe_and_iql_bit_by_bit():
    batch = toy_batch()

    def target_value(name, **options):
        method = make(name, **options)
        reference = make("bee")  # same weights everywhere: they are drawn in the same order
        method.target.load_state_dict(reference.target.state_dict())
        if hasattr(method, "value"):
            method.value.load_state_dict(reference.value.state_dict())
        with torch.no_grad():
            return method._next_value(batch)[0]

    assert torch.equal(target_value("bee", replay_share=0.0), target_value("aloe"))
    assert torch.equal(target_value("bee", replay_share=1.0), target_value("iql"))
    middle = target_value("bee", replay_share=0.5)
    assert torch.allclose(middle, (target_value("aloe") + target_value("iql")) / 2)


def test_a_target_takes_the_minimum_over_heads_of_the_policys_chunk():
    method, batch = make("aloe"), toy_batch(samples=1)
    value, variance = method._next_value(batch)
    heads = method.target({**batch["next"], "action": batch["next_policy_action"][:, 0]})
    assert torch.allclose(value, heads.min(dim=1).values, atol=1e-6)
    assert torch.allclose(variance, heads.var(dim=1, correction=0), atol=1e-6)


def test_values_stay_within_what_the_rewards_allow():
    method, batch = make_method("aloe", CRITIC, {}, (-0.5, -0.2)), toy_batch()
    for low_or_high, expected in ((-9.0, -0.5), (9.0, -0.2)):
        for critic in (method.critic, method.target):
            torch.nn.init.zeros_(critic.last.weight)
            torch.nn.init.constant_(critic.last.bias, low_or_high)
        assert torch.equal(method._next_value(batch)[0], torch.full((64,), expected))
        judged = method.evaluate(batch)
        assert torch.equal(judged["q"], judged["v"])
        assert torch.equal(judged["q"], torch.full((64,), expected))
    free = make_method("aloe", CRITIC, {"bound_values": False}, (-0.5, -0.2))
    torch.nn.init.constant_(free.critic.last.bias, 9.0)
    assert free.evaluate(batch)["q"].min() > 1


def test_a_constant_critic_sees_no_advantage():
    method, batch = make("aloe", learn_from_failures=True), toy_batch()
    torch.nn.init.zeros_(method.critic.last.weight)
    judged = method.evaluate(batch)
    assert torch.allclose(judged["advantage"], torch.zeros(64), atol=1e-6)
    weights = method.weights(judged["advantage"], ToyReplay(64).facts)
    assert torch.allclose(weights, torch.ones(64), atol=0.05)


def test_the_critic_loss_trains_the_online_networks_only():
    for name in ("aloe", "bee", "iql", "uwac", "state_td", "monte_carlo_q"):
        method = make(name)
        loss, info = method(toy_batch())
        loss.backward()
        assert method.critic.last.weight.grad.abs().sum() > 0, name
        assert all(p.grad is None for p in method.target.parameters()), name
        assert info["critic_loss"].item() > 0


def test_monte_carlo_ignores_fragments_without_an_outcome():
    method, batch = make("awr"), toy_batch()
    batch["return_to_go"] = torch.full((64,), torch.nan)
    loss, _ = method(batch)
    assert loss.item() == 0
    assert torch.equal(method.evaluate(batch)["advantage"], torch.zeros(64))


def test_state_td_compares_one_backup_with_the_value():
    method, batch = make("state_td", bound_values=False), toy_batch()
    judged = method.evaluate(batch)
    v = method.critic(batch).min(dim=1).values
    ahead = method.critic(batch["next"]).min(dim=1).values
    expected = batch["chunk_return"] + batch["bootstrap_discount"] * ahead - v
    assert torch.allclose(judged["advantage"], expected, atol=1e-5)


def test_two_hot_has_the_mean_of_what_it_encodes():
    support = torch.linspace(-2, 0, 21)
    values = torch.tensor([-2.0, -1.234, -0.05, 0.0, 0.7, -9.0])
    encoded = two_hot(values, support)
    assert torch.allclose(encoded.sum(dim=1), torch.ones(6))
    assert torch.allclose(encoded @ support, values.clamp(-2, 0), atol=1e-6)
    assert (encoded > 0).sum(dim=1).max() <= 2


def test_recap_marks_the_upper_share_of_its_own_chunks_and_every_human_one():
    method = make("recap", good_share=0.25)
    assert isinstance(method, Recap)
    sources = [Source.POLICY] * 100 + [Source.HUMAN] * 10
    marks = method.weights(
        torch.cat([torch.arange(100.0), torch.full((10,), -5.0)]), facts(sources, [Outcome.FAILURE] * 110)
    )
    assert (marks[:75] == -1).all()
    assert (marks[75:] == 1).all()


@pytest.mark.parametrize("network", ["mlp", "transformer"])
@pytest.mark.parametrize("object_dim", [0, 3])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_conditioned_policy_starts_as_the_policy_it_extends(tmp_path, network, object_dim, guidance):
    torch.manual_seed(0)
    spec = PolicySpec("toy", "0", ("x", "y"), 10, object_dim=object_dim)
    sizes = {"state": 2, "action": 2} | ({"object_state": 3} if object_dim else {})
    normalisation = Normalisation({key: (torch.zeros(n), torch.ones(n)) for key, n in sizes.items()})
    config = FlowConfig(network=network, width=16, layers=1, heads=2, rows_per_token=5, steps=3)
    policy = FlowPolicy(spec, config, normalisation)
    with torch.no_grad():  # output layers start at zero, and would hide every difference
        for weight in policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    conditioned = ConditionedPolicy.extend(policy, guidance)
    observed = {"state": torch.randn(5, 2), **({"object_state": torch.randn(5, 3)} if object_dim else {})}
    act = lambda p: p.act(observed, torch.Generator().manual_seed(0))  # noqa: E731
    assert conditioned.spec == policy.spec
    assert act(policy).std() > 0.1
    torch.testing.assert_close(act(conditioned), act(policy), atol=1e-5, rtol=0)

    with torch.no_grad():
        conditioned.inner.mark.weight.normal_()
    assert not torch.allclose(act(conditioned), act(policy), atol=1e-3), "the mark is seen"
    sha = conditioned.save(tmp_path / "policy")
    loaded, version = ConditionedPolicy.load_with_version(tmp_path / "policy")
    assert version == f"policy-0-{sha[:8]}"
    assert torch.equal(act(loaded), act(conditioned))


def test_recap_goes_on_with_the_returns_and_the_guidance_of_now():
    before = make_method("recap", CRITIC, {"guidance": 1.5}, (-2.4, 0.0))
    now = make_method("recap", CRITIC, {"guidance": 2.5}, (-3.0, 0.0))
    now.continue_from(before)
    assert (now.support[0], now.support[-1]) == (-3.0, 0.0)
    assert torch.equal(now.critic.last.weight, before.critic.last.weight)
    actor = now.actor(before.actor(toy_policy()))
    assert actor.guidance == 2.5
    with pytest.raises(AloeError, match="returns that differ and have bounds"):
        make_method("recap", CRITIC, {}, (-math.inf, 0.0))


def test_unknown_methods_and_options_are_named():
    with pytest.raises(AloeError, match="unknown method 'ppo'; known: aloe"):
        make("ppo")
    with pytest.raises(AloeError, match="'aloe' has no option 'gamma'; it has: action_level, beta"):
        make("aloe", gamma=0.9)
    with pytest.raises(AloeError, match="'hg_dagger' has no options"):
        make("hg_dagger", beta=1)
    with pytest.raises(AloeError, match="action_level false has no chunk values"):
        make("state_td", bootstrap="blend")


def test_the_expectile_is_taken_over_executed_chunks_alone():
    batch = toy_batch(4)
    batch["bootstrap_discount"] = torch.tensor([0.9, 0.0, 0.9, 0.9])
    batch["action_mask"][:2, 3:] = False  # cut: one goes on with the policy's rows, after the other nothing follows
    assert as_recorded(batch).tolist() == [False, True, True, True]
    assert as_recorded({k: v for k, v in batch.items() if k != "policy_action"}).all()
    batch["policy_action"] = batch["policy_action"][
        :, :, :3
    ]  # a critic of three steps: all that it judges was executed
    assert as_recorded(batch).all()
    batch["policy_action"] = toy_batch(4)["policy_action"]

    method = make("bee")
    apart = {**batch, "state": batch["state"].clone()}
    apart["state"][0] += 1.0
    gradients = []
    for seen in (batch, apart):
        method.zero_grad()
        torch.manual_seed(0)
        method(seen)[0].backward()
        gradients.append([p.grad.clone() for p in method.value.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)), "V does not see the chunk that was cut"


def test_partial_chunks_are_completed_by_the_policys_rows():
    batch = toy_batch(4)
    batch["action_mask"][:, 3:] = False
    whole = complete(batch)
    assert torch.equal(whole["action"][:, :3], batch["action"][:, :3])
    assert torch.equal(whole["action"][:, 3:], batch["policy_action"][:, 0, 3:])
    assert whole["action_mask"].all()
    assert complete(batch, 0.0) is batch
    torch.manual_seed(0)
    some = complete(toy_batch(64) | {"action_mask": torch.zeros(64, 10, dtype=torch.bool)}, 0.5)
    rows = some["action_mask"].all(dim=1)
    assert 16 < rows.sum() < 48
    assert torch.equal(some["action_mask"].any(dim=1), rows)  # a chunk is completed as a whole or not at all


def test_a_critic_learns_the_outcome_for_whole_chunks_too():
    """Every recorded chunk ends after two steps in the same failure; without completing, whole chunks of the policy are never told."""
    values = {}
    for share in (0.0, 0.5):
        method, batch = make("aloe", complete_share=share), toy_batch(64)
        batch["action_mask"][:, 2:] = False
        batch["chunk_return"], batch["bootstrap_discount"] = torch.full((64,), -1.5), torch.zeros(64)
        optimizer = torch.optim.AdamW(method.critic.parameters(), lr=3e-3)
        for _ in range(60):
            loss, _ = method(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            whole = method.critic(complete(batch))
        values[share] = (whole + 1.5).abs().mean().item()
    assert values[0.5] < 0.1
    assert values[0.5] < values[0.0]
