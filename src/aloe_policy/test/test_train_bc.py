"""Behaviour cloning from bags: it learns, resumes bit for bit, agrees over processes, and refuses data it cannot use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aloe_core.bag_format import EpisodeInfo
from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_policy.bc_config import BcConfig, load_config
from aloe_policy.demonstrations import open_demonstrations
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.protocol import SampleBatch
from aloe_policy.train_bc import STATE_FILE, BcTrainer, make_policy

ROBOT = load_robot("aloha_sim")
CONFIG = BcConfig(
    horizon=6, steps=12, batch_size=16, save_every=6, log_every=4, policy=FlowConfig(width=16, layers=1, steps=2)
)


class Episodes:
    """Episodes of 20 ticks that keep near one position; the action is the state, shifted."""

    def __init__(self, count: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        centre = np.repeat(rng.uniform(-1, 1, (count, 14)), 20, axis=0)
        self.state = torch.from_numpy(centre + rng.normal(0, 0.1, centre.shape)).float()
        self.action = self.state + 0.5

    def __len__(self) -> int:
        return len(self.state)

    def chunk_batch(self, ticks: torch.Tensor, horizon: int) -> SampleBatch:
        rows, stop = ticks[:, None] + torch.arange(horizon), (ticks[:, None] // 20 + 1) * 20
        action = self.action[torch.minimum(rows, stop - 1)]
        return {
            "state": self.state[ticks],
            "object_state": self.state[ticks, :7],
            "action": action,
            "action_mask": rows < stop,
            "at_end": torch.ones(len(ticks), dtype=torch.bool),
        }

    def vectors(self) -> dict[str, np.ndarray]:
        return {
            "state": self.state.numpy(),
            "action": self.action.numpy(),
            "object_state": self.state[:, :7].numpy(),
        }


def trainer(output: Path, config: BcConfig = CONFIG, data: Episodes | None = None) -> BcTrainer:
    data = data or Episodes()
    return BcTrainer(make_policy(config, ROBOT, data), data, config, output)


def test_the_loss_falls(tmp_path: Path) -> None:
    losses = []
    config = replace(CONFIG, steps=150, log_every=10, learning_rate=3e-3)
    trainer(tmp_path, config).run(lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert FlowPolicy.load(tmp_path / "policy", ROBOT).spec.object_dim == 7
    assert list((tmp_path / "tensorboard").iterdir())


class Killed(Exception):
    """Stands for the kill."""


def test_a_killed_and_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    broken = trainer(tmp_path / "broken")
    original = broken._train_step

    def step() -> torch.Tensor:
        if broken.step == 9:  # three steps after the last save
            raise Killed
        return original()

    broken._train_step = step
    with pytest.raises(Killed):
        broken.run()
    torch.manual_seed(99)  # nothing may depend on the global generator
    resumed = trainer(tmp_path / "broken")
    resumed.resume()
    assert resumed.step == 6
    resumed.run()
    whole, again = (load_file(tmp_path / run / STATE_FILE) for run in ("whole", "broken"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    hashes = {
        json.loads((tmp_path / run / "policy" / "policy.json").read_text())["sha256"] for run in ("whole", "broken")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("save_every", [6, 100])
def test_a_run_killed_before_its_last_policy_writes_it_when_resumed(tmp_path: Path, save_every: int) -> None:
    config = replace(CONFIG, save_every=save_every)
    broken = trainer(tmp_path / "broken", config)
    original = broken.policy.save

    def save(folder: Path, name: str) -> str:
        if broken.step == config.steps:  # the state of the last step is there already
            raise Killed
        return original(folder, name)

    broken.policy.save = save
    with pytest.raises(Killed):
        broken.run()
    resumed = trainer(tmp_path / "broken", config)
    resumed.resume()
    assert resumed.step == config.steps
    resumed.run()
    trainer(tmp_path / "whole", config).run()
    versions = {FlowPolicy.load_with_version(tmp_path / run / "policy")[1] for run in ("whole", "broken")}
    assert len(versions) == 1


@pytest.mark.parametrize("broken", ["loss", "weight"])
def test_a_diverged_run_keeps_what_was_saved_before(tmp_path: Path, broken: str) -> None:
    run = trainer(tmp_path, replace(CONFIG, save_every=3, log_every=12))
    original = run._train_step

    def step() -> torch.Tensor:
        loss = original()
        if run.step == 5 and broken == "weight":
            with torch.no_grad():
                next(run.policy.parameters()).fill_(float("inf"))
        return loss * float("nan") if run.step == 5 and broken == "loss" else loss

    run._train_step = step
    with pytest.raises(AloeError, match="the training diverged before step 6: lower learning_rate"):
        run.run()
    FlowPolicy.load(tmp_path / "policy", ROBOT)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / STATE_FILE).values())
    resumed = trainer(tmp_path, replace(CONFIG, save_every=3, log_every=12))
    resumed.resume()
    assert resumed.step == 3


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(AloeError, match=r"started with learning_rate = 0\.001, not 0\.1"):
        trainer(tmp_path, replace(CONFIG, learning_rate=0.1)).resume()
    with pytest.raises(AloeError, match="other demonstrations"):
        trainer(tmp_path, data=Episodes(seed=1)).resume()
    with pytest.raises(AloeError, match="there is no saved state"):
        trainer(tmp_path / "nothing").resume()


def test_the_policy_holds_the_average_of_the_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run()
    saved = FlowPolicy.load(tmp_path / "policy").state_dict()
    assert all(torch.equal(saved[k], v) for k, v in run.ema.items())
    assert not all(torch.equal(saved[k], v) for k, v in run.policy.state_dict().items())


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_train_bc import CONFIG, trainer
run = trainer(Path(sys.argv[2]), replace(CONFIG, steps=4))
assert run.accelerator.num_processes == 2
run.run(lambda step, loss: print(f"LOSS {loss:.9f}", flush=True))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        + [str(Path(__file__).parent), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (printed,) = [float(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("LOSS")]
    losses: list[float] = []
    trainer(tmp_path / "one", replace(CONFIG, steps=4, accumulate=2)).run(lambda step, loss: losses.append(loss))
    assert printed == pytest.approx(losses[0], rel=1e-6)
    two, one = (load_file(tmp_path / name / STATE_FILE) for name in ("two", "one"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_command_in_two_processes_trains_as_one(tmp_path: Path) -> None:
    root = bags(tmp_path / "bags", [Outcome.SUCCESS] * 2)
    config = tmp_path / "bc.yaml"
    settings = "horizon: 4\nsteps: 2\nbatch_size: 4\nwarmup_steps: 0\npolicy: {width: 16, layers: 1}\n"
    config.write_text(settings)
    command = ["train", "bc", str(root), "--config", str(config), "--output"]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + ["-m", "aloe_core.cli", *command, str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("16 samples") == 1
    config.write_text(settings + "accumulate: 2\n")
    assert main([*command, str(tmp_path / "one")]) == 0
    two, one = (load_file(tmp_path / name / STATE_FILE) for name in ("two", "one"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)
    assert FlowPolicy.load(tmp_path / "two" / "policy", ROBOT).spec.horizon == 4


@pytest.mark.parametrize("hold", [True, False])
def test_rows_past_the_end_teach_to_hold_if_wanted(tmp_path: Path, hold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SampleBatch] = []
    original = FlowPolicy.loss
    monkeypatch.setattr(
        FlowPolicy, "loss", lambda self, batch, generator: (seen.append(batch), original(self, batch, generator))[1]
    )
    trainer(tmp_path, replace(CONFIG, steps=1, hold_at_end=hold)).run()
    assert ("action_mask" in seen[0]) is not hold
    assert seen[0]["action"].shape == (16, 6, 14)


def test_rows_past_a_gap_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = SyntheticEpisode.messages

    def without_one(self: SyntheticEpisode, info: EpisodeInfo) -> list:
        return [m for m in messages(self, info) if not (m[0].endswith("transition") and m[2].step == 5)]

    monkeypatch.setattr(SyntheticEpisode, "messages", without_one)
    root = bags(tmp_path / "bags", [Outcome.SUCCESS], steps=12)
    data = open_demonstrations(tmp_path / "store", [root], ROBOT, CONFIG)
    assert data.store.segments.tolist() == [[0, 4, 0], [5, 11, 0]]  # the observation after step 4 was lost with step 5
    run = BcTrainer(make_policy(CONFIG, ROBOT, data), data, CONFIG, tmp_path)
    batch = run._batch(torch.arange(len(data)))
    assert batch["action_mask"].sum(1).tolist() == [4, 3, 2, 1] + [6] * 6
    assert "action_mask" not in run._batch(torch.arange(4, len(data)))  # held at the end of the episode


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("batch_size: 6\naccumulate: 4", "batch_size 6 cannot be split evenly over 1 processes x 4 parts"),
        ("policy: {network: transformer, width: 30}", "width 30 is not a multiple of heads 4"),
        ("policy: {rows_per_token: 3}", "rows_per_token 3 does not divide the horizon of 50"),
        ("cameras: [overhead]\npolicy: {encoder: resnet}", "unknown image encoder 'resnet'"),
        ("cameras: [overhead]\nimage_size: 100", "multiple of 16, not 100x100"),
        ("cameras: [ceiling]", "no camera 'ceiling'"),
    ],
)
def test_impossible_runs_are_refused_before_bags_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: str, message: str
) -> None:
    config = tmp_path / "bc.yaml"
    config.write_text(keys)
    arguments = [str(tmp_path / "no_bags"), "--config", str(config), "--output", str(tmp_path / "run")]
    assert main(["train", "bc", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_an_uneven_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="batch_size 16 cannot be split evenly over 1 processes x 3 parts"):
        trainer(tmp_path, replace(CONFIG, accumulate=3))


def bags(folder: Path, outcomes: Sequence[Outcome], cameras: Sequence[str] = (), **options) -> Path:
    for seed, outcome in enumerate(outcomes):
        episode = SyntheticEpisode(ROBOT, **{"steps": 8, **options}, seed=seed, outcome=outcome, cameras=cameras)
        episode.write(folder / f"episode_{seed}")
    return folder


def test_only_episodes_with_the_wanted_outcome_are_read(tmp_path: Path) -> None:
    root = bags(tmp_path / "bags", [Outcome.SUCCESS, Outcome.FAILURE, Outcome.SUCCESS])
    data = open_demonstrations(tmp_path / "store", [root], ROBOT, CONFIG)
    assert len(data) == 16
    batch = data.chunk_batch(torch.arange(8, 16), 3)
    expected = SyntheticEpisode(ROBOT, steps=8, seed=2)
    np.testing.assert_allclose(batch["action"][:, 0].numpy(), expected.executed, atol=1e-6)
    np.testing.assert_allclose(batch["object_state"].numpy(), expected.objects[:-1], atol=1e-6)
    assert batch["action_mask"].sum(1).tolist() == [3] * 6 + [2, 1]


def test_images_become_features_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aloe_policy.encoders.embed", lambda text: np.full(384, len(text), np.float32))
    root = bags(tmp_path / "bags", [Outcome.SUCCESS], cameras=["overhead"], image_size=(32, 32))
    config = replace(CONFIG, cameras=("overhead",), image_size=32)
    encoded = []
    for _ in range(2):
        data = open_demonstrations(
            tmp_path / "s", [root], ROBOT, config, on_images=lambda done, total: encoded.append(total)
        )
    assert encoded == [5], "one image for two ticks, and the second time there is nothing left to do"
    batch = data.chunk_batch(torch.tensor([0, 1, 2]), 4)
    grids = batch["features"]["overhead"]
    assert grids.shape == (3, 4, 112)
    assert torch.equal(grids[0], grids[1])
    assert not torch.equal(grids[1], grids[2])
    assert (batch["instruction"] == len("do it")).all()
    policy = make_policy(config, ROBOT, data)
    assert policy.spec.object_dim == 0
    assert torch.isfinite(policy.loss(batch | data.chunk_batch(torch.arange(3), 6), torch.Generator())).all()


def test_bags_that_are_not_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bags(tmp_path / "bags", [Outcome.SUCCESS])
    SyntheticEpisode(load_robot("bimanual_ur5e"), steps=8, seed=1).write(root / "stranger")
    SyntheticEpisode(ROBOT, steps=8, seed=2).write(root / "killed", close=False)
    config = tmp_path / "bc.yaml"
    config.write_text("horizon: 4\nsteps: 2\nbatch_size: 4\npolicy: {width: 16, layers: 1}\n")
    assert main(["train", "bc", str(root), "--config", str(config), "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 bags used" in said
    assert re.search(r"left out .*stranger.*was recorded with robot 'bimanual_ur5e'", said)
    assert re.search(r"left out .*killed.*run aloe bags recover", said)


def test_bags_without_an_instruction_do_not_teach_to_follow_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aloe_policy.encoders.embed", lambda text: np.zeros(384, np.float32))
    info = SyntheticEpisode.info
    monkeypatch.setattr(
        SyntheticEpisode,
        "info",
        lambda self, episode: replace(info(self, episode), instruction="" if self.seed else "do it"),
    )
    root = bags(tmp_path / "bags", [Outcome.SUCCESS, Outcome.FAILURE], cameras=["overhead"], image_size=(32, 32))
    config = replace(CONFIG, cameras=("overhead",), image_size=32)
    open_demonstrations(tmp_path / "store", [root], ROBOT, config)  # that one failed and is not learned from
    with pytest.raises(AloeError, match="episode_1 holds no instruction"):
        open_demonstrations(tmp_path / "store", [root], ROBOT, replace(config, outcomes=("success", "failure")))
    open_demonstrations(tmp_path / "states", [root], ROBOT, replace(CONFIG, outcomes=("success", "failure")))


def test_the_command_trains_and_refuses_what_cannot_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bags(tmp_path / "bags", [Outcome.SUCCESS, Outcome.FAILURE])
    config = tmp_path / "bc.yaml"
    config.write_text("horizon: 4\nsteps: 2\nbatch_size: 4\npolicy: {width: 16, layers: 1}\n")
    base = ["train", "bc", str(root), "--config", str(config)]
    assert main([*base, "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "policy" / "policy.json").is_file()

    def refused(arguments: list[str], message: str) -> None:
        capsys.readouterr()
        assert main(arguments) == 1
        assert message in capsys.readouterr().err

    refused([*base, "--output", str(tmp_path / "run")], "holds a run already")
    refused([*base, "--output", str(tmp_path / "new"), "--resume"], "holds no run to resume")
    (tmp_path / "thesis" / "policy").mkdir(parents=True)
    refused([*base, "--output", str(tmp_path / "thesis")], "policy exists already; choose another folder as output")
    (tmp_path / "empty").mkdir()
    refused(["train", "bc", str(tmp_path / "empty"), "--output", str(tmp_path / "x")], "no bags in")
    config.write_text("robot: bimanual_ur5e\n")
    refused([*base, "--output", str(tmp_path / "x")], "was recorded with robot 'aloha_sim'")
    config.write_text("outcomes: [timeout]\n")
    refused([*base, "--output", str(tmp_path / "x")], "none of 2 episodes ended in timeout")
    config.write_text("cameras: [overhead]\n")
    refused([*base, "--output", str(tmp_path / "y")], "no images of camera 'overhead'")


def test_a_flow_policy_is_fine_tuned_from_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = bags(tmp_path / "a", [Outcome.SUCCESS])
    later = bags(tmp_path / "b", [Outcome.FAILURE, Outcome.SUCCESS])
    config = tmp_path / "bc.yaml"

    def train(*arguments: object, keys: str = "", steps: int = 4) -> int:
        config.write_text(f"steps: {steps}\nbatch_size: 4\nsave_every: 2\nema_decay: 0.0\nwarmup_steps: 0\n{keys}")
        return main(["train", "bc", *(str(a) for a in arguments), "--config", str(config)])

    fresh = "horizon: 4\npolicy: {width: 16, layers: 1}\n"
    assert train(first, "--output", tmp_path / "fresh", keys=fresh) == 0
    start = tmp_path / "fresh" / "policy"
    onward = [later, "--policy", start]
    assert train(*onward, "--output", tmp_path / "tuned") == 0
    before, after = (FlowPolicy.load(run / "policy", ROBOT) for run in (tmp_path / "fresh", tmp_path / "tuned"))
    assert after.spec == before.spec
    assert after.config == before.config
    changed = {key for key, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[key])}
    assert changed
    assert not any(key.startswith("normalisation") for key in changed)  # that of the data it was first trained on

    assert train(*onward, "--output", tmp_path / "tuned", "--resume", steps=4) == 0
    capsys.readouterr()
    assert train(later, "--output", tmp_path / "tuned", "--resume") == 1  # another start
    assert "was started from bc-0-" in capsys.readouterr().err
    assert train(*onward, "--output", tmp_path / "x", keys="horizon: 6\n") == 1
    assert "brings its own 'horizon'; leave that key out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "stepz: unknown key"),
        ("policy: {width: wide}", "policy.width: "),
        ("steps: 0", "steps must be at least 1"),
        ("outcomes: [great]", "outcome 'great' is not one of"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_bad_configurations(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bc.yaml"
    file.write_text(text)
    with pytest.raises(AloeError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
