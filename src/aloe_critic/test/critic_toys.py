"""A small replay and policy for tests, and a script that learns from them: `python critic_toys.py FOLDER METHOD`.

The task: a state in [-1, 1]; a chunk of ten two-dimensional actions succeeds to the degree that its mean equals (state, -state). The recorded policy is
noisy around half of that, demonstrations are right.
"""

import os
import sys
from pathlib import Path

import torch

from aloe_core.vocabulary import Outcome, Source
from aloe_critic.critic import small
from aloe_critic.learner import Learner, LearnerConfig
from aloe_critic.methods import SampleFacts, make_method
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation

HORIZON, ACTIONS = 10, 2
REFRESH = 12  # actor steps
CRITIC = small(state_dim=2, action_dim=ACTIONS, horizon=HORIZON, width=16, attention_heads=2)


class ToyReplay:
    """One-chunk episodes: every sample ends in a terminal."""

    def __init__(self, size=400, seed=0):
        g = torch.Generator().manual_seed(seed)
        x = torch.rand(size, generator=g) * 2 - 1
        self.state = torch.stack([x, x.square()], dim=1)
        best = torch.stack([x, -x], dim=1)
        human = torch.arange(size) % 4 == 0
        spread = torch.where(human, 0.0, 0.6)[:, None]
        mean = torch.where(human[:, None], best, 0.5 * best) + spread * torch.randn(size, 2, generator=g)
        self.action = mean[:, None] + 0.05 * torch.randn(size, HORIZON, ACTIONS, generator=g)
        self.returns = -(mean - best).square().sum(dim=1)
        good = self.returns > -0.3
        self.facts = SampleFacts(
            source=torch.where(human, Source.HUMAN, Source.POLICY).to(torch.uint8),
            outcome=torch.where(good, Outcome.SUCCESS, Outcome.FAILURE).to(torch.uint8),
            episode_outcome=torch.where(good, Outcome.SUCCESS, Outcome.FAILURE).to(torch.uint8),
            to_end=torch.ones(size, dtype=torch.bool),
            train_policy=torch.ones(size, dtype=torch.bool),
            train_critic=torch.ones(size, dtype=torch.bool),
        )
        self.start = torch.arange(size)
        self.bootstrap = torch.zeros(size, dtype=torch.long)
        self.ticks, self.backup = size, HORIZON
        self.return_range = (-10.0, 0.0)
        self.digest = f"toy {size} {seed}"

    def observe(self, ticks):
        return {"state": self.state[ticks]}

    def chunks(self, index):
        return {key: self.samples(index)[key] for key in ("state", "action", "action_mask")}

    def samples(self, index, steps=None):  # no state between start and end to cut a chunk at
        return {
            "state": self.state[index],
            "action": self.action[index],
            "action_mask": torch.ones(len(index), HORIZON, dtype=torch.bool),
            "chunk_return": self.returns[index],
            "bootstrap": self.bootstrap[index],
            "bootstrap_discount": torch.zeros(len(index)),
            "return_to_go": self.returns[index],
            "success": self.facts.success[index],
            "next": {"state": self.state[self.bootstrap[index]]},
        }


def toy_policy(seed=0):
    torch.manual_seed(seed)
    spec = PolicySpec("toy", "0", ("x", "y"), HORIZON)
    ones = (torch.zeros(2), torch.ones(2))
    return FlowPolicy(spec, FlowConfig(width=32, layers=2, steps=5), Normalisation({"state": ones, "action": ones}))


def toy_learner(folder, method="aloe", on_progress=lambda progress: None, options=None, accelerator=None, **config):
    torch.manual_seed(1)
    settings = {
        "critic_steps": 30,
        "actor_steps": 30,
        "batch_size": 32,
        "checkpoint_every": 4,
        "log_every": 5,
        "warmup_steps": 5,
    }
    return Learner(
        make_method(method, CRITIC, options),
        toy_policy(),
        ToyReplay(),
        LearnerConfig(**{**settings, **config}),
        Path(folder),
        accelerator,
        on_progress,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = sys.argv[1].replace("RANK", os.environ.get("RANK", "0"))  # for processes that do not share a folder
    learner = toy_learner(folder, sys.argv[2], lambda p: print(f"{p.stage} {p.step}", flush=True), refresh=REFRESH)
    policy = learner.run()
    size = sum(
        parameter.double().abs().sum().item() for parameter in [*policy.parameters(), *learner.method.parameters()]
    )
    print(f"finished {size!r} in process {learner.accelerator.process_index}", flush=True)
