"""Best-of-n acting: picks what the critic values most, and survives being saved."""

from types import SimpleNamespace

import pytest
import torch
from critic_toys import CRITIC, ToyReplay, toy_policy

from aloe_core.errors import AloeError
from aloe_critic.best_of_n import BestOfN
from aloe_critic.critic import ChunkCritic, pessimistic, small
from aloe_critic.critic_file import CriticFacts, load_critic, save_critic
from aloe_critic.methods import make_method

TOY_ROBOT = SimpleNamespace(name="toy", hash="0", action_names=("x", "y"), action_dim=2)  # what `critic_toys` moves


class Likes(ChunkCritic):
    """Values a chunk by its mean action."""

    def forward(self, batch):
        return batch["action"].mean(dim=(1, 2))[:, None].expand(-1, 2)


def observed(size=6):
    return ToyReplay().observe(torch.arange(size))


def test_the_best_of_many_is_the_best():
    torch.manual_seed(0)
    policy, critic = toy_policy(), Likes(CRITIC)
    best = BestOfN(policy, critic, 16).act(observed(), torch.Generator().manual_seed(1))
    repeated = {"state": observed()["state"].repeat_interleave(16, dim=0)}
    everything = policy.act(repeated, torch.Generator().manual_seed(1)).view(6, 16, 10, 2)
    assert torch.equal(best.mean(dim=(1, 2)), everything.mean(dim=(2, 3)).max(dim=1).values)


def test_best_of_one_is_the_policy():
    policy = toy_policy()
    alone = policy.act(observed(), torch.Generator().manual_seed(1))
    assert torch.equal(BestOfN(policy, Likes(CRITIC), 1).act(observed(), torch.Generator().manual_seed(1)), alone)


def test_saved_with_its_critic(tmp_path):
    torch.manual_seed(0)
    method = make_method("aloe", CRITIC)
    facts = CriticFacts("aloe", CRITIC, {}, (-2.0, 0.0), 0.99, "0", "bc-0")
    save_critic(tmp_path / "critic.safetensors", method, facts)
    loaded, read, version = load_critic(tmp_path)
    assert read == facts
    assert len(version) == 8
    best = BestOfN(toy_policy(), loaded.critic, 4, tmp_path / "critic.safetensors")
    sha = best.save(tmp_path / "best", "run-1")
    again, name = BestOfN.load_with_version(tmp_path / "best", TOY_ROBOT)
    assert name == f"run-1-{sha[:8]}"
    chunks = [p.act(observed(), torch.Generator().manual_seed(2)) for p in (best, again)]
    assert torch.equal(*chunks)
    with torch.no_grad():
        batch = {**observed(), "action": chunks[0]}
        assert torch.equal(pessimistic(again.critic, batch), pessimistic(method.critic, batch))
    assert again.save(tmp_path / "best", "run-1") == sha  # in the place of itself
    (tmp_path / "best" / "critic.safetensors").write_bytes(b"x" + (tmp_path / "critic.safetensors").read_bytes())
    with pytest.raises(AloeError, match="damaged"):
        BestOfN.load(tmp_path / "best", TOY_ROBOT)
    (tmp_path / "bags" / "e1").mkdir(parents=True)
    with pytest.raises(AloeError, match="holds 'e1' and is not a checkpoint"):
        best.save(tmp_path / "bags", "run-1")
    assert (tmp_path / "bags" / "e1").exists()


def test_sizes_must_fit():
    with pytest.raises(AloeError, match="judges 10 steps of 3 actions, the policy proposes 10 of 2"):
        BestOfN(toy_policy(), ChunkCritic(small(state_dim=2, action_dim=3, horizon=10)), 4)
    with pytest.raises(AloeError, match="n of at least 1"):
        BestOfN(toy_policy(), ChunkCritic(CRITIC), 0)


def test_a_state_value_cannot_choose_chunks(tmp_path):
    from aloe_critic.critic_file import chunk_critic

    with pytest.raises(AloeError, match="'awr' values states, not chunks"):
        chunk_critic(make_method("awr", CRITIC), "here")
