"""What an iteration of improvement set out to learn from: its note, and the replay that the note names."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aloe_core.errors import AloeError
from aloe_critic.critic_file import CriticFacts
from aloe_critic.improvement import STARTED_FILE, ImproveConfig, make_replay
from aloe_critic.replay import StoreReplay
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import ReplayStore, RewardConfig


@dataclass(frozen=True)
class Started:
    """What an iteration set out to learn from."""

    config: ImproveConfig  # only protocol, reward and horizons are the iteration's: replays depend on nothing else
    episodes: list[int]  # numbers in the store
    digest: str  # of the replay, see `ChunkSamples`


def read_started(iteration: Path, facts: CriticFacts | None = None, given: ImproveConfig | None = None) -> Started:
    """What an iteration learned from, as it noted when it began.

    Args:
        iteration: RUN/001 and so on.
        facts: of its critic; None: it has none.
        given: the configuration it is taken to have been made with; None: no such claim.

    Raises:
        AloeError: no readable note, or `given` or the critic contradict it; the message names what differs.
    """
    file = iteration / STARTED_FILE
    try:
        data = json.loads(file.read_text())
        noted = data["config"]
        config = ImproveConfig(
            protocol=noted["protocol"],
            reward=RewardConfig(**noted["reward"]),
            critic_horizon=noted["critic_horizon"],
            backup=noted["backup"],
        )
        started = Started(config, [int(number) for number in data["episodes"]], data["digest"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise AloeError(
            f"{iteration} has no readable {STARTED_FILE}, which says what it learned from: {error}"
        ) from None
    if facts is not None and facts.gamma != config.reward.gamma:
        raise AloeError(
            f"{iteration}: its critic was made with reward.gamma {facts.gamma:g}, {STARTED_FILE} says {config.reward.gamma:g}; "
            "they are not of the same improvement"
        )
    if given is not None:
        was, claimed = _replay_settings(config), _replay_settings(given)
        differs = [f"{key} {value} (given: {claimed[key]})" for key, value in was.items() if claimed[key] != value]
        if differs:
            raise AloeError(
                f"{iteration} was made with {', '.join(differs)}; without a configuration given, that of the iteration is used"
            )
    return started


def started_replay(iteration: Path, started: Started, store: ReplayStore, policy: TrainablePolicy) -> StoreReplay:
    """The samples of the episodes that an iteration learned from, whatever the store has taken in since.

    Raises:
        AloeError: the store does not have them all.
    """
    lost = sum(number >= len(store.episodes) for number in started.episodes)
    if lost:
        raise AloeError(
            f"{iteration} learned from {len(started.episodes)} episodes; store {store.root} does not have {lost} of them"
        )
    return make_replay(store, policy, started.config, started.episodes)


def _replay_settings(config: ImproveConfig) -> dict[str, Any]:
    """What decides which samples there are and what they are worth, by key."""
    reward = {f"reward.{key}": value for key, value in asdict(config.reward).items()}
    return {
        "protocol": config.protocol,
        **reward,
        "critic_horizon": config.critic_horizon,
        "backup": config.backup,
    }
