"""The episodes of the critic's report: what was seen, valued, driven, commanded and proposed, on one time axis each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.fragments import tick_sources
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Source
from aloe_critic import judgement
from aloe_critic.episode_figures import Judged, Timeline, interventions, timeline
from aloe_critic.film import film_strip
from aloe_critic.methods import Method
from aloe_critic.overlay import write_overlay
from aloe_critic.page import Page
from aloe_critic.replay import StoreReplay
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import ReplayStore

EVERY = 3  # every so many-th chunk is judged; our choice: the values of neighbours are alike


def different(replay: StoreReplay, count: int) -> list[int]:
    """Episodes of as many kinds as there are: alone or with help, success or not."""
    store, kinds = replay.store, dict[tuple[bool, int], list[int]]()
    for number in replay.samples_of.episodes:
        entry = store.episodes[number]
        who = tick_sources(store.arrays["source"][entry.start : entry.start + entry.steps])
        if entry.steps and (who == Source.POLICY).any():
            kinds.setdefault((bool((who == Source.HUMAN).any()), int(store.outcome(number))), []).append(number)
    if not kinds:
        return replay.samples_of.episodes[:count]
    chosen: list[int] = []
    while len(chosen) < count and any(kinds.values()):
        for numbers in kinds.values():
            if numbers and len(chosen) < count:
                chosen.append(numbers.pop())
    return chosen


def add_episodes(
    page: Page,
    replay: StoreReplay,
    method: Method,
    policy: TrainablePolicy,
    robot: RobotDescription,
    numbers: Sequence[int],
    seed: int,
    rerun: bool,
    on_step: Callable[[str], None],
) -> None:
    """A section with a timeline of each of the episodes `numbers`; arguments as of `write_report`."""
    page.section(
        "Values over time",
        "Of the chunk executed from each tick on. A take-over ends the policy's fragment in failure, so Q should fall before it. While a person drives, the "
        "policy goes on proposing, and nothing of it moves.",
    )
    store, samples = replay.store, replay.samples_of
    for number in numbers:
        entry = store.episodes[number]
        on_step(f"episode {entry.episode_id}")
        index = np.flatnonzero((samples.episode == number) & samples.train_critic)[::EVERY]
        if not len(index):
            continue
        judged = judgement.judge(replay, method, policy, index, seed=seed)
        who = tick_sources(store.arrays["source"][entry.start : entry.start + entry.steps])
        time_s = (samples.start[index] - entry.start) / robot.control_rate_hz
        try:
            film = film_strip(Path(entry.bag), robot)
        except AloeError as error:
            page.text(f"No pictures of {entry.episode_id}: {error}")
            film = {}
        if rerun:
            file = page.folder / f"episode_{number:04d}.rrd"
            write_overlay(file, entry.episode_id, time_s, judged, who == Source.HUMAN, 1 / robot.control_rate_hz, film)
        values = {"executed": Judged(time_s, judged.q, judged.v)}
        page.figure(f"episode_{number:04d}", timeline(episode_timeline(store, number, robot, values, film)))


def episode_timeline(
    store: ReplayStore,
    number: int,
    robot: RobotDescription,
    judged: Mapping[str, Judged],
    film: Mapping[str, Sequence[np.ndarray]],
) -> Timeline:
    """What there is to see of an episode of the store."""
    entry = store.episodes[number]
    rows = slice(entry.start, entry.start + entry.steps)
    time_s = np.arange(entry.steps) / robot.control_rate_hz
    proposal = store.arrays["proposal"][rows]
    return Timeline(
        time_s=time_s,
        drivers=[Source(who).name.lower() for who in tick_sources(store.arrays["source"][rows]).tolist()],
        interventions=interventions(time_s, store.arrays["intervention_id"][rows]),
        commanded=store.arrays["action"][rows],
        recorded=proposal,
        proposed=proposal,
        commanded_name="commanded",
        proposed_name="proposed by the policy",
        groups=dict(zip(robot.arm_names, robot.arm_slices, strict=True)),
        names=robot.action_names,
        film=film,
        judged=judged,
        title=f"{entry.episode_id}: {store.outcome(number).name.lower()}",
    )
