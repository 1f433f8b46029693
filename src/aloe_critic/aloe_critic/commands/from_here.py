"""`aloe bags from-here`: recorded stretches that start near a state and went best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from aloe_core.errors import AloeError


def from_here(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    episode: str,
    step: int,
    reach: float = 0.5,
    top_share: float = 0.2,
    horizon: int = 50,
    critic: bool = True,
    robot: str = "aloha_sim",
    config: Path | None = None,
    count: int = 10,
) -> None:
    """Show what worked from here: recorded stretches that start near an episode's state at a step, best first.

    A stretch is ranked by the return of its steps and the value where it ends: V of the run's newest critic, or, without one, the return that really followed.

    Args:
        run: folder of a run, or of a replay store (`aloe ingest`).
        episode: id of the episode, its number in the store, or the beginning of its id.
        step: tick of the episode.
        reach: difference in state that still counts as here, root mean square over joints and objects [standard deviations].
        top_share: share of the stretches near by that is kept.
        horizon: steps of a stretch; that of the policy where a critic is used.
        critic: use the run's newest critic if it has one.
        robot: name or file of the robot description.
        config: YAML file of `ImproveConfig` keys, by default what the run's newest iteration was made with; refused if the critic was made with another.
        count: stretches to print at most.
    """
    from dataclasses import replace

    import numpy as np

    from aloe_core.robot import load_robot
    from aloe_critic import improvement, judgement
    from aloe_critic.critic_file import load_critic
    from aloe_critic.from_here import from_here as search
    from aloe_critic.improve_config import load_config
    from aloe_critic.replay import StoreReplay
    from aloe_critic.started import read_started, started_replay
    from aloe_policy.replay import ChunkSamples, ReplayStore
    from aloe_policy.trainable import load_trainable

    given = load_config(config) if config else None
    store = ReplayStore(run / improvement.STORE if (run / improvement.STORE).is_dir() else run)
    if not store.episodes:
        raise AloeError(f"{run} holds no episodes: it is neither a run nor a replay store")
    number = episode_number([e.episode_id for e in store.episodes], episode)
    finished = improvement.finished_iterations(run)
    judged = [f for f in finished if improvement.read_result(f).critic] if critic else []
    end_value = None
    if judged:
        result = improvement.read_result(judged[-1])
        method, facts, _ = load_critic(judged[-1])
        started = read_started(judged[-1], facts, given)
        policy, _ = load_trainable(Path(result.policy), load_robot(robot))
        cost = started_replay(judged[-1], started, store, policy).samples_of.failure_cost
        reward = replace(started.config.reward, failure_cost=cost)  # that of V, also for what was recorded since
        replay = improvement.make_replay(store, policy, replace(started.config, reward=reward))

        def end_value(index: np.ndarray) -> np.ndarray:
            return judgement.judge(replay, method, policy, index).v
    else:
        chosen = given or (read_started(finished[-1]).config if finished else improvement.ImproveConfig())
        replay = StoreReplay(ChunkSamples(store, horizon, chosen.reward, chosen.protocol))
    found = search(replay, number, step, reach, top_share, end_value)
    if not found:
        others = search(replay, number, step, float("inf"), 1.0)
        nearest = min((s.distance for s in others), default=float("nan"))
        raise AloeError(f"no stretch begins within {reach:g} of step {step}; the nearest is at {nearest:.2f} (--reach)")
    valued = f"V of {judged[-1]}" if judged else "the return that followed"
    print(f"{len(found)} stretches of {replay.samples_of.backup} steps from here, ranked by their return and {valued}:")
    print(f"{'episode':40} {'number':>6} {'step':>5} {'driver':9} {'outcome':10} {'distance':>8} {'return':>8}")
    for s in found[:count]:
        print(f"{s.episode:40} {s.number:6d} {s.step:5d} {s.source:9} {s.outcome:10} {s.distance:8.3f} {s.value:8.3f}")


def episode_number(ids: list[str], wanted: str) -> int:
    """Number of the episode with an id, with an id that begins so, or with that number.

    Raises:
        AloeError: none, or several.
    """
    if wanted in ids:
        return ids.index(wanted)
    if wanted.isdigit() and int(wanted) < len(ids):
        return int(wanted)
    found = [n for n, i in enumerate(ids) if i.startswith(wanted)]
    if len(found) != 1:
        raise AloeError(
            f"{len(found)} of {len(ids)} episodes are called '{wanted}' or begin so; give an id or a number"
        )
    return found[0]
