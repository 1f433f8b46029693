"""LeRobot's own policies, small and randomly initialised, through `aloe improve` and `aloe train bc`. Runs where the package `lerobot` is installed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot.policies.factory", reason="LeRobot is not installed here", exc_type=ImportError)

sys.path.append(str(Path(__file__).parents[2] / "aloe_policy" / "test"))

from glimpse_policy import Told
from lerobot_toys import CAMERA, ROBOT, A, H, Tokens, act_policy, toy_pi, toy_smolvla

from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.policy import load_policy
from aloe_core.vocabulary import Outcome, Source
from aloe_critic import improvement
from aloe_critic.improvement import ImproveConfig
from aloe_critic.learner import STATE_FILE, Cancelled, Learner, LearnerConfig
from aloe_critic.methods import make_method
from aloe_critic.replay import fit_to
from aloe_policy.lerobot import LeRobotPolicy
from aloe_policy.replay import ReplayStore
from aloe_policy.trainable import load_trainable
from aloe_policy.training_state import read_state

QUICK = ImproveConfig(
    critic={"width": 16, "layers": 1},
    learner=LearnerConfig(critic_steps=2, actor_steps=3, batch_size=8, policy_samples=2, checkpoint_every=1),
)
IMAGE = np.full((32, 48, 3), 90, np.uint8)
OBSERVATION = Observation(0, ROBOT.home.astype(np.float32), {CAMERA: IMAGE}, "stir")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two demonstrations and a failure, told different things, with images."""
    root = tmp_path_factory.mktemp("recorded")
    for k, text in enumerate(("pour", "stir", "serve")):
        outcome, source = (Outcome.SUCCESS, Source.SCRIPTED) if k < 2 else (Outcome.FAILURE, Source.POLICY)
        episode = Told(ROBOT, steps=16, seed=k, cameras=(CAMERA,), outcome=outcome, source=source)
        episode.instruction = text
        episode.write(root / "bags" / f"e{k}")
    return root


def lerobot_folder(folder, images=True):
    """A checkpoint as LeRobot itself writes it."""
    policy = act_policy(images)
    for part in (policy.policy, policy.preprocessor, policy.postprocessor):
        part.save_pretrained(folder)
    return f"lerobot:{folder}"


def difference(one, other):
    return [key for key, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[key])]


@pytest.mark.parametrize("method", ["aloe", "hg_dagger"])
def test_a_checkpoint_of_lerobot_is_improved_by_the_command(recorded, tmp_path, method):
    start = lerobot_folder(tmp_path / "act")
    config = tmp_path / "improve.yaml"
    config.write_text(
        "critic: {width: 16, layers: 1}\nlearner: {critic_steps: 2, actor_steps: 3, batch_size: 8, policy_samples: 2}\n"
    )
    more = ["--bags", str(recorded / "bags"), "--config", str(config), "--method", method, "--json"]
    arguments = ["improve", str(tmp_path / "run"), *more, str(tmp_path / "out.json")]
    assert main([*arguments, "--policy", start]) == 0
    first = json.loads((tmp_path / "out.json").read_text())
    assert first["parent_version"].startswith("act-0-")
    assert json.loads((Path(first["policy"]) / "policy.json").read_text())["type"] == "lerobot"
    assert difference(load_trainable(start, ROBOT)[0], load_trainable(first["policy"], ROBOT)[0])
    acting = load_policy(first["policy"], ROBOT)  # what policy_node loads when it is announced
    assert acting.version == first["version"]
    assert acting.propose(OBSERVATION, np.random.default_rng(0)).shape == (H, A)
    assert main(arguments) == 0  # the next iteration, from our own checkpoint
    assert json.loads((tmp_path / "out.json").read_text())["parent_version"] == first["version"]


def test_without_cameras_the_critic_sees_the_object_state(recorded, tmp_path):
    act_policy().save(tmp_path / "act", "act-0")
    store, _ = improvement.ingest(tmp_path, [recorded / "bags"], tmp_path / "act", ROBOT)
    made = improvement.improve(tmp_path, store, tmp_path / "act", ROBOT, replace(QUICK, critic_horizon=3))
    replay = improvement.make_replay(store, load_trainable(made.policy, ROBOT)[0], QUICK)
    assert improvement.critic_config(replay, QUICK).object_dim == 7


def test_an_interrupted_improvement_goes_on_bit_for_bit(recorded, tmp_path):
    start = Path(lerobot_folder(tmp_path / "act"))
    made = []
    for name, stop in (("whole", ("", 0)), ("actor", ("actor", 2))):
        run = tmp_path / name / "run"
        store, _ = improvement.ingest(run, [recorded / "bags"], start, ROBOT)
        if stop[0]:
            with pytest.raises(Cancelled):
                improvement.improve(run, store, start, ROBOT, QUICK, lambda p, stop=stop: (p.stage, p.step) != stop)
        made.append(improvement.improve(run, store, start, ROBOT, QUICK))
    assert made[0].version == made[1].version


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_a_vla_learns_by_advantage_with_its_frozen_parts_left_alone(monkeypatch, recorded, tmp_path, kind):
    inner = toy_smolvla(monkeypatch) if kind == "smolvla" else toy_pi(monkeypatch, kind)
    told = set()

    class Words(Tokens):
        def __call__(self, inputs):
            told.update(inputs["task"])
            return super().__call__(inputs)

    policy = LeRobotPolicy(inner, Words(), lambda chunk: chunk, ROBOT)
    store = ReplayStore(tmp_path / "store")
    store.ingest([recorded / "bags"], ROBOT, (CAMERA,), policy.spec.image_size)
    name = improvement.CRITIC_ENCODER
    store.cache_features(name, lambda images: np.ones((len(images), 64, 112)) * images.mean((1, 2, 3))[:, None, None])
    replay = improvement.make_replay(store, policy, QUICK)
    method = make_method("aloe", improvement.critic_config(replay, QUICK))
    fit_to(method, replay)
    frozen = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in policy.named_parameters() if p.requires_grad}
    improved = Learner(method, policy, replay, QUICK.learner, tmp_path / "run").run()
    after = dict(improved.named_parameters())
    assert all(torch.equal(value, after[n]) for n, value in frozen.items())
    assert any(not torch.equal(value, after[n]) for n, value in before.items())
    assert told == {"pour", "stir", "serve"}
    saved, _ = read_state(tmp_path / "run" / STATE_FILE)
    assert not {f"actor/{n}" for n in frozen} & set(saved)
    if kind == "smolvla":
        assert frozen  # its vision-language model


def test_recap_is_refused(recorded, tmp_path):
    start = Path(lerobot_folder(tmp_path / "act"))
    store, _ = improvement.ingest(tmp_path, [recorded / "bags"], start, ROBOT)
    with pytest.raises(AloeError, match="recap conditions policies of type 'flow', not LeRobotPolicy"):
        improvement.improve(tmp_path, store, start, ROBOT, replace(QUICK, method="recap"))


def test_fine_tuning_by_behaviour_cloning(recorded, tmp_path):
    start = lerobot_folder(tmp_path / "act")
    config = tmp_path / "bc.yaml"
    config.write_text("steps: 4\nbatch_size: 8\nsave_every: 2\nwarmup_steps: 0\n")
    arguments = ["train", "bc", str(recorded / "bags"), "--policy", start, "--config", str(config)]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    tuned = load_policy(str(tmp_path / "run" / "policy"), ROBOT)
    assert tuned.version.startswith("bc-0-")
    assert difference(load_trainable(start, ROBOT)[0], tuned.policy)
    assert tuned.propose(OBSERVATION, np.random.default_rng(0)).shape == (H, A)
