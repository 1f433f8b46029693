"""The scripted expert: demonstrations from any reachable state, and the simulated human."""

from aloe_robot.expert.expert import Expert, ExpertConfig
from aloe_robot.expert.policy import ScriptedPolicy, load_policy

__all__ = ["Expert", "ExpertConfig", "ScriptedPolicy", "load_policy"]
