"""The store as behaviour cloning reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_policy.protocol import select, to_device
from aloe_policy.replay import ReplayStore
from aloe_policy.replay.tensors import Instructions, ReplayChunks

ROBOT = load_robot("aloha_sim")


@pytest.fixture
def store(tmp_path: Path) -> ReplayStore:
    for k, outcome in enumerate((Outcome.SUCCESS, Outcome.FAILURE, Outcome.SUCCESS)):
        episode = SyntheticEpisode(ROBOT, steps=10 + k, seed=k, outcome=outcome, cameras=("overhead",))
        episode.write(tmp_path / "bags" / f"e{k}")
    store = ReplayStore(tmp_path / "store")
    store.ingest([tmp_path / "bags"], ROBOT, ("overhead",), (16, 16))
    return store


def test_only_good_episodes_are_cloned(store: ReplayStore) -> None:
    data = ReplayChunks(store)
    assert data.episodes == [0, 2]
    assert len(data) == 10 + 12
    batch = data.chunk_batch(torch.arange(len(data)), 6)
    assert batch["state"].dtype == batch["action"].dtype == torch.float32
    assert batch["action"].shape == (22, 6, 14)
    assert batch["action_mask"].dtype == torch.bool
    assert batch["action_mask"].sum(1).tolist() == [min(6, 10 - t) for t in range(10)] + [
        min(6, 12 - t) for t in range(12)
    ]
    assert batch["at_end"].tolist() == [True] * 22
    assert batch["images"]["overhead"].shape == (22, 16, 16, 3)
    assert batch["images"]["overhead"].dtype == torch.uint8
    assert batch["object_state"].shape == (22, 7)
    vectors = data.vectors()
    assert {name: v.shape for name, v in vectors.items()} == {
        "state": (22, 14),
        "action": (22, 14),
        "object_state": (22, 7),
    }
    np.testing.assert_array_equal(vectors["action"], batch["action"][:, 0])
    assert len(ReplayChunks(store, (Outcome.FAILURE,))) == 11
    assert len(ReplayChunks(store, (Outcome.SUCCESS,), episodes=[2])) == 12


def test_features_take_the_place_of_images(store: ReplayStore) -> None:
    store.cache_features("mean", lambda images: images.reshape(len(images), -1).mean(1, keepdims=True))
    batch = ReplayChunks(store, encoder="mean").chunk_batch(torch.tensor([0, 3]), 4)
    assert batch["features"]["overhead"].dtype == torch.float16
    assert "images" not in batch


def test_instructions_are_embedded_once(store: ReplayStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe_policy import encoders

    seen: list[str] = []

    def embed(text: str) -> np.ndarray:
        seen.append(text)
        return np.full(3, len(text), np.float32)

    monkeypatch.setattr(encoders, "embed", embed)
    batch = ReplayChunks(store, instructions=Instructions.of(store, False)).chunk_batch(torch.tensor([0, 15]), 4)
    assert batch["instruction"].tolist() == [[5, 5, 5], [5, 5, 5]]
    assert "instruction_text" not in batch
    assert seen == ["do it"]


def test_every_sample_has_its_episodes_instruction_as_text(store: ReplayStore) -> None:
    told = Instructions(torch.eye(3), ("pour", "stir", "serve"))
    data = ReplayChunks(store, instructions=told)
    batch = data.chunk_batch(torch.tensor([0, 15, 9, 10]), 4)
    assert batch["instruction_text"] == ["pour", "serve", "pour", "serve"]
    chosen = select(batch, torch.tensor([1, 2]))
    assert chosen["instruction_text"] == ["serve", "pour"]
    assert torch.equal(chosen["images"]["overhead"], batch["images"]["overhead"][1:3])
    assert to_device(batch, "cpu")["instruction_text"] == batch["instruction_text"]


def test_features_and_images_together(store: ReplayStore) -> None:
    store.cache_features("mean", lambda images: images.reshape(len(images), -1).mean(1, keepdims=True))
    batch = store.observe(np.array([0, 3]), "mean", images=True)
    means = batch["images"]["overhead"].reshape(2, -1).mean(1, keepdims=True)
    np.testing.assert_allclose(batch["features"]["overhead"], means, rtol=1e-3)


def test_nothing_to_clone(store: ReplayStore) -> None:
    with pytest.raises(AloeError, match="none of 3 episodes ended in timeout or unlabelled"):
        ReplayChunks(store, (Outcome.TIMEOUT, Outcome.UNLABELLED))
