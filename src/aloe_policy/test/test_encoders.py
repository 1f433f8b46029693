"""The frozen encoders: where things are survives, sentences that mean the same are close, and nothing is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aloe_core.errors import AloeError
from aloe_policy.encoders import ImageEncoder, batch_features, embed, grid_shape


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder("efficientnet_lite0", (96, 96))


def blob(row: int, column: int) -> torch.Tensor:
    image = torch.full((1, 96, 96, 3), 120, dtype=torch.uint8)
    image[:, row : row + 12, column : column + 12] = torch.tensor([220, 20, 20], dtype=torch.uint8)
    return image


def test_the_grid_shows_where_something_is(encoder: ImageEncoder) -> None:
    background = encoder(torch.full((1, 96, 96, 3), 120, dtype=torch.uint8))
    assert background.shape == (1, *grid_shape("efficientnet_lite0", (96, 96)))
    for row, column in ((18, 66), (66, 18), (42, 42)):
        change = (encoder(blob(row, column)) - background).norm(dim=-1).view(6, 6)
        found = np.unravel_index(int(change.argmax()), (6, 6))
        assert np.abs(np.subtract(found, [(row + 6) // 16, (column + 6) // 16])).max() <= 1


def test_images_of_any_size_are_shrunk_to_the_side_in_the_name(encoder: ImageEncoder) -> None:
    name = "efficientnet_lite0-96"
    wide = blob(30, 60).repeat_interleave(2, 1).repeat_interleave(3, 2)  # 192 x 288
    shrinking = ImageEncoder(name, (192, 288))
    torch.testing.assert_close(shrinking(wide), encoder(blob(30, 60)))
    assert grid_shape(name, (192, 288)) == (36, 112)
    with pytest.raises(AloeError, match="multiple of 16, not 90x90"):
        grid_shape("efficientnet_lite0-90", (96, 96))


def test_it_is_frozen(encoder: ImageEncoder) -> None:
    encoder.train()
    assert not encoder.training
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    image = blob(10, 10)
    assert torch.equal(encoder(image), encoder(image))


def test_features_of_the_batch_are_preferred_to_its_images(encoder: ImageEncoder) -> None:
    image = blob(10, 10)
    made = batch_features({"images": {"top": image}}, ["top"], "efficientnet_lite0", torch.device("cpu"))
    torch.testing.assert_close(made["top"], encoder(image))
    given = batch_features(
        {"features": {"top": made["top"].half()}}, ["top"], "efficientnet_lite0", torch.device("cpu")
    )
    torch.testing.assert_close(given["top"], made["top"], atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet", (96, 96), "unknown image encoder 'resnet'"),
        ("efficientnet_lite0", (96, 100), "multiple of 16, not 96x100"),
    ],
)
def test_impossible_encoders(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(AloeError, match=message):
        ImageEncoder(name, size)


def test_sentences_that_mean_the_same_are_close() -> None:
    pick = embed("pick up the red cube")
    assert pick.shape == (384,)
    assert np.linalg.norm(pick) == pytest.approx(1.0, abs=1e-5)
    assert pick @ embed("grasp the red block") > pick @ embed("the weather is nice today") + 0.3


def test_features_are_the_same_on_the_robot_as_those_kept_for_training(encoder: ImageEncoder) -> None:
    image = torch.randint(0, 256, (1, 96, 96, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    kept = {"features": {"top": encoder(image).half()}}  # as `ReplayStore.cache_features` keeps them
    with torch.autocast("cpu", torch.bfloat16):  # as a policy with `bf16` asks
        name, device = "efficientnet_lite0", torch.device("cpu")
        live = batch_features({"images": {"top": image}}, ["top"], name, device)["top"]
        cached = batch_features(kept, ["top"], name, device)["top"]
    torch.testing.assert_close(live, cached, atol=1e-4, rtol=2**-10)
