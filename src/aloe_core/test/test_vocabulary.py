"""The numbers of the vocabulary are those of the messages."""

from enum import IntEnum

import pytest

from aloe_core.messages import constants
from aloe_core.vocabulary import (
    EventType,
    Mode,
    Outcome,
    RequestReason,
    SafetyReason,
    SafetyState,
    Source,
    Termination,
    outcome_from_text,
)


@pytest.mark.parametrize(
    ("enum", "message", "prefix"),
    [
        (Source, "Transition", "SOURCE_"),
        (Outcome, "EpisodeEvent", "OUTCOME_"),
        (Termination, "EpisodeEvent", "TERMINATION_"),
        (Mode, "ControlState", "MODE_"),
        (RequestReason, "ChunkRequest", "REASON_"),
        (SafetyState, "SafetyStatus", "STATE_"),
        (SafetyReason, "SafetyStatus", "REASON_"),
    ],
)
def test_constants_agree(enum: type[IntEnum], message: str, prefix: str) -> None:
    defined = vars(constants(f"aloe_msgs/msg/{message}"))
    assert {k.removeprefix(prefix): v for k, v in defined.items() if k.startswith(prefix)} == {
        e.name: e.value for e in enum
    }


def test_event_types_and_task_outcomes_agree() -> None:
    event = vars(constants("aloe_msgs/msg/EpisodeEvent"))
    assert {e.name: event[e.name] for e in EventType} == {e.name: e.value for e in EventType}
    task = vars(constants("aloe_msgs/msg/TaskState"))
    for outcome in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.TIMEOUT):
        assert task[f"OUTCOME_{outcome.name}"] == outcome


def test_outcomes_from_text() -> None:
    assert outcome_from_text("success") == outcome_from_text("SUCCESS") == Outcome.SUCCESS
    with pytest.raises(ValueError, match="'won' is not one of: unlabelled, success, failure, timeout"):
        outcome_from_text("won")
