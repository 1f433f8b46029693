"""A policy of the user's own, which looks at images and reads text, is improved like any other: found by its entry point, weighted, resumed, chosen from."""

import json

import numpy as np
import pytest
import torch
from glimpse_policy import CAMERA, HORIZON, SIZE, GlimpsePolicy, Told, register, save_policy

from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.policy import load_policy
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Outcome, Source
from aloe_critic import improvement
from aloe_critic.critic_file import load_critic
from aloe_critic.improvement import ImproveConfig
from aloe_critic.learner import STATE_FILE, Cancelled, LearnerConfig
from aloe_critic.scoring import ChunkScorer
from aloe_policy.trainable import load_trainable
from aloe_policy.training_state import read_state

ROBOT = load_robot("aloha_sim")
QUICK = ImproveConfig(
    critic={"width": 16, "layers": 1},
    learner=LearnerConfig(
        critic_steps=3, actor_steps=3, batch_size=8, actor_batch_size=5, policy_samples=2, checkpoint_every=1
    ),
)


@pytest.fixture(autouse=True, scope="module")
def _installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    register(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A demonstration, a success and a failure, told different things, and an untrained policy."""
    root = tmp_path_factory.mktemp("recorded")
    endings = ((Outcome.SUCCESS, Source.SCRIPTED), (Outcome.SUCCESS, Source.POLICY), (Outcome.FAILURE, Source.POLICY))
    for k, ((outcome, source), text) in enumerate(zip(endings, ("pour", "stir", "serve"), strict=True)):
        episode = Told(ROBOT, steps=24, seed=k, cameras=(CAMERA,), outcome=outcome, source=source)
        episode.instruction = text
        episode.write(root / "bags" / f"e{k}")
    save_policy(root / "policy", ROBOT)
    return root


def ingested(recorded, run):
    return improvement.ingest(run, [recorded / "bags"], recorded / "policy", ROBOT)[0]


def weights(folder):
    return load_trainable(folder, ROBOT)[0].state_dict()


def test_it_is_improved_by_the_command(recorded, tmp_path, capsys):
    config = tmp_path / "improve.yaml"
    config.write_text(
        "critic_horizon: 4\ncritic: {width: 16, layers: 1}\n"
        "learner: {critic_steps: 2, actor_steps: 3, batch_size: 8, policy_samples: 2}\n"
    )
    arguments = ["--bags", str(recorded / "bags"), "--policy", str(recorded / "policy"), "--config", str(config)]
    assert main(["improve", str(tmp_path / "run"), *arguments, "--json", str(tmp_path / "out.json")]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["parent_version"].startswith("own-0-")
    assert load_policy(out["policy"], ROBOT).version == out["version"]
    before, after = weights(recorded / "policy"), weights(out["policy"])
    assert torch.equal(before["eye.weight"], after["eye.weight"])  # frozen
    assert not torch.equal(before["head.weight"], after["head.weight"])
    critic = load_critic(tmp_path / "run" / "001" / "critic.safetensors")[0].critic.config
    assert (critic.horizon, critic.cameras, critic.feature_tokens, critic.object_dim) == (4, (CAMERA,), 64, 0)
    assert main(["improve", str(tmp_path / "run"), "--config", str(config), "--method", "filtered_bc"]) == 0
    assert "own-0" not in capsys.readouterr().out.split("by filtered_bc")[0].splitlines()[-1]  # from iteration 1


def test_it_learns_from_the_images_and_words_of_each_sample(recorded, tmp_path, monkeypatch):
    seen = []
    loss = GlimpsePolicy.loss
    monkeypatch.setattr(GlimpsePolicy, "loss", lambda self, batch, rng: (seen.append(batch), loss(self, batch, rng))[1])
    store = ingested(recorded, tmp_path)
    improvement.improve(tmp_path, store, recorded / "policy", ROBOT, QUICK)
    assert len(seen) == QUICK.learner.actor_steps
    state, told = store.arrays["state"], [e.instruction for e in store.episodes]
    for batch in seen:
        assert batch["action"].shape == (5, HORIZON, 14)
        assert batch["images"][CAMERA].dtype == torch.uint8
        rows = np.array([int(np.flatnonzero((state == s.numpy()).all(axis=1))[0]) for s in batch["state"]])
        expected = store.observe(rows)
        np.testing.assert_array_equal(batch["images"][CAMERA], expected["images"][CAMERA])
        assert batch["images"][CAMERA].shape[1:3] == SIZE
        assert batch["instruction_text"] == [told[e] for e in expected["episode"]]
    assert len({text for batch in seen for text in batch["instruction_text"]}) > 1


def test_an_interrupted_improvement_goes_on_bit_for_bit(recorded, tmp_path):
    made = []
    for name, stop in (("whole", ("", 0)), ("critic", ("critic", 2)), ("actor", ("actor", 2))):
        run = tmp_path / name / "run"
        store = ingested(recorded, run)
        arguments = (run, store, recorded / "policy", ROBOT, QUICK)
        if stop[0]:
            with pytest.raises(Cancelled):
                improvement.improve(*arguments, lambda p, stop=stop: (p.stage, p.step) != stop)
        made.append(improvement.improve(*arguments))
    assert made[0].version == made[1].version == made[2].version
    saved, _ = read_state(tmp_path / "actor" / "run" / "001" / STATE_FILE)
    assert "actor/head.weight" in saved
    assert "actor/eye.weight" not in saved  # frozen weights are in the checkpoint it started from


def test_the_critic_chooses_among_its_chunks_and_judges_them(recorded, tmp_path):
    run = tmp_path / "run"
    made = improvement.improve(run, ingested(recorded, run), recorded / "policy", ROBOT, QUICK)
    image = np.full((*SIZE, 3), 90, np.uint8)
    observation = Observation(0, ROBOT.home.astype(np.float32), {CAMERA: image}, "stir")
    best = load_policy(improvement.write_best_of_n(made, 3, ROBOT), ROBOT)
    chunk = best.propose(observation, np.random.default_rng(0))
    assert chunk.shape == (HORIZON, 14)
    score = ChunkScorer(run / "001", run / "001" / "policy", ROBOT).score(observation, chunk)
    assert np.isfinite([score.q, score.v, score.advantage]).all()
    with pytest.raises(AloeError, match="all weights of this BestOfN are frozen"):
        load_trainable(run / "001" / "best_of_n", ROBOT)


def test_what_cannot_be_improved_is_refused_before_anything_is_learned(recorded, tmp_path):
    store = ingested(recorded, tmp_path)
    recap = ImproveConfig(method="recap", learner=QUICK.learner)
    with pytest.raises(AloeError, match="recap conditions policies of type 'flow', not GlimpsePolicy"):
        improvement.improve(tmp_path, store, recorded / "policy", ROBOT, recap)
    assert not (tmp_path / "001" / STATE_FILE).exists()
    for name in ("untold", "scripted"):
        with pytest.raises(AloeError, match=f"{name} can drive the robot but not be trained"):
            load_trainable(name, ROBOT)


def test_it_is_fine_tuned_on_demonstrations(recorded, tmp_path, capsys):
    config = tmp_path / "bc.yaml"
    text = "steps: 4\nbatch_size: 8\nsave_every: 2\nlearning_rate: 0.01\nwarmup_steps: 0\nema_decay: 0.0\n"
    config.write_text(text)
    arguments = ["train", "bc", str(recorded / "bags"), "--policy", str(recorded / "policy"), "--config", str(config)]
    run = tmp_path / "run"
    assert main([*arguments, "--output", str(run)]) == 0
    assert "0.00 M frozen" in capsys.readouterr().out
    before, after = weights(recorded / "policy"), weights(run / "policy")
    assert torch.equal(before["eye.weight"], after["eye.weight"])
    assert not torch.equal(before["words.weight"], after["words.weight"])
    assert not any("eye" in key for key in read_state(run / "training.safetensors")[0])

    def refused(message, *more, extra="", start=recorded / "policy"):
        config.write_text(text + extra)
        command = ["train", "bc", str(recorded / "bags"), "--config", str(config), *more]
        assert main([*command, *(["--policy", str(start)] if start else [])]) == 1
        assert message in capsys.readouterr().err

    refused("brings its own 'horizon'", "--output", str(tmp_path / "x"), extra="horizon: 9\n")
    save_policy(tmp_path / "other", ROBOT, seed=1)
    refused("was started from own-0-", "--output", str(run), "--resume", start=tmp_path / "other")
