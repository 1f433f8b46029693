"""What goes into the life of an episode and what comes out of it: requests, configuration, and things to be done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from aloe_core.errors import AloeError
from aloe_core.vocabulary import EventType
from aloe_intervention.episode_store import Episode, EpisodeStore, check_name


@dataclass(frozen=True, slots=True)
class Now:
    """An instant: ROS time [ns], and the monotonic clock [s] for timeouts, which simulated time must not stop."""

    ros_ns: int
    wall_s: float


class StartError(Enum):
    """Why a start was refused; values are those of `StartEpisode`."""

    OK = 0
    ALREADY_RUNNING = 1
    BAD_REQUEST = 2
    NOT_READY = 3
    SAFETY_STOPPED = 4


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What the caller of `episode/start` wants; empty and 0 stand for defaults."""

    task: str = ""
    instruction: str = ""
    seed: int = -1
    time_limit_s: float = 0.0
    episode_id: str = ""

    def episode(
        self, config: EpisodeConfig, store: EpisodeStore, previous: Episode | None, policy_version: str
    ) -> Episode:
        """The episode wanted, defaults filled in; without a seed the simulator counts on from `previous`, so that it can still be repeated.

        Raises:
            AloeError: the time limit or a name cannot be used; the sentence says why.
        """
        if not math.isfinite(self.time_limit_s) or self.time_limit_s < 0:
            raise AloeError(f"time_limit {self.time_limit_s} s is not a length of time")
        seed = self.seed
        if config.simulator and seed < 0:
            seed = 0 if previous is None else max(previous.seed, -1) + 1
        task = self.task or ("" if config.simulator else "task")
        if task:
            check_name(task, "task")
        episode_id = self.episode_id or store.new_id(task)
        if store.taken(episode_id):
            raise AloeError(f"episode '{episode_id}' exists already in {store.bags}; episodes are never overwritten")
        return Episode(
            episode_id=episode_id,
            task=task,
            instruction=self.instruction,
            seed=seed,
            time_limit_s=self.time_limit_s or (0.0 if config.simulator else config.time_limit_s),
            policy_version=policy_version,
        )


@dataclass(frozen=True, slots=True)
class AskReset:
    """Call `sim/reset` for the episode; tell the answer by `on_reset`."""

    episode: Episode


@dataclass(frozen=True, slots=True)
class AskRun:
    """Call `sim/run` with true; tell the answer by `on_run`. (The simulator pauses by itself on STOPPED.)"""

    episode_id: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish an `EpisodeEvent`."""

    event: EventType
    episode: Episode
    stamp_ns: int
    message: str


@dataclass(frozen=True, slots=True)
class AnswerStart:
    """Answer the call number `call` of `episode/start`."""

    call: int
    error: StartError
    message: str
    episode_id: str


@dataclass(frozen=True, slots=True)
class AnswerDiscard:
    """Answer the call number `call` of `episode/discard`; `moved_to` empty: it failed, `message` says why."""

    call: int
    episode_id: str
    moved_to: str
    message: str


@dataclass(frozen=True, slots=True)
class Save:
    """Keep the episode in the state file (`EpisodeStore.save`); a failure is told, but stops nothing."""

    episode: Episode


Effect = AskReset | AskRun | Announce | Save | AnswerStart | AnswerDiscard
Effects = list[Effect]


@dataclass(frozen=True, slots=True)
class EpisodeConfig:
    """How episodes are run; times in [s]."""

    simulator: bool  # use sim/reset and sim/run; the simulator keeps the time limit
    require_recorder: bool  # an episode that is not recorded does not start and does not go on
    require_policy: bool = False  # an episode does not start before a policy is ready
    time_limit_s: float = 0.0  # on hardware, when a request names none; 0: none
    ready_timeout_s: float = 10.0  # for each of: simulator, control and recorder
    fault_timeout_s: float = 5.0  # silence of simulator, control or recorder that ends an episode
    operator: str = "operator"  # written beside labels

    def __post_init__(self) -> None:
        for name in ("time_limit_s", "ready_timeout_s", "fault_timeout_s"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "time_limit_s"):
                raise AloeError(f"parameter '{name.removesuffix('_s')}' is {value} s, not a length of time")
