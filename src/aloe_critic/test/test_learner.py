"""The learner: what it learns, and that neither a kill nor numbers that go wrong cost a run."""

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from critic_toys import REFRESH, ToyReplay, toy_learner, toy_policy

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Source
from aloe_critic.learner import STATE_FILE, Cancelled, Diverged, learning_rate
from aloe_critic.methods import METHODS
from aloe_critic.metrics import METRICS_FILE, Metrics, read_metrics
from aloe_policy.training_state import random_numbers, read_state, write_state

TOYS = Path(__file__).with_name("critic_toys.py")


def states_equal(one, other):
    (tensors, facts), (others, other_facts) = read_state(one / STATE_FILE), read_state(other / STATE_FILE)
    assert facts == other_facts
    assert tensors.keys() == others.keys()
    return [key for key in tensors if not torch.equal(tensors[key], others[key])]


@pytest.mark.slow
def test_a_killed_run_resumes_bit_by_bit(tmp_path, start_process):
    command = [sys.executable, str(TOYS), str(tmp_path / "killed"), "aloe"]
    for moment in ("critic 18", "actor 21"):
        process = start_process(command)
        process.wait_for(f"^{moment}$")
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    start_process(command).wait_for("finished")
    toy_learner(tmp_path / "whole", "aloe", refresh=REFRESH).run()
    assert states_equal(tmp_path / "whole", tmp_path / "killed") == []
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "killed")


@pytest.mark.parametrize("method", ["recap", "bee", "filtered_bc"])
def test_every_kind_of_actor_resumes_bit_by_bit(tmp_path, method):
    with pytest.raises(Cancelled):
        toy_learner(tmp_path / "stopped", method, lambda p: not (p.stage == "actor" and p.step == 21)).run()
    toy_learner(tmp_path / "stopped", method).run()
    toy_learner(tmp_path / "whole", method).run()
    assert states_equal(tmp_path / "whole", tmp_path / "stopped") == []


@pytest.mark.slow
def test_processes_that_learn_together_agree(tmp_path, start_process):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start_process([*launch, str(TOYS), str(tmp_path), "aloe"], env={"ACCELERATE_USE_CPU": "true"})
    found = [process.wait_for(rf"finished ([0-9.]+) in process {rank}$", timeout=90.0).group(1) for rank in (0, 1)]
    assert found[0] == found[1]
    assert read_state(tmp_path / STATE_FILE)[1]["actor_step"] == 30


def test_batches_keep_to_the_shares_of_sources(tmp_path):
    seen = []

    class Watched(ToyReplay):
        def samples(self, index, steps=None):
            seen.append(self.facts.source[index])
            return super().samples(index, steps)

    learner = toy_learner(tmp_path, critic_steps=20, actor_steps=1, source_shares={"human": 3, "policy": 1})
    learner.replay = learner.batches.replay = Watched()
    learner.learn_critic()
    assert [int((source == Source.HUMAN).sum()) for source in seen[:20]] == [24] * 20
    with pytest.raises(AloeError, match="no sample of source 'scripted'"):
        toy_learner(tmp_path / "other", source_shares={"scripted": 1}).run()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_hands_out_a_policy(tmp_path, method):
    policy = toy_learner(tmp_path, method, critic_steps=4, actor_steps=4).run()
    chunk = policy.act(ToyReplay().observe(torch.arange(3)), torch.Generator().manual_seed(0))
    assert chunk.shape == (3, 10, 2)
    assert chunk.isfinite().all()
    stages = {row["stage"] for row in read_metrics(tmp_path)}
    assert stages == (
        {"weights", "actor"} if method in ("filtered_bc", "hg_dagger") else {"critic", "weights", "actor"}
    )


def test_aloe_improves_on_the_policy_that_was_recorded(tmp_path):
    """On all data, failures included, so that only the weights can tell what is worth imitating; with exponents clipped at 0 they are all 1."""
    replay = ToyReplay()
    scores = []
    for clip in (0.0, 1.0):
        learner = toy_learner(
            tmp_path / str(clip),
            "aloe",
            critic_steps=200,
            actor_steps=200,
            batch_size=128,
            checkpoint_every=1000,
            options={"beta": 0.3, "clip": clip, "learn_from_failures": True},
        )
        chunks = learner.run().act(replay.observe(torch.arange(200)), torch.Generator().manual_seed(0))
        best = torch.stack([replay.state[:200, 0], -replay.state[:200, 0]], dim=1)
        scores.append((chunks.mean(dim=1) - best).square().sum(dim=1).mean().item())
    imitated, improved = scores
    assert imitated < -replay.returns.mean().item()
    assert improved < 0.6 * imitated  # squared errors; with the signs of the advantages flipped it is twice as large


def test_the_same_seed_gives_the_same_run(tmp_path):
    toy_learner(tmp_path / "one").run()
    toy_learner(tmp_path / "two").run()
    assert states_equal(tmp_path / "one", tmp_path / "two") == []


def test_presampled_chunks_are_those_of_the_policy(tmp_path):
    learner = toy_learner(tmp_path)
    table = learner.batches.presampled(learner.behaviour)
    everything = table.draw(torch.arange(400), 4, torch.Generator())
    assert everything.shape == (400, 4, 10, 2)
    assert not list(tmp_path.glob("policy_chunks*")), "the file goes with the process"
    one = table.draw(torch.tensor([7, 7]), 1, torch.Generator().manual_seed(3))
    assert all((everything[7] == chunk).flatten(1).all(dim=1).any() for chunk in one.squeeze(1))
    fresh = toy_policy().act(learner.replay.observe(torch.arange(400)), torch.Generator().manual_seed(5))
    assert everything.mean().item() == pytest.approx(fresh.mean().item(), abs=0.05)
    assert everything.std().item() == pytest.approx(fresh.std().item(), rel=0.1)


def test_of_a_long_replay_no_more_is_judged_than_the_actor_is_shown(tmp_path):
    def judged(folder, **config):
        learner = toy_learner(
            tmp_path / folder, critic_steps=2, batch_size=16, options={"learn_from_failures": True}, **config
        )
        learner.run()
        return learner.weight_N.nonzero().squeeze(1)

    assert len(judged("all", actor_steps=25)) == 400
    some = judged("some", actor_steps=6)
    assert len(some) == 6 * 16
    assert some.unique().equal(some)
    human = ToyReplay().facts.source == Source.HUMAN  # a quarter
    assert 14 <= int(human[some].sum()) <= 34
    even = judged("even", actor_steps=6, source_shares={"human": 1, "policy": 1})
    assert 36 <= int(human[even].sum()) <= 60
    only = judged("only", actor_steps=10, source_shares={"human": 1})
    assert only.equal(human.nonzero().squeeze(1))  # there are not more
    assert judged("again", actor_steps=6).equal(some)
    assert not judged("seed", actor_steps=6, seed=1).equal(some)


def test_chunks_are_presampled_where_those_are_fewer(tmp_path):
    def presamples(**config):
        options = {"learn_from_failures": True}
        return toy_learner(tmp_path, batch_size=10, policy_samples=4, options=options, **config).batches.presamples

    assert not presamples(critic_steps=40, actor_steps=19)  # 40 * 10 * 2 + 4 * 190 = 1560 of 1600
    assert presamples(critic_steps=40, actor_steps=20)
    assert presamples(critic_steps=40, actor_steps=19, presample=True)
    assert not presamples(critic_steps=40, actor_steps=20, presample=False)


def test_a_disk_without_room_for_the_presampled_chunks_is_named(tmp_path, monkeypatch):
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(AloeError, match=rf"{tmp_path}: no room .* No space left on device; `presample: false`"):
        toy_learner(tmp_path).run()


def test_cancelling_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(Cancelled):
        toy_learner(tmp_path, on_progress=lambda p: not (p.stage == "critic" and p.step == 9)).run()
    assert read_state(tmp_path / STATE_FILE)[1]["critic_step"] == 8


def test_divergence_names_what_when_and_what_is_left(tmp_path):
    learner = toy_learner(tmp_path)

    def spoil(progress):
        if progress.stage == "critic" and progress.step == 9:
            learner.replay.returns[:] = float("inf")

    learner.on_progress = spoil
    with pytest.raises(
        Diverged, match=r"the critic diverged at step 9: its loss is inf; the checkpoint .* Lower critic_lr"
    ):
        learner.run()
    tensors, facts = read_state(tmp_path / STATE_FILE)
    assert facts["critic_step"] == 8
    assert all(t.isfinite().all() for t in tensors.values())


def test_a_critic_that_leaves_the_range_of_returns_has_diverged(tmp_path):
    with pytest.raises(Diverged, match=r"values of .* while returns lie within"):
        toy_learner(tmp_path, critic_lr=30.0, grad_clip=1e9, warmup_steps=1).run()


def test_another_configuration_does_not_continue_a_run(tmp_path):
    toy_learner(tmp_path).run()
    with pytest.raises(AloeError, match="another config"):
        toy_learner(tmp_path, seed=5).run()
    with pytest.raises(AloeError, match="another method"):
        toy_learner(tmp_path, "iql").run()


def test_a_finished_run_is_not_repeated(tmp_path):
    first = toy_learner(tmp_path).run()
    steps = []
    again = toy_learner(tmp_path, on_progress=lambda p: steps.append(p.stage)).run()
    assert not {"critic", "actor"} & set(steps)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_nothing_to_imitate_is_an_error_that_says_so(tmp_path):
    learner = toy_learner(tmp_path, "filtered_bc")
    learner.replay.facts.outcome[:] = 2
    with pytest.raises(AloeError, match="'filtered_bc' leaves none of the 400 recorded chunks"):
        learner.run()


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(1.0, step, 110, 10) for step in range(110)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] < 1e-3


def test_random_numbers_depend_on_every_part_of_the_key():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    draws = [torch.rand(1, generator=random_numbers(*key)).item() for key in keys]
    assert len(set(draws)) == 4
    assert draws[0] == torch.rand(1, generator=random_numbers(0, 0, 0)).item()


def test_a_damaged_state_is_named(tmp_path):
    write_state(tmp_path / "x.safetensors", {"a": torch.ones(3)}, {"step": 1})
    assert read_state(tmp_path / "x.safetensors")[1] == {"step": 1}
    (tmp_path / "x.safetensors").write_bytes(b"not a state")
    with pytest.raises(AloeError, match=r"x\.safetensors .* damaged"):
        read_state(tmp_path / "x.safetensors")


def test_metrics_cut_short_by_a_kill_are_read(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"stage": "critic", "step": 1}\n{"stage": "cri')
    assert read_metrics(tmp_path) == [{"stage": "critic", "step": 1}]


def test_a_kill_while_metrics_are_rewritten_costs_nothing(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.add("critic", step, {"loss": 1.0 / step})
    before = read_metrics(tmp_path)

    def killed(*files):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        metrics.forget_after(2, 0)
    assert read_metrics(tmp_path) == before
    monkeypatch.undo()
    metrics.forget_after(2, 0)
    assert read_metrics(tmp_path) == before[:2]


def test_curves_of_a_resumed_run_have_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stop in (("critic", 18), ("actor", 6), None):
        learner = toy_learner(tmp_path, on_progress=lambda p, stop=stop: (p.stage, p.step) != stop, log_every=1)
        learner.metrics.tensorboard()
        try:
            learner.run()
        except Cancelled:
            pass
        learner.metrics.close()
    for stage, name in (("critic", "critic_loss"), ("actor", "flow_loss"), ("weights", "used_share")):
        curve = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        steps = [event.step for event in curve.Scalars(f"{stage}/{name}")]
        logged = [row["step"] for row in read_metrics(tmp_path) if row["stage"] == stage]
        assert steps == logged == sorted(set(steps)), stage
        assert len(steps) == (1 if stage == "weights" else 30)


def test_half_precision_with_a_scaled_loss_is_refused(tmp_path, monkeypatch):
    accelerator = Accelerator()
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")  # without a GPU, accelerate refuses it itself
    with pytest.raises(AloeError, match=r"mixed precision 'fp16' .* use 'bf16' or 'no'"):
        toy_learner(tmp_path, accelerator=accelerator)


@pytest.mark.slow
def test_processes_that_do_not_share_a_folder_are_refused(tmp_path, start_process):
    with pytest.raises(Cancelled):
        toy_learner(tmp_path / "0", on_progress=lambda p: (p.stage, p.step) != ("critic", 9), refresh=REFRESH).run()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start_process([*launch, str(TOYS), f"{tmp_path}/RANK", "aloe"], env={"ACCELERATE_USE_CPU": "true"})
    process.wait_for(r"AloeError: process 1 would go on from critic and actor step \[0, 0\], process 0 from \[8, 0\]")
    assert process.wait() != 0
