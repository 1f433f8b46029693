"""A LeRobot policy as the control side sees it."""

from __future__ import annotations

from aloe_core.observation import Observation
from aloe_policy.acting import ActingPolicy
from aloe_policy.protocol import SampleBatch


class LeRobotActing(ActingPolicy):
    """Serves a `LeRobotPolicy`, which reads the instruction as text, not as an embedding, and has one of its own if none is given."""

    def _add_instruction(self, batch: SampleBatch, observation: Observation) -> None:
        batch["instruction_text"] = [observation.instruction]
