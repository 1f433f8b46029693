"""`aloe ope`: what it calls policies, whose critic judges whom, and what it checks before anything is learned."""

import json
from pathlib import Path

import pytest
import torch
from replay_rig import record, save_policy

from aloe_core.cli import main
from aloe_critic import evaluation
from aloe_critic.commands.ope import policy_names


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
