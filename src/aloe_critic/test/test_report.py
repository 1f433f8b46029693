"""The report is about what the critic learned from, with the reward it learned with; so is what worked from here."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import replay_rig as rig
import torch

from aloe_core.bag_labels import Label, append_label
from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_critic import improvement, judgement
from aloe_critic.critic_file import load_critic
from aloe_critic.improvement import ImproveConfig
from aloe_critic.judgement import judge
from aloe_critic.learner import LearnerConfig
from aloe_critic.report import write_report
from aloe_critic.started import read_started
from aloe_policy.replay import RewardConfig

ROBOT = rig.ROBOT
GAMMA, STEPS = 0.9, 24
QUICK = ImproveConfig(
    reward=RewardConfig(gamma=GAMMA),
    critic={"width": 16, "layers": 1},
    learner=LearnerConfig(critic_steps=3, actor_steps=3, batch_size=8, policy_samples=2),
)


def episodes(folder, outcome, count, first=0, steps=STEPS):
    for seed in range(first, first + count):
        SyntheticEpisode(ROBOT, steps=steps, seed=seed, outcome=outcome).write(folder / f"e{seed}")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An iteration with gamma 0.9 on two successes and a failure, and in the store two failures and a longer success recorded after it."""
    root = tmp_path_factory.mktemp("trained")
    bags = episodes(episodes(root / "bags", Outcome.SUCCESS, 2), Outcome.FAILURE, 1, first=2)
    policy = rig.save_policy(root / "policy")
    store, _ = improvement.ingest(root / "run", [bags], policy, ROBOT)
    improvement.improve(root / "run", store, policy, ROBOT, QUICK)
    later = episodes(episodes(root / "later", Outcome.FAILURE, 2, first=3), Outcome.SUCCESS, 1, first=5, steps=60)
    improvement.ingest(root / "run", [later], policy, ROBOT)
    assert len(improvement.ReplayStore(root / "run" / "replay").episodes) == 6
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run to change."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def table(page):
    """Rows of the table under "What the critic learned from": iteration, episodes, successes, ..."""
    section = page.split("What the critic learned from")[1].split("<h2>")[0]
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr class.*?</tr>", section)]


def numbers(run):
    return json.loads((run / "001" / "report" / "numbers.json").read_text())


def test_what_was_recorded_later_is_not_in_the_report(trained, run, tmp_path, capsys):
    assert main(["report", str(run), "--iteration", "1", "--episodes", "6"]) == 0
    page = (run / "001" / "report" / "index.html").read_text()
    assert [row[:3] for row in table(page)] == [["0", "3", "2"]]
    assert "chunks of 3 episodes, 2 successes" in page
    assert "The critic has learned from these data." in page
    assert "labelled anew" not in page
    assert {p.stem for p in (run / "001" / "report").glob("episode_*.png")} == {f"episode_{n:04d}" for n in range(3)}

    alone = tmp_path / "alone" / "run"  # the same iteration beside a store that never took the others in
    improvement.ingest(alone, [trained / "bags"], trained / "policy", ROBOT)
    shutil.copytree(trained / "run" / "001", alone / "001")
    write_report(alone / "001", ROBOT, episodes=1)
    assert numbers(run) == numbers(alone)


def test_the_reward_is_that_of_the_iteration(run, tmp_path, capsys):
    write_report(run / "001", ROBOT, episodes=1)
    by_default = numbers(run)
    policy, _ = improvement.load_trainable(run / "001" / "policy", ROBOT)
    replay = improvement.make_replay(improvement.ReplayStore(run / "replay"), policy, QUICK, [0, 1, 2])
    judged = judge(replay, load_critic(run / "001")[0], policy, np.arange(len(replay.start)))
    error = np.abs(judged.q - replay.samples_of.return_to_go).mean()
    assert by_default["absolute_error"] == pytest.approx(float(error), rel=1e-5)
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(f"reward: {{gamma: {GAMMA}}}\nlearner: {{critic_steps: 100}}\n")  # steps change no sample
    assert main(["report", str(run), "--episodes", "1", "--config", str(same)]) == 0
    assert numbers(run) == by_default
    other.write_text("protocol: hil_serl\nbackup: 5\n")
    capsys.readouterr()
    assert main(["report", str(run), "--config", str(other)]) == 1
    said = capsys.readouterr().err
    for part in ("reward.gamma 0.9 (given: 0.99)", "protocol aloe (given: hil_serl)", "backup 0 (given: 5)"):
        assert part in said
    assert "critic_horizon" not in said


def test_a_note_that_is_not_the_critics_is_refused(run):
    file = run / "001" / "started.json"
    noted = json.loads(file.read_text())
    noted["config"]["reward"]["gamma"] = 0.99
    file.write_text(json.dumps(noted))
    with pytest.raises(AloeError, match=r"critic was made with reward.gamma 0.9, started.json says 0.99"):
        write_report(run / "001", ROBOT)
    for text in (
        "{}",
        "[",
        '{"config": []}',
        json.dumps({**noted, "episodes": ["a"]}),
        json.dumps({**noted, "episodes": None}),
    ):
        file.write_text(text)
        with pytest.raises(AloeError, match=r"no readable started.json, which says what it learned from"):
            write_report(run / "001", ROBOT)
    file.unlink()
    with pytest.raises(AloeError, match=r"no readable started.json"):
        read_started(run / "001")


def test_episodes_that_are_gone_or_labelled_anew(trained, run, tmp_path):
    bags = shutil.copytree(trained / "bags", tmp_path / "bags")
    append_label(bags / "e0", Label(Outcome.FAILURE, 1, "judge"))
    improvement.ingest(run, [bags], trained / "policy", ROBOT)
    page = write_report(run / "001", ROBOT, episodes=1).read_text()
    assert [row[:3] for row in table(page)] == [["0", "3", "1"]]
    assert "these episodes were labelled anew" in page
    assert "The critic has learned from these data as they were then." in page
    shutil.rmtree(run / "replay")
    improvement.ingest(run, [bags / "e0"], trained / "policy", ROBOT)
    with pytest.raises(AloeError, match=r"learned from 3 episodes; store .* does not have 2 of them"):
        write_report(run / "001", ROBOT)


def test_an_iteration_that_learned_from_some_episodes(trained, tmp_path):
    run = tmp_path / "run"
    store, _ = improvement.ingest(run, [trained / "bags"], trained / "policy", ROBOT)
    improvement.improve(run, store, trained / "policy", ROBOT, replace(QUICK, backup=5), episodes=[0, 2])
    started = read_started(run / "001", load_critic(run / "001")[1], replace(QUICK, backup=5))
    assert (started.episodes, started.config.backup, started.config.reward.gamma) == ([0, 2], 5, GAMMA)
    page = write_report(run / "001", ROBOT, episodes=1).read_text()
    assert [row[:3] for row in table(page)] == [["0", "2", "1"]]


def test_advantages_are_against_the_policy_that_was_improved(trained, run, monkeypatch):
    store, _ = improvement.ingest(run, [trained / "bags"], None, ROBOT)
    made = improvement.improve(run, store, None, ROBOT, QUICK)
    judging = []
    monkeypatch.setattr(judgement, "judge", lambda *args, **kw: judging.append(args[2]) or judge(*args, **kw))
    whose = "V, and so every advantage, is that of "
    page = write_report(run / "002", ROBOT, episodes=1).read_text()
    assert f"{whose}{made.parent_version}, the policy whose value the critic learned, and against" in page
    parent, version = improvement.load_trainable(run / "001" / "policy", ROBOT)
    assert version == made.parent_version
    assert judging
    for policy in judging:
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), parent.parameters(), strict=True))
    page = write_report(run / "001", ROBOT, episodes=1).read_text()
    first = improvement.read_result(run / "001")
    assert f"{whose}{first.version}, the policy that was made." in page
    assert f"Chunks were weighed against {first.parent_version}, which this run does not hold" in page


def from_here(run, capsys, *more):
    """(step, outcome, return) of every stretch found from the middle of episode 0, by its episode; or what was said against it."""
    capsys.readouterr()
    arguments = ["--episode", "0", "--step", "12", "--reach", "100", "--top-share", "1", *more]
    code = main(["bags", "from-here", str(run), *arguments])
    said = capsys.readouterr()
    if code:
        return said.err
    lines = [line.split() for line in said.out.splitlines()[2:]]
    return {line[0]: (int(line[2]), line[4], float(line[-1])) for line in lines}


def test_what_worked_from_here_is_valued_as_the_critic_values(trained, run, tmp_path, capsys):
    found = from_here(run, capsys)
    assert set(found) == {"e1", "e2", "e3", "e4", "e5"}  # also what was recorded since
    failed = {name: (step, value) for name, (step, outcome, value) in found.items() if outcome == "failure"}
    assert set(failed) == {"e2", "e3", "e4"}
    for step, value in failed.values():
        left = STEPS - step
        assert (
            left <= rig.HORIZON
        )  # so that the failure itself counts, at the mean length of the successes learned from
        assert value == pytest.approx(float(QUICK.reward.discounted(left, True, -STEPS)), abs=1e-3)
    other = tmp_path / "other.yaml"
    other.write_text("{}")
    assert "reward.gamma 0.9 (given: 0.99)" in from_here(run, capsys, "--config", str(other))
    followed = from_here(run, capsys, "--no-critic", "--horizon", "20")
    given = from_here(run, capsys, "--no-critic", "--horizon", "20", "--config", str(other))
    store = from_here(run / "replay", capsys, "--horizon", "20")  # of a store nobody says how it was learned from
    assert given == store != followed
