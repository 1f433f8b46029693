"""A policy with random weights, for tests of what is done with a policy that draws its chunks at random."""

import torch

from aloe_core.robot import load_robot
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation


def save_random_policy(folder):
    """Its chunks lie around the pose at home."""
    robot = load_robot("aloha_sim")
    torch.manual_seed(0)
    home = torch.tensor(robot.home).float()
    statistics = {key: (home, torch.full((robot.action_dim,), 0.2)) for key in ("state", "action")}
    statistics["object_state"] = torch.zeros(7), torch.ones(7)
    config = FlowConfig(width=32, layers=1, steps=2)
    FlowPolicy(PolicySpec.of(robot, 50, object_dim=7), config, Normalisation(statistics)).save(folder)
    return folder
