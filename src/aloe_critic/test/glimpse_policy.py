"""A policy as a user may write one, for tests: a frozen eye on one camera, the letters of the instruction, and a head that learns. Entry point `glimpse`."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from aloe_core.synthetic import SyntheticEpisode
from aloe_policy.acting import ActingPolicy
from aloe_policy.checkpoint import PolicySpec, check_robot, read_checkpoint, write_checkpoint
from aloe_policy.flow_matching import masked_mean_square
from aloe_policy.protocol import TrainablePolicy

TYPE = "glimpse"
CAMERA, SIZE, HORIZON = "overhead", (32, 48), 7
LETTERS = 128


class GlimpsePolicy(TrainablePolicy):
    """Proposes what its head makes of brightness, letters and joints, with a little noise."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.eye = nn.Conv2d(3, 4, 16, stride=16).requires_grad_(False)
        cells = (spec.image_size[0] // 16) * (spec.image_size[1] // 16)
        self.words = nn.Linear(LETTERS, 8)
        self.head = nn.Linear(4 * cells + 8 + spec.action_dim, spec.horizon * spec.action_dim)
        self.head_again = self.head  # tied weights, as language models have them

    def _mean(self, batch):
        image = batch["images"][CAMERA].permute(0, 3, 1, 2).float() / 255
        letters = torch.zeros(len(image), LETTERS, device=image.device)
        for row, text in enumerate(batch["instruction_text"]):
            for letter in text:
                letters[row, ord(letter) % LETTERS] += 1
        seen = torch.cat([self.eye(image).flatten(1), self.words(letters), batch["state"]], dim=1)
        return self.head_again(seen).unflatten(1, (self.spec.horizon, self.spec.action_dim))

    @torch.no_grad()
    def act(self, batch, generator, prefix=None, prefix_steps=0):
        mean = self._mean(batch)
        return mean + 0.05 * torch.randn(mean.shape, generator=generator).to(mean)

    def loss(self, batch, generator):
        noise = 0.05 * torch.randn(batch["action"].shape, generator=generator).to(batch["action"])
        return masked_mean_square(self._mean(batch) + noise - batch["action"], batch.get("action_mask"))

    def save(self, folder, name="policy-0"):
        weights = {key: value.clone() for key, value in self.state_dict().items()}
        return write_checkpoint(
            folder, type=TYPE, name=name, spec=self.spec, config={}, normalisation={}, weights=weights
        )

    @classmethod
    def load(cls, folder, robot=None, device="cpu"):
        return cls.load_with_version(folder, robot)[0]

    @classmethod
    def load_with_version(cls, folder, robot):
        checkpoint = read_checkpoint(Path(folder), TYPE)
        check_robot(checkpoint.spec, robot, str(folder))
        policy = cls(checkpoint.spec)
        policy.load_state_dict(checkpoint.weights)
        return policy, checkpoint.version


def load(spec, robot):
    """For the group `aloe.policies`."""
    return ActingPolicy(*GlimpsePolicy.load_with_version(spec, robot))


class Untold:
    """Drives, but says nothing of what could be trained."""

    version = "untold-0"

    def __init__(self, spec, robot):
        pass


def register(folder):
    """Makes `folder` an installed package that declares the entry points; it must be put on `sys.path`."""
    package = folder / "glimpse-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: glimpse\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[aloe.policies]\nglimpse = glimpse_policy:load\nuntold = glimpse_policy:Untold\n"
    )


def save_policy(folder, robot, seed=0):
    """A checkpoint of an untrained policy."""
    torch.manual_seed(seed)
    GlimpsePolicy(PolicySpec.of(robot, HORIZON, (CAMERA,), SIZE)).save(folder, "own-0")


class Told(SyntheticEpisode):
    """An episode with an instruction of its own."""

    instruction = ""

    def info(self, episode_id):
        return replace(super().info(episode_id), instruction=self.instruction)
