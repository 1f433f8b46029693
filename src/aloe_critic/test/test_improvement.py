"""From bags to a better policy: the run folder, its iterations, and what bad input is answered with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.policy import load_policy
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome, Source
from aloe_critic import improvement
from aloe_critic.critic_file import CriticFacts, load_critic, save_critic
from aloe_critic.improve_config import load_config, overridden
from aloe_critic.improvement import ImproveConfig, NoData
from aloe_critic.learner import LearnerConfig
from aloe_critic.methods import METHODS, make_method
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation
from aloe_policy.replay import RewardConfig
from aloe_robot.rollout import Lockstep

ROBOT = load_robot("aloha_sim")
QUICK = ImproveConfig(learner=LearnerConfig(critic_steps=3, actor_steps=3, batch_size=16, policy_samples=2))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two demonstrations, a failure of an untrained policy, and that policy."""
    root = tmp_path_factory.mktemp("recorded")
    scripted = Lockstep(ROBOT, "transfer_cube", load_policy("scripted", ROBOT))
    for seed in (1, 2):
        assert scripted.run(seed, bags=root / "bags").success
    torch.manual_seed(0)
    means = {
        "state": torch.tensor(ROBOT.home).float(),
        "action": torch.tensor(ROBOT.home).float(),
        "object_state": torch.zeros(7),
    }
    statistics = {key: (mean, torch.full_like(mean, 0.05)) for key, mean in means.items()}
    config = FlowConfig(width=32, layers=1, steps=2)
    FlowPolicy(PolicySpec.of(ROBOT, 50, object_dim=7), config, Normalisation(statistics)).save(root / "policy", "bc-0")
    policy = load_policy(str(root / "policy"), ROBOT)
    assert not Lockstep(ROBOT, "transfer_cube", policy).run(3, time_limit=1.0, bags=root / "failed").success
    return root


def store_of(recorded, run):
    return improvement.ingest(run, [recorded / "bags", recorded / "failed"], recorded / "policy", ROBOT)[0]


def test_iterations_follow_each_other(recorded, tmp_path):
    run = tmp_path / "run"
    store = store_of(recorded, run)
    first = improvement.improve(run, store, recorded / "policy", ROBOT, QUICK)
    second = improvement.improve(run, store, None, ROBOT, QUICK)
    assert (first.iteration, second.iteration) == (1, 2)
    assert second.parent_version == first.version
    assert first.version == f"run-1-{first.sha256[:8]}"
    assert (first.episodes, first.successes) == (3, 2)
    assert [improvement.read_result(f) for f in improvement.finished_iterations(run)] == [first, second]
    assert load_policy(second.policy, ROBOT).version == second.version


def test_a_run_that_was_moved_is_read_where_it_is_now(recorded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    made = improvement.improve(run, store_of(recorded, run), recorded / "policy", ROBOT, QUICK)
    Path("elsewhere").mkdir()
    run.rename("elsewhere/moved")
    monkeypatch.chdir("elsewhere")
    found = improvement.read_result(Path("moved/001"))
    assert load_policy(found.policy, ROBOT).version == made.version
    assert Path(found.critic).exists()
    assert replace(found, policy=made.policy, critic=made.critic) == made


def test_two_improvements_of_one_run_do_not_meet(recorded, tmp_path):
    run = tmp_path / "run"
    store = store_of(recorded, run)
    refusals = []

    def another(progress):
        if progress.stage == "actor" and not refusals:
            with pytest.raises(AloeError) as refused:
                improvement.improve(run, store, recorded / "policy", ROBOT, replace(QUICK, method="filtered_bc"))
            refusals.append(str(refused.value))

    improvement.improve(run, store, recorded / "policy", ROBOT, QUICK, another)
    assert refusals == [f"run {run} is being improved by another process; wait for it, or choose another run"]
    assert [f.name for f in sorted(run.glob("[0-9]*"))] == ["001"]
    assert improvement.improve(run, store, None, ROBOT, QUICK).iteration == 2


def test_the_critic_goes_on_from_the_iteration_before(recorded, tmp_path):
    run = tmp_path / "run"
    store = store_of(recorded, run)
    still = ImproveConfig(learner=LearnerConfig(critic_steps=0, actor_steps=1, batch_size=4, policy_samples=1))
    first = improvement.improve(run, store, recorded / "policy", ROBOT, QUICK)
    second = improvement.improve(run, store, None, ROBOT, still)
    states = [load_critic(r.critic)[0].state_dict() for r in (first, second)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("then", "differs"),
    [
        ({"reward": RewardConfig(reward_scale=1.0)}, "reward.reward_scale"),
        ({"reward": RewardConfig(gamma=0.9, reward_scale=0.01)}, "reward.gamma"),
        ({"options": {"polyak": 0.1}}, "options"),
    ],
)
def test_a_critic_of_other_returns_does_not_go_on(recorded, tmp_path, then, differs):
    run = tmp_path / "run"
    store = store_of(recorded, run)
    first = improvement.improve(run, store, recorded / "policy", ROBOT, QUICK)
    still = replace(QUICK, learner=replace(QUICK.learner, critic_steps=0, actor_steps=1))
    with pytest.warns(UserWarning, match=f"{run}/001 was made with other .*{differs}; the new one starts afresh"):
        second = improvement.improve(run, store, None, ROBOT, replace(still, **then))
    weights = [load_critic(result.critic)[0].state_dict()["critic.last.weight"] for result in (first, second)]
    assert not torch.equal(*weights)


def test_a_critic_behind_another_encoder_does_not_go_on(tmp_path):
    from critic_toys import CRITIC

    facts = CriticFacts("aloe", CRITIC, {}, (-1.0, 0.0), 0.99, "0", "bc-0", "one", 0.01)
    method = make_method("aloe", CRITIC)
    save_critic(tmp_path / "001" / "critic.safetensors", method, facts)
    with pytest.warns(UserWarning, match="other encoder"):
        assert not improvement._warm_start(method, replace(facts, encoder="two"), tmp_path / "001")
    older = replace(facts, reward_scale=None)  # files of before do not say
    save_critic(tmp_path / "001" / "critic.safetensors", method, older)
    assert improvement._warm_start(method, facts, tmp_path / "001")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("filtered_bc", "hg_dagger")])
def test_the_critic_of_every_method_is_read_again(tmp_path, name):
    """Those that value states alone are smaller than the critic of chunks that the configuration describes."""
    from aloe_critic.critic import small

    critic = small(state_dim=14, action_dim=14, horizon=50, object_dim=7)
    method = make_method(name, critic, {}, (-1.0, 0.0))
    save_critic(tmp_path / "critic.safetensors", method, CriticFacts(name, critic, {}, (-1.0, 0.0), 0.99, "0", "bc-0"))
    again, _, _ = load_critic(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"heads": 2**40}, {"heads": 2**70}, {"layers": 10**9}, {"width": 2**40}]
)
def test_a_critic_that_its_file_cannot_hold_is_refused_before_it_is_made(tmp_path, wrong):
    from critic_toys import CRITIC

    facts = CriticFacts("aloe", replace(CRITIC, **wrong), {}, (-1.0, 0.0), 0.99, "0", "bc-0")
    save_critic(tmp_path / "critic.safetensors", make_method("aloe", CRITIC), facts)
    with pytest.raises(AloeError, match="the critic it describes is not the one it holds"):
        load_critic(tmp_path)


def test_an_interrupted_iteration_goes_on_with_the_episodes_it_began_with(recorded, tmp_path):
    from aloe_critic.learner import Cancelled

    stop = {"at": ("actor", 2)}

    def improve(run, config=QUICK):
        quick = replace(config, learner=replace(config.learner, checkpoint_every=1))
        store, _ = improvement.ingest(run, bags, recorded / "policy", ROBOT)
        return improvement.improve(
            run, store, recorded / "policy", ROBOT, quick, lambda p: (p.stage, p.step) != stop["at"]
        )

    bags = [recorded / "bags"]
    for run in ("run", "other"):
        with pytest.raises(Cancelled):
            improve(tmp_path / run)
    stop["at"] = ("", 0)
    bags.append(recorded / "failed")  # recorded in the meantime
    assert improve(tmp_path / "run").episodes == 2
    assert improve(tmp_path / "run").episodes == 3  # the next iteration has them
    with pytest.warns(UserWarning, match=r"was begun with other settings or labels; it is kept as 001\.abandoned"):
        other = improve(tmp_path / "other", replace(QUICK, method="filtered_bc"))
    assert (tmp_path / "other" / "001.abandoned" / "learner.safetensors").exists()
    assert (other.iteration, other.method, other.episodes) == (1, "filtered_bc", 3)


def test_bags_are_ingested_once(recorded, tmp_path):
    store_of(recorded, tmp_path)
    _, again = improvement.ingest(tmp_path, [recorded / "bags", recorded / "bags"], recorded / "policy", ROBOT)
    assert again.added == 0
    assert len(set(again.episodes)) == 2


def test_what_an_improvement_learns_from_chunks_it_was_given(recorded, tmp_path):
    store = store_of(recorded, tmp_path)
    policy, _ = improvement.load_trainable(recorded / "policy", ROBOT)
    replay = improvement.make_replay(store, policy, ImproveConfig(critic_horizon=25))
    assert replay.samples_of.backup == 25
    batch = replay.samples(torch.tensor([0, len(replay.start) - 1]))
    assert batch["action"].shape == (2, 50, 14)
    assert batch["action_mask"].sum(dim=1)[1] == 1  # the last tick of an episode still teaches how it ended
    assert batch["bootstrap_discount"][1] == 0
    assert improvement.critic_config(replay, ImproveConfig(critic_horizon=25)).horizon == 25


def test_a_critic_starts_at_the_mean_return_and_in_the_datas_units(recorded, tmp_path):
    from aloe_critic.replay import fit_to

    store = store_of(recorded, tmp_path)
    policy, _ = improvement.load_trainable(recorded / "policy", ROBOT)
    replay = improvement.make_replay(store, policy, ImproveConfig())
    method = make_method("aloe", improvement.critic_config(replay, ImproveConfig()))
    fit_to(method, replay)
    mean = float(replay.samples_of.return_to_go.mean())
    with torch.no_grad():
        values = method.target(replay.samples(torch.arange(len(replay.start))))
    assert values.mean().item() == pytest.approx(mean, abs=0.3)
    rows = store.arrays["action"][replay.samples_of.start]
    assert torch.allclose(method.critic.action_mean, torch.from_numpy(rows.mean(axis=0)), atol=1e-4)


@pytest.mark.parametrize("method", ["recap", "filtered_bc"])
def test_the_command(recorded, tmp_path, method, capsys):
    arguments = ["--bags", str(recorded / "bags"), "--policy", str(recorded / "policy"), "--method", method]
    arguments += ["--critic-steps", "2", "--actor-steps", "2", "--json", str(tmp_path / "out.json")]
    assert main(["improve", str(tmp_path / "run"), *arguments]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["method"] == method
    assert load_policy(out["policy"], ROBOT).version == out["version"]
    assert out["version"] in capsys.readouterr().out


def test_best_of_n_beside_the_policy(recorded, tmp_path):
    store = store_of(recorded, tmp_path / "run")
    made = improvement.improve(tmp_path / "run", store, recorded / "policy", ROBOT, QUICK)
    folder = improvement.write_best_of_n(made, 3, ROBOT)
    rollout = Lockstep(ROBOT, "transfer_cube", load_policy(folder, ROBOT)).run(5, time_limit=0.6)
    assert rollout.steps == 30


def test_bad_input_is_answered_in_one_sentence(recorded, tmp_path):
    with pytest.raises(AloeError, match="name the one to improve"):
        improvement.improve(tmp_path / "new", store_of(recorded, tmp_path / "run"), None, ROBOT, QUICK)
    with pytest.raises(AloeError, match="not a policy checkpoint"):
        improvement.load_trainable(tmp_path, ROBOT)
    run = tmp_path / "failures"
    store, _ = improvement.ingest(run, [recorded / "failed"], recorded / "policy", ROBOT)
    only = ImproveConfig(method="filtered_bc", learner=QUICK.learner)
    with pytest.raises(AloeError, match="leaves none of the 50 recorded chunks to learn from"):
        improvement.improve(run, store, recorded / "policy", ROBOT, only)
    blind = ImproveConfig(critic_horizon=25, backup=26)
    with pytest.raises(AloeError, match="backup 26 must not be longer than critic_horizon 25"):
        improvement.improve(tmp_path / "blind", store, recorded / "policy", ROBOT, blind)
    with pytest.raises(AloeError, match="critic_horizon 60 must lie between 1 and the policy's horizon 50"):
        improvement.improve(tmp_path / "long", store, recorded / "policy", ROBOT, ImproveConfig(critic_horizon=60))
    human = ImproveConfig(protocol="hg_dagger", learner=QUICK.learner)
    with pytest.raises(AloeError, match="no chunk"):
        improvement.improve(tmp_path / "dagger", store, recorded / "policy", ROBOT, human)


def test_bags_that_nobody_labelled(recorded, tmp_path):
    """What learns from outcomes alone says so; a critic that bootstraps, and imitation of demonstrations, go on."""
    bags = tmp_path / "bags"
    for seed in range(2):
        episode = SyntheticEpisode(ROBOT, steps=20, seed=seed, outcome=Outcome.UNLABELLED, source=Source.SCRIPTED)
        episode.write(bags / f"e{seed}")
    store, _ = improvement.ingest(tmp_path / "run", [bags], recorded / "policy", ROBOT)
    says = "learns from outcomes alone, and none of the 40 recorded chunks leads to one: label"
    for method in ("awr", "recap", "monte_carlo_q"):
        with pytest.raises(NoData, match=f"method '{method}' {says}"):
            improvement.improve(tmp_path / method, store, recorded / "policy", ROBOT, replace(QUICK, method=method))
    with pytest.raises(AloeError, match="leaves none of the 40 recorded chunks to learn from"):
        improvement.improve(tmp_path / "bc", store, recorded / "policy", ROBOT, replace(QUICK, method="filtered_bc"))
    for method in ("aloe", "hg_dagger"):
        run = tmp_path / method
        made = improvement.improve(run, store, recorded / "policy", ROBOT, replace(QUICK, method=method))
        assert (made.episodes, made.successes, made.used_share) == (2, 0, 1.0)


def test_a_damaged_bag_does_not_stop_the_others(recorded, tmp_path):
    import shutil

    shutil.copytree(recorded / "bags", tmp_path / "bags")
    broken = sorted((tmp_path / "bags").iterdir())[0]
    for file in broken.glob("*.mcap"):
        file.write_bytes(b"not a bag")
    store, report = improvement.ingest(tmp_path / "run", [tmp_path / "bags"], recorded / "policy", ROBOT)
    assert len(report.left_out) == 1
    assert improvement.improve(tmp_path / "run", store, recorded / "policy", ROBOT, QUICK).episodes == 1


def test_configuration_from_a_file(tmp_path):
    file = tmp_path / "improve.yaml"
    file.write_text(
        "method: bee\noptions: {beta: 0.5}\ncritic_horizon: 25\nlearner: {critic_steps: 7}\nreward: {failure_cost: 100}\n"
    )
    config = load_config(file)
    assert (config.method, config.options, config.critic_horizon) == ("bee", {"beta": 0.5}, 25)
    assert (config.learner.critic_steps, config.learner.batch_size, config.reward.failure_cost) == (7, 256, 100)
    changed = overridden(config, options=["clip=2"], actor_steps=9)
    assert (changed.options, changed.learner.actor_steps) == ({"beta": 0.5, "clip": 2}, 9)
    for text, complaint in (
        ("methode: aloe", "methode: unknown key"),
        ("learner: {critic_step: 7}", "learner.critic_step: unknown key"),
        ("method: ppo", "unknown method 'ppo'"),
        ("options: {gamma: 1}", "has no option 'gamma'"),
        ("[1, 2]", "mapping of keys"),
        ("a: [", "not a readable YAML"),
    ):
        file.write_text(text)
        with pytest.raises(AloeError, match=complaint):
            load_config(file)
    with pytest.raises(AloeError, match="'beta' is not key=value"):
        overridden(ImproveConfig(), options=["beta"])


def test_policies_are_judged_from_recordings(recorded, tmp_path, capsys):
    """The untrained policy's own failure is its on-policy estimate; fitted Q looks at the starts of all episodes."""
    arguments = [str(recorded / "bags"), str(recorded / "failed"), "--policy", str(recorded / "policy")]
    arguments += ["--work", str(tmp_path / "ope"), "--critic-steps", "5", "--json", str(tmp_path / "ope.json")]
    assert main(["ope", *arguments]) == 0
    judged = json.loads((tmp_path / "ope.json").read_text())["policies"][recorded.name]
    assert judged["fitted_q"]["episodes"] == 3
    assert judged["fitted_q"]["low"] <= judged["fitted_q"]["value"] <= judged["fitted_q"]["high"]
    assert judged["on_policy_success"] == 0.0
    replay = improvement.make_replay(
        improvement.ReplayStore(tmp_path / "ope" / "replay"),
        improvement.load_trainable(recorded / "policy", ROBOT)[0],
        QUICK,
    )
    cost = replay.samples_of.failure_cost
    expected = -(1 - 0.99**49) - 0.01 * 0.99**49 * cost  # 50 steps, the last one fails
    assert judged["on_policy"]["value"] == pytest.approx(expected, abs=1e-5)
    assert "own episodes" in capsys.readouterr().out


def test_known_values_are_read():
    from aloe_critic.evaluation import known_success

    assert known_success("a=0.5, b=1") == {"a": 0.5, "b": 1.0}
    for text in ("a", "a=x", "=1"):
        with pytest.raises(AloeError, match="not name=number"):
            known_success(text)


def test_the_report_is_one_page_that_needs_nothing_else(recorded, tmp_path, capsys):
    import re

    import cv2

    run = tmp_path / "run"
    improvement.improve(run, store_of(recorded, run), recorded / "policy", ROBOT, QUICK)
    assert main(["report", str(run), "--episodes", "1", "--rerun"]) == 0
    folder = run / "001" / "report"
    assert str(folder / "index.html") in capsys.readouterr().out
    page = (folder / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page)
    for name in ("learning", "replay", "same_state", "support", "calibration", "spread"):
        image = cv2.imread(str(folder / f"{name}.png"))
        assert image.std() > 5, name  # something is drawn
        assert f'alt="{name}"' in page
    assert page.count("<img") == len(list(folder.glob("*.png")))
    assert "failure" in page  # the failed fragment stands in the table
    assert len(list(folder.glob("episode_*.rrd"))) == 1
    assert main(["report", str(run), "--iteration", "2"]) == 1
    assert "1 finished iterations, so none with number 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.render
def test_a_policy_that_looks_through_a_camera_is_improved(tmp_path):
    """From compressed images in a bag over frozen features to critic, actor and best-of-n acting."""
    camera = ROBOT.cameras[0].name
    size = (64, 64)
    torch.manual_seed(0)
    home = torch.tensor(ROBOT.home).float()
    statistics = {key: (home, torch.full_like(home, 0.05)) for key in ("state", "action")}
    config = FlowConfig(network="transformer", width=16, layers=1, heads=2, rows_per_token=10, camera_tokens=2, steps=2)
    FlowPolicy(PolicySpec.of(ROBOT, 50, (camera,), size), config, Normalisation(statistics)).save(
        tmp_path / "policy", "bc-0"
    )
    policy = load_policy(str(tmp_path / "policy"), ROBOT)
    Lockstep(ROBOT, "transfer_cube", policy).run(1, time_limit=0.6, bags=tmp_path / "bags")

    run = tmp_path / "run"
    store, report = improvement.ingest(run, [tmp_path / "bags"], tmp_path / "policy", ROBOT)
    assert report.frames > 0
    with pytest.raises(AloeError, match="leaves none of the 30 recorded chunks"):  # it only failed, and says so at once
        improvement.improve(run, store, tmp_path / "policy", ROBOT, QUICK)
    willing = replace(QUICK, options={"learn_from_failures": True})
    made = improvement.improve(run, store, tmp_path / "policy", ROBOT, willing)
    best = load_policy(improvement.write_best_of_n(made, 2, ROBOT), ROBOT)
    assert best.cameras == (camera,)
    assert Lockstep(ROBOT, "transfer_cube", best).run(2, time_limit=0.2).steps == 10
