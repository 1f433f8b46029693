"""The page `aloe replay` writes beside a replayed bag: the episode, what the policy would have done and what the critic thinks, on one time axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core.bag_format import replace_file
from aloe_core.chunk import NANOSECONDS
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_critic import episode_figures
from aloe_critic.episode_figures import Judged, Timeline
from aloe_critic.film import DRAWN_AGAIN, FRAMES, drawn_at, middles, small
from aloe_critic.page import Page
from aloe_critic.recording import Recording
from aloe_critic.replay_summary import ReplayedEpisode, newest_rows, read_replayed


def write_page(bag: Path, output: Path, numbers: Mapping[str, Any], robot: RobotDescription | None = None) -> Path:
    """Writes `<output>/<name of the bag>.html`, and its pictures as PNG beside it.

    Args:
        bag: a bag with proposals.
        numbers: what `summarise` says of it.

    Raises:
        AloeError: the bag holds no proposals, or is damaged.
    """
    episode = read_replayed(bag, robot)
    try:
        shown = timeline(episode)
    finally:
        episode.recording.close()
    output.mkdir(parents=True, exist_ok=True)
    page, name = Page(output), bag.resolve().name
    _numbers(page, numbers)
    page.section(
        "Timeline",
        "The policy proposed in shadow mode: nothing of it moved. Values are scaled returns: 0 is success now, -1 one that never comes.",
    )
    page.figure(f"{name}_timeline", episode_figures.timeline(shown))
    if not shown.judged:
        page.text("No chunk was judged: name a critic to see values and advantages.")
    page.section(
        "Joints", "A low error says that the policy would have done the same, not that it would have succeeded."
    )
    page.figure(f"{name}_joints", episode_figures.joints(shown))
    file = output / f"{name}.html"
    replace_file(file, page.html(f"Replay of {numbers['episode_id']}: {numbers['policy_version']}"))
    return file


def timeline(episode: ReplayedEpisode) -> Timeline:
    """What there is to see of a replayed episode."""
    recording = episode.recording
    if not episode.proposals or not len(recording.stamps_ns):
        raise AloeError(f"bag {recording.folder}: no proposals or no ticks to show; replay it with a policy")
    begin_ns = int(recording.stamps_ns[0])
    time_s = (recording.stamps_ns - begin_ns) / NANOSECONDS
    values = {"recorded": episode.recorded_values, "proposed": episode.proposed_values}
    return Timeline(
        time_s=time_s,
        drivers=recording.sources,
        interventions=episode_figures.interventions(time_s, recording.intervention_id),
        commanded=recording.executed,
        recorded=recording.proposal,
        proposed=newest_rows(episode.proposals, recording.stamps_ns),
        commanded_name="commanded" if recording.compared_with == "executed" else "measured one tick later",
        groups=dict(zip(recording.robot.arm_names, recording.robot.arm_slices, strict=True)),
        names=recording.robot.action_names,
        film=_film(recording),
        judged={name: _judged(found, begin_ns) for name, found in values.items() if found},
    )


def _judged(values: Mapping[tuple[int, int], Any], begin_ns: int) -> Judged:
    ordered = sorted(values.items())
    stamps = np.array([stamp for (stamp, _), _ in ordered], np.int64)
    q, v = (np.array([getattr(value, key) for _, value in ordered]) for key in ("q", "v"))
    return Judged((stamps - begin_ns) / NANOSECONDS, q, v)


def _film(recording: Recording) -> dict[str, list[np.ndarray]]:
    """The picture of each camera in the middle of each of `FRAMES` stretches; without cameras the simulator's recorded states, drawn again."""
    first, last = int(recording.stamps_ns[0]), int(recording.stamps_ns[-1])
    stamps = first + np.round(middles(FRAMES) * (last - first)).astype(np.int64)
    film = {}
    for camera in recording.robot.cameras:
        track = recording.camera(camera.name)
        if track is not None:
            film[camera.name] = [small(track.decode(max(int(i), 0))) for i in track.index_at(stamps)]
    if not film and (drawn := drawn_at(recording.folder, recording.robot, middles(FRAMES))):
        film[DRAWN_AGAIN] = drawn
    return film


def _numbers(page: Page, numbers: Mapping[str, Any]) -> None:
    """The table at the top."""
    chunks, agreement = numbers["recorded_chunks"], numbers["agreement"]
    rows = [
        ("episode", f"{numbers['episode_id']}, {numbers['outcome']}, {numbers['ticks']} ticks"),
        ("policy", f"{numbers['policy_version']}, {numbers['proposals']} proposals"),
    ]
    for source, error in numbers["error"].items():
        if error["joint_rmse_rad"] is not None:
            what = f"{error['joint_rmse_rad']:.4f} rad, at most {error['joint_max_rad']:.4f} rad"
            rows.append(
                (f"proposed against {numbers['compared_with']}, {source}", f"{what}, over {error['ticks']} ticks")
            )
    if chunks["pairs"]:
        rows.append(("proposed as recorded", f"{chunks['identical']} of {chunks['pairs']} chunks, to the last bit"))
    for name, value in numbers["values"].items():
        if value:
            text = f"Q {value['q']:.3f}, V {value['v']:.3f}, advantage {value['advantage']:+.3f}"
            rows.append(
                (f"{name} chunks", f"{text}, above 0 in {100 * value['positive_advantage']:.0f} % of {value['chunks']}")
            )
    if agreement:
        same, preferred = 100 * agreement["same_sign"], 100 * agreement["proposal_preferred"]
        rows.append(
            (
                "advantages",
                f"the same sign in {same:.0f} %, the proposal preferred in {preferred:.0f} % of {agreement['pairs']}",
            )
        )
    rows += [("left out", sentence) for sentence in numbers.get("left_out", ())]
    page.table(("", ""), rows)
