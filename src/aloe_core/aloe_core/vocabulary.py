"""Words shared by every package: who moved the robot, how an episode ended, and why.

The numbers are those of the message constants in `aloe_msgs`; a test holds the two together.
"""

from enum import IntEnum


class Source(IntEnum):
    """Who controlled an arm during one control tick (`Transition.SOURCE_*`)."""

    NONE = 0
    SCRIPTED = 1
    POLICY = 2
    HUMAN = 3


class Outcome(IntEnum):
    """How an episode or fragment ended. Unlabelled differs from failure (`EpisodeEvent.OUTCOME_*`)."""

    UNLABELLED = 0
    SUCCESS = 1
    FAILURE = 2
    TIMEOUT = 3


class Termination(IntEnum):
    """Why an episode stopped (`EpisodeEvent.TERMINATION_*`)."""

    NONE = 0
    TASK = 1
    OPERATOR = 2
    TIME_LIMIT = 3
    SAFETY = 4
    FAULT = 5


class EventType(IntEnum):
    """Life of an episode (`EpisodeEvent.event`)."""

    STARTED = 1
    STOPPED = 2
    LABELLED = 3
    DISCARDED = 4


class Mode(IntEnum):
    """What drives an arm in the control loop (`ControlState.MODE_*`)."""

    IDLE = 0
    HOLD = 1
    POLICY = 2
    HUMAN = 3
    STOPPED = 4


class RequestReason(IntEnum):
    """Why the control loop asks the policy for a chunk (`ChunkRequest.REASON_*`)."""

    START = 1
    REFILL = 2
    RELEASE = 3
    SHADOW = 4


class SafetyState(IntEnum):
    """Latched state of the safety filter (`SafetyStatus.STATE_*`)."""

    OK = 0
    LIMITING = 1
    STOPPED = 2


class SafetyReason(IntEnum):
    """What the safety filter acted on (`SafetyStatus.REASON_*`)."""

    NONE = 0
    POSITION = 1
    VELOCITY = 2
    ACCELERATION = 3
    JERK = 4
    NON_FINITE = 5
    STALE_OBSERVATION = 6
    COMMAND_WATCHDOG = 7
    TRACKING_ERROR = 8
    EMERGENCY_STOP = 9
    COMMAND_CONFLICT = 10


def outcome_from_text(text: str) -> Outcome:
    """`"success"` -> `Outcome.SUCCESS`; raises `ValueError` that lists the choices."""
    try:
        return Outcome[text.upper()]
    except KeyError:
        choices = ", ".join(o.name.lower() for o in Outcome)
        raise ValueError(f"outcome '{text}' is not one of: {choices}") from None
