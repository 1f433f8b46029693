"""`aloe ope`: what it calls policies, whose critic judges whom, and what it checks before anything is learned."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from replay_rig import HORIZON, ROBOT, record, save_policy, save_toy_critic

from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_critic import evaluation, improvement
from aloe_critic.commands.ope import lines, policy_names
from aloe_critic.critic import ChunkCritic
from aloe_critic.critic_file import CriticFacts, load_critic, save_critic
from aloe_critic.improvement import ImproveConfig
from aloe_critic.learner import LearnerConfig
from aloe_critic.replay import StoreReplay
from aloe_policy.replay import ChunkSamples, ReplayStore, RewardConfig


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Bags of one policy, and two policies whose folders have the same name."""
    root = tmp_path_factory.mktemp("ope")
    save_policy(root / "a" / "001" / "policy", seed=0)
    save_policy(root / "b" / "001" / "policy", seed=1)
    record(root / "bags", root / "a" / "001" / "policy")
    return root


def judge(recorded, work, *policies, truth=""):
    """Exit code of `aloe ope` and what its JSON has of the policies."""
    file = work.with_suffix(".json")
    arguments = [str(recorded / "bags"), "--policy", *map(str, policies), "--work", str(work), "--json", str(file)]
    arguments += ["--estimators", "fqe", "--critic-steps", "2"] + (["--truth", truth] if truth else [])
    code = main(["ope", *arguments])
    return code, json.loads(file.read_text())["policies"] if file.exists() else {}


def test_names_are_short_and_differ():
    def names(*folders):
        return list(policy_names([Path(f) for f in folders]))

    assert names("/runs/bc/policy", "/runs/learner/001/policy") == ["bc", "001"]
    assert names("/runs/a/001/policy", "/runs/b/001/policy", "/runs/b/002/policy") == ["a/001", "b/001", "002"]
    assert names("/x/a/001", "/y/a/001/policy") == ["x/a/001", "y/a/001"]
    assert names("/a", "/b/a") == ["/a", "b/a"]
    assert names("/runs/a", "/runs/a/policy") == ["/runs/a", "/runs/a/policy"]
    assert names("/runs/a/policy", "/runs/b/../a/policy") == ["a"]
    assert policy_names([Path("here/policy")]) == {"here": Path("here/policy")}


def test_every_policy_is_judged_by_a_critic_of_its_own(recorded, tmp_path, capsys):
    first, second = (recorded / name / "001" / "policy" for name in "ab")
    code, both = judge(recorded, tmp_path / "both", first, second)
    assert (code, list(both)) == (0, ["a/001", "b/001"])
    out = capsys.readouterr().out
    assert "a/001: fitted Q" in out
    assert "b/001: fitted Q" in out
    folders = sorted(folder.name for folder in (tmp_path / "both").glob("critic_*"))
    assert folders == sorted(f"critic_{judged['policy']}" for judged in both.values())

    place = tmp_path / "run" / "001" / "policy"
    for number, seed in enumerate((0, 1)):  # the policy is trained anew where it was
        save_policy(place, seed)
        code, alone = judge(recorded, tmp_path / "one_place", place)
        assert (code, alone) == (0, {"001": list(both.values())[number]})
    assert both["a/001"]["fitted_q"] != both["b/001"]["fitted_q"]


def test_what_a_policy_calls_itself_leads_nowhere_else(recorded, tmp_path, monkeypatch):
    load = evaluation.load_trainable
    monkeypatch.setattr(evaluation, "load_trainable", lambda *args: (load(*args)[0], "../../mine"))
    assert judge(recorded, tmp_path / "ope", recorded / "a" / "001" / "policy")[0] == 0
    assert [folder.name for folder in (tmp_path / "ope").glob("critic_*")] == ["critic_..%2F..%2Fmine"]


@pytest.mark.parametrize(
    ("truth", "complaint"),
    [
        ("a/001=0.1,b/01=0.2", "--truth names b/01; the policies are a/001, b/001"),
        ("001=0.1,b/001=0.2", "--truth names 001; the policies are a/001, b/001"),
        ("a/001=0.1", "--truth needs two of the policies or more: a/001, b/001; it names a/001"),
    ],
)
def test_the_names_of_the_truth_are_checked_first(recorded, tmp_path, capsys, truth, complaint):
    policies = [recorded / name / "001" / "policy" for name in "ab"]
    assert judge(recorded, tmp_path / "ope", *policies, truth=truth) == (1, {})
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "ope").exists()


def test_policy_and_critic_are_brought_back_from_where_they_learned(recorded, tmp_path, monkeypatch):
    """Stands in for a GPU: after learning, both are elsewhere until they are moved to the CPU."""
    elsewhere, judged = set(), []
    learn, move, values = evaluation.Learner.learn_critic, torch.nn.Module.to, evaluation.state_values

    def learn_elsewhere(learner):
        tensors = learn(learner)
        for root in (learner.method, learner.behaviour):
            elsewhere.update(root.modules())
        return tensors

    def to(module, *args, **kwargs):
        if args == ("cpu",):
            elsewhere.difference_update(module.modules())
        return move(module, *args, **kwargs)

    def state_values(critic, policy, *args):
        assert elsewhere.isdisjoint([*critic.modules(), *policy.modules()])
        judged.append(policy)
        return values(critic, policy, *args)

    monkeypatch.setattr(evaluation.Learner, "learn_critic", learn_elsewhere)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(evaluation, "state_values", state_values)
    assert judge(recorded, tmp_path / "ope", recorded / "a" / "001" / "policy")[0] == 0
    assert judged


QUICK = ImproveConfig(
    critic={"width": 16, "layers": 1},
    learner=LearnerConfig(critic_steps=2, batch_size=8, policy_samples=1, warmup_steps=1),
)


@pytest.fixture(scope="module")
def two_kinds(tmp_path_factory):
    """A policy, and bags it drove alone: `quick` ones succeed after 24 steps, `late` ones run out of time after 60."""
    root = tmp_path_factory.mktemp("kinds")
    version = improvement.load_trainable(save_policy(root / "policy"), ROBOT)[1]
    for seed in range(3):
        for name, steps, outcome in (("quick", 24, Outcome.SUCCESS), ("late", 60, Outcome.TIMEOUT)):
            episode = SyntheticEpisode(ROBOT, steps, seed, outcome=outcome, policy_version=version)
            episode.write(root / name / f"{name}{seed}")
    return root


def estimate(root, work, *bags, critic=None, **settings):
    """What `evaluate_policy` makes of some of the bags in a store that took in what it was given before."""
    estimators = settings.pop("estimators", ("fqe",))
    store, report = improvement.ingest(work, [root / name for name in bags], root / "policy", ROBOT)
    config = replace(QUICK, **settings)
    return evaluation.evaluate_policy(
        store, root / "policy", ROBOT, config, work, critic, estimators=estimators, episodes=report.episodes
    )


def test_only_the_bags_that_are_named_are_judged(two_kinds, tmp_path, capsys):
    arguments = ["--policy", str(two_kinds / "policy"), "--critic-steps", "2", "--json", str(tmp_path / "out.json")]
    arguments += ["--estimators", "fqe", "monte_carlo"]
    found = {}
    for work, bags in (("both", "late"), ("both", "quick"), ("alone", "quick")):
        assert main(["ope", str(two_kinds / bags), "--work", str(tmp_path / work), *arguments]) == 0
        (found[work],) = json.loads((tmp_path / "out.json").read_text())["policies"].values()
    assert len(ReplayStore(tmp_path / "both" / "replay").episodes) == 6
    judged, alone = found["both"], found["alone"]
    assert judged["fitted_q"]["episodes"] == judged["on_policy"]["episodes"] == 3
    assert (judged["on_policy_success"], judged["on_policy"]) == (1.0, alone["on_policy"])
    # but for the policy's noise, which is drawn along the rows of the store
    assert judged["fitted_q"]["value"] == pytest.approx(alone["fitted_q"]["value"], abs=1e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [("recap", {"guidance": 2.0}), ("iql", {"expectile": 0.9}), ("aloe", {"bootstrap": "monte_carlo"}), ("bee", {})],
)
def test_fitted_q_is_the_policys_value_whichever_method_is_named(two_kinds, tmp_path, method, options):
    plain = estimate(two_kinds, tmp_path / "plain", "quick")
    assert estimate(two_kinds, tmp_path / "named", "quick", method=method, options=options) == plain


def test_the_options_of_fitted_q_are_used(two_kinds, tmp_path):
    plain = estimate(two_kinds, tmp_path / "plain", "quick")
    masked = estimate(two_kinds, tmp_path / "masked", "quick", options={"complete_share": 0.0, "beta": 3.0})
    assert masked.fitted_q != plain.fitted_q


def test_values_are_bounded_by_what_the_rewards_allow(two_kinds, tmp_path, monkeypatch):
    made = []
    make = evaluation.make_method
    monkeypatch.setattr(evaluation, "make_method", lambda *args: made.append(make(*args)) or made[-1])
    estimate(two_kinds, tmp_path, "quick", reward=RewardConfig(reward_scale=1.0))
    assert made[0].return_range == pytest.approx((-100.0, 0.0))


def test_a_policy_that_runs_out_of_time_is_not_worth_what_its_successes_are(two_kinds, tmp_path, capsys):
    both = ("monte_carlo", "dpe")
    as_cut = {"estimators": both, "reward": RewardConfig(timeout_is_failure=False)}
    judged = estimate(two_kinds, tmp_path, "quick", "late", **as_cut)
    assert (judged.on_policy, judged.on_policy_success) == (None, 0.5)
    assert judged.refused["monte_carlo"].startswith("3 of its 6 own episodes ran out of time, which is no outcome with")
    assert judged.refused["dpe"].startswith("3 of the 6 episodes ran out of time")
    (said, _) = lines(judged, both)
    assert said.endswith(", success 50 %")
    assert estimate(two_kinds, tmp_path, "quick", **as_cut).on_policy.episodes == 3
    assert estimate(two_kinds, tmp_path, "quick", "late", estimators=both).on_policy.episodes == 6


def test_episodes_of_unknown_return_are_counted(two_kinds, tmp_path):
    store, _ = improvement.ingest(tmp_path, [two_kinds / "quick"], two_kinds / "policy", ROBOT)
    policy, version = improvement.load_trainable(two_kinds / "policy", ROBOT)
    replay = improvement.make_replay(store, policy, QUICK)
    replay.samples_of.return_to_go[replay.samples_of.episode == 1] = np.nan  # as of a recording with a hole
    starts = evaluation.Starts.of(replay, version)
    judged = evaluation._on_policy(starts)
    assert (judged["on_policy"].episodes, judged["on_policy_unknown"]) == (2, 1)
    found = evaluation.Evaluation("p", on_policy_success=1.0, **judged)
    (said,) = lines(found, ["monte_carlo"])
    assert said.endswith(", success 100 %; the value is without 1 episodes whose return is not known")
    replay.samples_of.return_to_go[:] = np.nan
    starts = evaluation.Starts.of(replay, version)
    with pytest.raises(AloeError, match="the return of none of its 3 own episodes is known"):
        evaluation._on_policy(starts)


def test_fitted_q_is_calibrated_against_own_episodes(two_kinds, tmp_path):
    judged = estimate(two_kinds, tmp_path, "quick", "late", estimators=("fqe", "monte_carlo"))
    values, returns, counts = zip(*judged.calibration, strict=True)
    assert list(values) == sorted(values)
    assert sum(counts) == 6
    assert np.average(values, weights=counts) == pytest.approx(judged.fitted_q.value, abs=1e-6)
    assert np.average(returns, weights=counts) == pytest.approx(judged.on_policy.value, abs=1e-6)
    said = list(lines(judged, ["fqe"]))[1]
    assert said.startswith(f"fitted Q against own episodes, V, return (episodes): {values[0]:.3f} {returns[0]:.3f} (1)")
    others = save_policy(tmp_path / "others" / "policy", seed=5)
    foreign = evaluation.evaluate_policy(
        ReplayStore(tmp_path / "replay"), others, ROBOT, QUICK, tmp_path, estimators=("fqe",)
    )
    assert foreign.calibration is None


@pytest.fixture
def critic(two_kinds, tmp_path):
    """A file, and how to write it anew with other facts or another size."""
    folder = save_toy_critic(tmp_path / "critic", "test")

    def change(critic=None, **facts):
        method, was, _ = load_critic(folder)
        now = replace(was, critic=replace(was.critic, **(critic or {})), **facts)
        if critic:
            method = evaluation.make_method("aloe", now.critic, {}, (-1.0, 0.0))
        save_critic(folder / "critic.safetensors", method, now)

    return folder, change


def test_a_given_critic_is_used_as_it_is(two_kinds, tmp_path, critic):
    judged = estimate(two_kinds, tmp_path / "ope", "quick", critic=critic[0], estimators=("fqe", "va_ope"))
    assert judged.fitted_q.episodes == 3
    assert not list((tmp_path / "ope").glob("critic_*"))
    assert (
        estimate(two_kinds, tmp_path / "ope", "quick", critic=critic[0], critic_horizon=10).fitted_q == judged.fitted_q
    )


@pytest.mark.parametrize(
    ("made", "settings", "complaint"),
    [
        ({"robot_hash": "0123"}, {}, "was made for a robot with hash 0123, 'aloha_sim' has"),
        ({"gamma": 0.9}, {}, "was made with reward.gamma 0.9, the configuration says 0.99; give that"),
        ({"reward_scale": 1.0}, {}, "was made with reward.reward_scale 1, the configuration says 0.01; give that"),
        ({"encoder": "dinov2"}, {}, "looks through the encoder 'dinov2', the policy through no cameras"),
        ({"critic": {"object_dim": 6}}, {}, "looks at an object state of 6 numbers, the bags hold 7"),
        ({"critic": {"horizon": 2 * HORIZON}}, {}, f"judges {2 * HORIZON} steps, the policy proposes {HORIZON}"),
        ({}, {"critic_horizon": 5}, "judges 10 steps, the configuration says critic_horizon 5"),
    ],
)
def test_a_given_critic_of_something_else_is_refused(two_kinds, tmp_path, critic, made, settings, complaint):
    folder, change = critic
    change(**made)
    with pytest.raises(AloeError, match=complaint) as error:
        estimate(two_kinds, tmp_path / "ope", "quick", critic=folder, **settings)
    assert str(error.value).startswith(str(folder))


def test_a_given_critic_that_looks_elsewhere_is_refused(tmp_path):
    """A replay of one camera with four features of three numbers, and critics of more."""
    SyntheticEpisode(ROBOT, 24, cameras=("overhead",)).write(tmp_path / "bags" / "seen")
    store = ReplayStore(tmp_path / "store")
    store.ingest([tmp_path / "bags"], ROBOT, ("overhead",), (16, 16))
    store.cache_features("grid", lambda images: np.zeros((len(images), 4, 3), np.float16))
    replay = StoreReplay(ChunkSamples(store, HORIZON, encoder="grid"))
    view = {"encoder": "grid", "critic": replay.critic_config()}
    facts = CriticFacts(
        "aloe", options={}, return_range=(-1.0, 0.0), gamma=0.99, robot_hash="", policy_version="", **view
    )

    def check(**changes):
        config = replace(facts.critic, width=16, **changes)
        evaluation._check_view(Path("critic"), ChunkCritic(config), replace(facts, critic=config), replay)

    check()
    for changes, said in (
        ({"feature_tokens": 9}, "critic looks through overhead at 9 features of 3 numbers and an instruction of 0;"),
        ({"cameras": ("front", "overhead")}, "critic looks through front, overhead at 4 features"),
        ({"instruction_dim": 5}, "and an instruction of 5; with this policy there are overhead, 4 of 3, and 0"),
    ):
        with pytest.raises(AloeError, match=said):
            check(**changes)
    with pytest.raises(AloeError, match="looks through the encoder 'other', the policy through 'grid'"):
        evaluation._check_view(Path("critic"), ChunkCritic(facts.critic), replace(facts, encoder="other"), replay)
