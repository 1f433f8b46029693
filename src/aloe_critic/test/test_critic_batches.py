"""What the critic is shown of a store: the policy's chunks belong to the states they are asked for, and cuts reach targets and masks."""

import pytest
import torch

from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_critic.critic_batches import CriticBatches
from aloe_critic.learner import LearnerConfig
from aloe_critic.methods import make_method
from aloe_critic.replay import StoreReplay
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import ChunkSamples, ReplayStore, RewardConfig

ROBOT = load_robot("aloha_sim")
HORIZON, STEPS, GAMMA = 8, 30, 0.9


class Echo(TrainablePolicy):
    """Every row of its chunk is the state it saw, which no two ticks share."""

    def __init__(self):
        super().__init__()
        self.spec = PolicySpec.of(ROBOT, HORIZON)

    def act(self, batch, generator, prefix=None, prefix_steps=0):
        return batch["state"][:, None].expand(-1, HORIZON, -1).contiguous()

    def loss(self, batch, generator):
        raise AssertionError("nothing is trained here")

    def save(self, folder, name="policy-0"):
        raise AssertionError("nothing is saved here")

    load = save


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    """A success and a failure, backed up over whole chunks."""
    root = tmp_path_factory.mktemp("store")
    for seed, outcome in enumerate((Outcome.SUCCESS, Outcome.FAILURE)):
        SyntheticEpisode(ROBOT, steps=STEPS, seed=seed, outcome=outcome).write(root / "bags" / f"e{seed}")
    store = ReplayStore(root / "store")
    store.ingest([root / "bags"], ROBOT)
    return StoreReplay(ChunkSamples(store, HORIZON, RewardConfig(GAMMA)))


def teach(replay, folder, method="aloe", **config):
    """Every sample ten times over, as a critic step sees them, and how many steps each may have at most."""
    index = torch.arange(len(replay.start)).repeat(10)
    batches = CriticBatches(
        make_method(method, replay.critic_config(width=8, steps_per_token=4), return_range=replay.return_range),
        replay,
        LearnerConfig(**config),
        torch.device("cpu"),
        folder,
        judged=len(index),
    )
    batch = batches.to_teach(Echo(), index, torch.Generator().manual_seed(0))
    return batch, replay.start[index], (STEPS - index % STEPS).clamp(max=HORIZON)


@pytest.mark.parametrize("presample", [True, False])
@pytest.mark.parametrize("cut_share", [0.0, 0.5, 1.0])
def test_the_policys_chunks_are_those_of_the_start_and_of_where_it_is_backed_up_to(
    replay, tmp_path, presample, cut_share
):
    batch, start, most = teach(replay, tmp_path, presample=presample, cut_share=cut_share, target_samples=2)
    state = torch.from_numpy(replay.store.arrays["state"])
    executed = batch["action_mask"].sum(dim=1)
    assert batch["next_policy_action"].shape == (len(start), 2, HORIZON, 14)
    assert torch.equal(batch["policy_action"][:, 0, 0], state[start])
    for row in (0, HORIZON - 1):
        assert torch.equal(batch["next_policy_action"][:, 0, row], state[start + executed])
        assert torch.equal(batch["next_policy_action"][:, 1, row], state[start + executed])
    assert torch.equal(batch["next"]["state"], state[start + executed])
    ends = (start % (STEPS + 1)) + executed == STEPS
    assert torch.allclose(batch["bootstrap_discount"], torch.where(ends, 0.0, GAMMA**executed))
    running = -(1 - GAMMA**executed)
    assert torch.allclose(batch["chunk_return"][~ends], running[~ends], atol=1e-6)

    cut = executed < most
    assert (executed >= 1).all()
    assert (executed <= most).all()
    if cut_share:
        whole_chunks = most == HORIZON
        lengths = executed[whole_chunks].bincount(minlength=HORIZON + 1)
        assert (lengths[1:] > 0).all()  # cut anywhere
        expected = cut_share * (HORIZON - 1) / HORIZON  # a cut may fall on the last row
        assert cut[whole_chunks].float().mean().item() == pytest.approx(expected, abs=0.08)
    else:
        assert not cut.any()


def test_returns_that_are_not_backed_up_are_not_cut(replay, tmp_path):
    batch, _, most = teach(replay, tmp_path, "monte_carlo_q", cut_share=1.0)
    assert torch.equal(batch["action_mask"].sum(dim=1), most)


def test_what_came_in_after_the_chosen_episodes_is_not_looked_at(replay):
    """So an interrupted iteration draws the same table again, whatever was recorded since."""
    chosen = StoreReplay(ChunkSamples(replay.store, HORIZON, episodes=[0]))
    assert (replay.ticks, chosen.ticks) == (2 * (STEPS + 1), STEPS + 1)
    assert chosen.observe(torch.tensor([chosen.ticks - 1]))["state"].isfinite().all()
