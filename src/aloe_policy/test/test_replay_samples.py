"""Chunk samples against closed forms: returns, bootstrap, borders, protocols, relabelling, sampling."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe_core.bag_labels import Label, append_label
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome, Source
from aloe_policy.replay import ChunkSamples, ReplayStore, RewardConfig, SourceSampler

ROBOT = load_robot("aloha_sim")
GAMMA = 0.9


def make_store(tmp_path: Path, *episodes: SyntheticEpisode) -> ReplayStore:
    for k, episode in enumerate(episodes):
        episode.write(tmp_path / "bags" / f"e{k}")
    store = ReplayStore(tmp_path / "store")
    assert len(store.ingest([tmp_path / "bags"], ROBOT).episodes) == len(episodes)
    return store


def brute_force(rewards: np.ndarray, steps: int) -> float:
    return sum(GAMMA**k * r for k, r in enumerate(rewards[:steps]))


@pytest.mark.parametrize(("horizon", "backup"), [(10, None), (10, 1), (10, 5), (50, None), (1, 1)])
@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.FAILURE, Outcome.UNLABELLED, Outcome.TIMEOUT])
def test_an_episode_without_intervention(tmp_path: Path, horizon: int, backup: int | None, outcome: Outcome) -> None:
    length, cost = 23, 40.0
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=length, outcome=outcome))
    reward = RewardConfig(gamma=GAMMA, failure_cost=cost)
    samples = ChunkSamples(store, horizon, reward, backup=backup)
    end = {Outcome.SUCCESS: 0.0, Outcome.FAILURE: -cost, Outcome.TIMEOUT: -cost, Outcome.UNLABELLED: -1.0}[outcome]
    rewards = (1 - GAMMA) * np.array([-1.0] * (length - 1) + [end])
    terminal = outcome != Outcome.UNLABELLED
    n = backup or horizon
    assert len(samples) == length  # also the starts whose chunk is cut
    for t in range(length):
        steps = min(n, length - t)
        ends = terminal and t + steps == length
        assert samples.chunk_return[t] == pytest.approx(brute_force(rewards[t:], steps), abs=1e-6)
        assert samples.bootstrap[t] == t + steps
        assert samples.bootstrap_discount[t] == pytest.approx(0 if ends else GAMMA**steps)
        assert samples.terminal[t] == ends
        if terminal:
            assert samples.return_to_go[t] == pytest.approx(brute_force(rewards[t:], length), abs=1e-6)
        else:
            assert np.isnan(samples.return_to_go[t])
    batch = samples.batch(np.arange(length))
    np.testing.assert_array_equal(batch["action_mask"].sum(axis=1), np.minimum(horizon, length - np.arange(length)))
    np.testing.assert_array_equal(batch["next"]["state"], store.arrays["state"][samples.bootstrap])
    assert (samples.return_to_go[~np.isnan(samples.return_to_go)] >= samples.return_range[0] - 1e-6).all()
    assert (samples.chunk_return <= samples.return_range[1] + 1e-6).all()
    assert samples.truncated.any() == (not terminal and horizon > 1)


def test_cut_chunks_are_backed_up_from_where_they_are_cut(tmp_path: Path) -> None:
    """The return to the cut plus what is left is the whole return, wherever the cut; the rows after it are masked."""
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=23, outcome=Outcome.FAILURE))
    samples = ChunkSamples(store, 10, RewardConfig(gamma=GAMMA, failure_cost=40.0))
    index = np.arange(23)
    for n in range(1, 11):
        batch = samples.batch(index, np.full(23, n))
        steps = np.minimum(n, 23 - index)
        np.testing.assert_array_equal(batch["bootstrap"], index + steps)
        np.testing.assert_array_equal(batch["terminal"], index + steps == 23)
        np.testing.assert_allclose(batch["bootstrap_discount"], np.where(batch["terminal"], 0, GAMMA**steps), rtol=1e-6)
        left = np.append(samples.return_to_go, 0.0)[batch["bootstrap"]]
        whole = batch["chunk_return"] + batch["bootstrap_discount"] * left
        np.testing.assert_allclose(whole, samples.return_to_go, atol=1e-5)
        np.testing.assert_array_equal(batch["action_mask"].sum(axis=1), steps)
        np.testing.assert_array_equal(batch["next"]["state"], store.arrays["state"][batch["bootstrap"]])
    uncut, plain = samples.batch(index, np.full(23, 10)), samples.batch(index)
    assert all(np.array_equal(uncut[name], plain[name]) for name in ("chunk_return", "bootstrap", "action_mask"))


def test_a_truncation_bootstraps_from_the_final_observation(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=6, outcome=Outcome.UNLABELLED)
    store = make_store(tmp_path, episode)
    samples = ChunkSamples(store, 10, RewardConfig(gamma=GAMMA))
    following = samples.batch(np.arange(6))["next"]
    np.testing.assert_allclose(following["state"], np.tile(episode.state[-1], (6, 1)), atol=1e-6)
    np.testing.assert_array_equal(following["stamp_ns"], episode.stamps_ns[-1])
    np.testing.assert_allclose(samples.bootstrap_discount, GAMMA ** (6.0 - np.arange(6)))


def test_running_out_of_time_may_be_a_mere_cut(tmp_path: Path) -> None:
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=6, outcome=Outcome.TIMEOUT))
    cut = ChunkSamples(store, 3, RewardConfig(gamma=GAMMA, timeout_is_failure=False))
    assert not cut.terminal.any()
    assert (cut.bootstrap_discount > 0).all()
    failed = ChunkSamples(store, 3, RewardConfig(gamma=GAMMA, timeout_is_failure=True))
    assert failed.terminal.sum() == 3


def test_aloe_protocol_splits_at_the_takeover(tmp_path: Path) -> None:
    """The policy's fragment ends in failure, the human's goes on to its release: the paper's protocol."""
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=30, human=(10, 18)))
    samples = ChunkSamples(store, 8, RewardConfig(gamma=GAMMA, failure_cost=20))
    np.testing.assert_array_equal(samples.fragment, np.repeat([0, 1, 2], [10, 8, 12]))
    np.testing.assert_array_equal(samples.source, np.repeat([Source.POLICY, Source.HUMAN, Source.POLICY], [10, 8, 12]))
    assert (samples.stop == np.repeat([10, 18, 30], [10, 8, 12])).all()
    assert (samples.bootstrap <= samples.stop).all()
    scale = 1 - GAMMA
    assert samples.chunk_return[9] == pytest.approx(-20 * scale)  # the step on which the human took over
    assert samples.bootstrap_discount[9] == 0
    assert samples.chunk_return[8] == pytest.approx(scale * (-1 - GAMMA * 20))
    assert samples.chunk_return[17] == pytest.approx(-scale)  # handed back: the value goes on
    assert samples.bootstrap_discount[17] == pytest.approx(GAMMA)
    assert samples.bootstrap[17] == 18
    assert samples.chunk_return[29] == 0  # success
    batch = samples.batch(np.array([5, 9, 12, 29]))
    assert batch["action_mask"].sum(axis=1).tolist() == [5, 1, 6, 1]
    np.testing.assert_array_equal(batch["action"][0, 5:], np.tile(store.arrays["action"][9], (3, 1)))


def test_hil_serl_protocol_is_one_stream(tmp_path: Path) -> None:
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=30, human=(10, 18)))
    samples = ChunkSamples(store, 8, RewardConfig(gamma=GAMMA), protocol="hil_serl")
    plain = make_store(tmp_path / "plain", SyntheticEpisode(ROBOT, steps=30))
    same = ChunkSamples(plain, 8, RewardConfig(gamma=GAMMA))
    for name in ("chunk_return", "bootstrap_discount", "bootstrap", "return_to_go", "stop", "terminal"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(same, name))


def test_hg_dagger_protocol_has_no_critic(tmp_path: Path) -> None:
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=30, human=(10, 18)))
    samples = ChunkSamples(store, 8, RewardConfig(gamma=GAMMA), protocol="hg_dagger")
    assert samples.start.tolist() == list(range(10, 18))  # only chunks that a human drove throughout
    assert not samples.train_critic.any()
    assert samples.train_policy.all()
    assert np.isnan(samples.chunk_return).all()
    assert samples.batch(np.arange(8))["action_mask"].sum(axis=1).tolist() == list(range(8, 0, -1))
    assert samples.to_end.all()


def test_nothing_is_known_to_follow_a_chunk_only_at_the_end_of_its_fragment(tmp_path: Path) -> None:
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=30, human=(10, 30)))
    source = store.arrays["source"].copy()
    source[20:23] = int(Source.NONE)  # nobody drives for a moment
    store.arrays["source"] = source
    aloe, dagger = (ChunkSamples(store, 8, protocol=protocol) for protocol in ("aloe", "hg_dagger"))
    assert aloe.to_end.all()
    assert dagger.start[dagger.to_end].tolist() == list(range(23, 30))
    assert dagger.start[~dagger.to_end].tolist() == list(range(10, 20))


def test_no_chunk_crosses_an_episode_and_missing_ends_do_not_pretend(tmp_path: Path) -> None:
    episodes = [SyntheticEpisode(ROBOT, steps=n, seed=n) for n in (3, 5, 4)]
    store = make_store(tmp_path, *episodes)
    samples = ChunkSamples(store, 6, RewardConfig(gamma=GAMMA))
    last = {e: store.episodes[e].start + store.episodes[e].steps for e in range(3)}
    for episode, stop, bootstrap in zip(samples.episode, samples.stop, samples.bootstrap, strict=True):
        assert stop == bootstrap == last[int(episode)]
    # a recording whose end is missing: its label says success, but nobody saw the step that succeeded
    entry = replace(store.episodes[0], complete=False)
    store.episodes[0] = entry
    cut = ChunkSamples(store, 6, RewardConfig(gamma=GAMMA), episodes=[0])
    assert not cut.terminal.any()
    assert set(cut.episode_outcome) == {Outcome.SUCCESS}
    assert set(cut.outcome) == {Outcome.UNLABELLED}


@settings(max_examples=60)
@given(
    length=st.integers(1, 60),
    horizon=st.integers(1, 70),
    gamma=st.sampled_from([0.5, 0.9, 0.99, 1.0]),
    end=st.floats(-100, 0),
)
def test_closed_form_of_discounted_sums(length: int, horizon: int, gamma: float, end: float) -> None:
    reward = RewardConfig(gamma=gamma, reward_scale=0.3)
    rewards = np.array([-1.0] * (length - 1) + [end])
    steps = min(horizon, length)
    expected = 0.3 * sum(gamma**k * r for k, r in enumerate(rewards[:steps]))
    found = reward.discounted(np.array([steps]), np.array([steps == length]), np.array([end]))
    np.testing.assert_allclose(found, [expected], rtol=1e-9, atol=1e-12)


def test_relabelling_changes_rewards_without_a_new_ingest(tmp_path: Path) -> None:
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=8, outcome=Outcome.SUCCESS))
    before = ChunkSamples(store, 4, RewardConfig(gamma=GAMMA))
    data = (store.root / "index.json").read_bytes()
    append_label(tmp_path / "bags" / "e0", Label(Outcome.FAILURE, 1))
    store.ingest([tmp_path / "bags"], ROBOT)
    after = ChunkSamples(store, 4, RewardConfig(gamma=GAMMA))
    assert (store.root / "index.json").read_bytes() == data
    assert before.chunk_return[-1] == 0
    assert after.chunk_return[-1] == pytest.approx(-(1 - GAMMA) * 8)
    assert before.digest != after.digest
    assert after.digest == ChunkSamples(ReplayStore(store.root), 4, RewardConfig(gamma=GAMMA)).digest


def test_cost_of_failure_is_the_mean_length_of_successes(tmp_path: Path) -> None:
    episodes = [
        SyntheticEpisode(ROBOT, steps=10, seed=0),
        SyntheticEpisode(ROBOT, steps=20, seed=1),
        SyntheticEpisode(ROBOT, steps=50, seed=2, outcome=Outcome.FAILURE),
    ]
    store = make_store(tmp_path, *episodes)
    assert ChunkSamples(store, 5).failure_cost == 15
    assert ChunkSamples(store, 5, episodes=[2]).failure_cost == 50  # only failures: the best guess there is
    assert ChunkSamples(store, 5, RewardConfig(failure_cost=7)).failure_cost == 7
    assert ChunkSamples(store, 5).return_range == pytest.approx((-1.0, 0.0))
    assert ChunkSamples(store, 5, RewardConfig(failure_cost=300)).return_range == pytest.approx((-3.0, 0.0))


def test_batches_name_episode_version_and_iteration(tmp_path: Path) -> None:
    store = make_store(
        tmp_path,
        SyntheticEpisode(ROBOT, steps=4, policy_version="run-2-aaaaaaaa"),
        SyntheticEpisode(ROBOT, steps=4, seed=1),
    )
    batch = ChunkSamples(store, 3).batch(np.array([1, 6]))
    assert batch["policy_version"] == ["run-2-aaaaaaaa", "test-0-00000000"]
    assert batch["episode"].tolist() == [0, 1]
    assert batch["iteration"].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"protocol": "magic"}, "unknown intervention protocol 'magic'; known: aloe, hil_serl, hg_dagger"),
        ({"backup": 0}, "backup length 0 must lie between 1 and the horizon 5"),
        ({"backup": 6}, "backup length 6"),
        ({"episodes": []}, "the 0 episodes chosen hold no chunk"),
        ({"protocol": "hg_dagger"}, "the 1 episodes chosen hold no chunk"),
    ],
)
def test_refusals(tmp_path: Path, arguments: dict, sentence: str) -> None:
    store = make_store(tmp_path, SyntheticEpisode(ROBOT, steps=4))
    with pytest.raises(AloeError, match=sentence):
        ChunkSamples(store, 5, **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"gamma": 0.0}, "gamma must lie in"),
        ({"gamma": 1.1}, "gamma must lie in"),
        ({"gamma": 1.0}, "give reward_scale"),
        ({"reward_scale": -1.0}, "reward_scale must be positive"),
        ({"failure_cost": -1.0}, "failure_cost must not be negative"),
    ],
)
def test_bad_rewards_name_the_key(arguments: dict, sentence: str) -> None:
    with pytest.raises(AloeError, match=sentence):
        RewardConfig(**arguments)


def test_sampling_holds_the_shares_in_random_order() -> None:
    source = np.array([Source.POLICY] * 900 + [Source.HUMAN] * 90 + [Source.SCRIPTED] * 10)
    sampler, generator = SourceSampler(source, {Source.HUMAN: 1, Source.POLICY: 2}), np.random.default_rng(3)
    drawn = [sampler.draw(32, generator) for _ in range(300)]
    counts = np.array([[np.sum(source[d] == s) for s in (Source.HUMAN, Source.POLICY, Source.SCRIPTED)] for d in drawn])
    assert set(counts[:, 0]) <= {10, 11}  # a third of 32, in every batch
    assert counts[:, 0].mean() == pytest.approx(32 / 3, abs=0.1)
    assert (counts.sum(axis=1) == 32).all()
    assert counts[:, 2].sum() == 0
    assert len(np.unique(np.concatenate(drawn))) > 900  # all of both pools

    first_half = np.array([np.sum(source[d[:16]] == Source.HUMAN) for d in drawn])
    assert first_half.mean() == pytest.approx(16 / 3, abs=0.5)  # so that processes can split a batch
    again = [sampler.draw(32, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_sampler_refusals() -> None:
    source = np.array([Source.POLICY] * 5)
    with pytest.raises(AloeError, match=r"no sample of source 'human' in the replay \(it has: policy\)"):
        SourceSampler(source, {Source.POLICY: 1, Source.HUMAN: 1})
    with pytest.raises(AloeError, match="must be positive"):
        SourceSampler(source, {Source.POLICY: -1})
    with pytest.raises(AloeError, match="must be positive"):
        SourceSampler(source, {})
    with pytest.raises(AloeError, match="no sample to draw"):
        SourceSampler(source[:0], None)
