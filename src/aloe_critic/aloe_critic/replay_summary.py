"""What a replayed bag says in numbers: how far the proposals are from what was executed, and what the critic thinks of recorded and proposed chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core import topics
from aloe_core.bag_images import deserialize
from aloe_core.bag_messages import check_type, resolve
from aloe_core.bag_storage import open_storage
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import chunk_from_msg, stamp_to_ns
from aloe_core.robot import RobotDescription
from aloe_critic.recording import Recording
from aloe_policy.replayed_bag import CHUNK, VALUE


@dataclass(frozen=True)
class ReplayedEpisode:
    """A replayed bag: the recording, the proposals and the values of proposals and recorded chunks (`CriticValue` by stamp [ns] and chunk id)."""

    recording: Recording
    proposals: list[ActionChunk]
    proposed_values: dict[tuple[int, int], Any]
    recorded_values: dict[tuple[int, int], Any]


def read_replayed(folder: Path, robot: RobotDescription | None = None) -> ReplayedEpisode:
    """Reads a bag that `aloe replay` or `replay_node` wrote; a bag that was never replayed has no proposals.

    Raises:
        AloeError: as `Recording`.
    """
    recording = Recording(folder, robot)
    messages = {name: _messages(folder, name) for name in (CHUNK, VALUE, topics.CRITIC_VALUE)}
    proposals = [chunk_from_msg(m, recording.robot) for m in messages[CHUNK]]
    return ReplayedEpisode(
        recording,
        sorted(proposals, key=lambda c: c.stamp_ns),
        {(stamp_to_ns(m.header.stamp), m.chunk_id): m for m in messages[VALUE]},
        {(stamp_to_ns(m.header.stamp), m.chunk_id): m for m in messages[topics.CRITIC_VALUE]},
    )


def summarise(folder: Path, robot: RobotDescription | None = None) -> dict[str, Any]:
    """The numbers of one replayed bag; keys as in `docs/replay.md`.

    Raises:
        AloeError: the bag holds no proposals.
    """
    episode = read_replayed(folder, robot)
    recording, proposals = episode.recording, episode.proposals
    try:
        if not proposals:
            raise AloeError(f"bag {folder} holds no proposals on {CHUNK}; replay it with a policy")
        pairs = [(p, r) for p in proposals if (r := recording.recorded_chunk(p.stamp_ns, p.request_id)) is not None]
        return {
            "bag": folder.resolve().name,
            "episode_id": recording.info.episode_id,
            "outcome": recording.outcome.name.lower(),
            "policy_version": proposals[-1].policy_version,
            "ticks": len(recording.stamps_ns),
            "proposals": len(proposals),
            "compared_with": recording.compared_with,
            "error": _errors(recording, proposals),
            "recorded_chunks": _chunk_agreement(pairs, recording.robot),
            "values": {
                "recorded": _mean_values(list(episode.recorded_values.values())),
                "proposed": _mean_values(list(episode.proposed_values.values())),
            },
            "agreement": _value_agreement(episode, pairs),
        }
    finally:
        recording.close()


def newest_rows(proposals: Sequence[ActionChunk], stamps_ns: np.ndarray) -> np.ndarray:
    """float32 `[T, A]`: for each of `stamps_ns` `[T]` the row of the newest proposal up to then; NaN where it has none. `proposals` by stamp, at least one."""
    rows = np.full((len(stamps_ns), proposals[0].positions.shape[1]), np.nan, np.float32)
    newest = np.searchsorted([c.stamp_ns for c in proposals], stamps_ns, side="right") - 1
    for t, (index, stamp) in enumerate(zip(newest.tolist(), stamps_ns.tolist(), strict=True)):
        if index >= 0 and 0 <= (row := proposals[index].row_at(stamp)) < proposals[index].horizon:
            rows[t] = proposals[index].positions[row]
    return rows


def _errors(recording: Recording, proposals: Sequence[ActionChunk]) -> dict[str, dict[str, float | None]]:
    """Per source: ticks compared, root-mean-square and largest error of joints [rad], root-mean-square error of grippers [0..1]."""
    wrong = newest_rows(proposals, recording.stamps_ns) - recording.executed
    gripper = recording.robot.gripper_mask
    found: dict[str, dict[str, float | None]] = {}
    for source in sorted(set(recording.sources)):
        chosen = np.array([s == source for s in recording.sources]) & np.isfinite(wrong).all(axis=1)
        joints, grippers = wrong[chosen][:, ~gripper], wrong[chosen][:, gripper]
        found[source] = {
            "ticks": int(chosen.sum()),
            "joint_rmse_rad": _rms(joints),
            "joint_max_rad": float(np.abs(joints).max()) if joints.size else None,
            "gripper_rmse": _rms(grippers),
        }
    return found


def _chunk_agreement(pairs: Sequence[tuple[ActionChunk, ActionChunk]], robot: RobotDescription) -> dict[str, Any]:
    """Proposals against the chunks recorded for the same observation, over the rows both have."""
    apart = []
    for proposal, recorded in pairs:
        rows = min(proposal.horizon, recorded.horizon)
        apart.append((proposal.positions[:rows] - recorded.positions[:rows])[:, ~robot.gripper_mask])
    same = sum(np.array_equal(p.positions, r.positions) for p, r in pairs)
    return {
        "pairs": len(pairs),
        "identical": same,
        "joint_rmse_rad": _rms(np.concatenate(apart)) if apart else None,
    }


def _mean_values(values: Sequence[Any]) -> dict[str, Any] | None:
    if not values:
        return None
    means: dict[str, Any] = {
        key: float(np.mean([getattr(v, key) for v in values])) for key in ("q", "v", "advantage", "head_std")
    }
    positive = float(np.mean([v.advantage > 0 for v in values]))
    return {"chunks": len(values), **means, "positive_advantage": positive, "critic_version": values[-1].critic_version}


def _value_agreement(
    episode: ReplayedEpisode, pairs: Sequence[tuple[ActionChunk, ActionChunk]]
) -> dict[str, Any] | None:
    """Where both chunks of a pair were judged: how often the signs of their advantages agree, and how often the proposal has the higher q."""
    both = [
        (proposed, recorded)
        for p, r in pairs
        if (proposed := episode.proposed_values.get((p.stamp_ns, p.chunk_id))) is not None
        and (recorded := episode.recorded_values.get((r.stamp_ns, r.chunk_id))) is not None
    ]
    if not both:
        return None
    return {
        "pairs": len(both),
        "same_sign": float(np.mean([(p.advantage > 0) == (r.advantage > 0) for p, r in both])),
        "proposal_preferred": float(np.mean([p.q > r.q for p, r in both])),
    }


def _rms(values: np.ndarray) -> float | None:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else None


def _messages(folder: Path, name: str) -> list[Any]:
    where = f"bag {folder}"
    storage = open_storage(folder)
    try:
        topic = resolve(storage.topics(), name, where)
        if topic is None:
            return []
        check_type(topic, where)
        return [
            deserialize(raw.data, raw.type, f"{where}: {raw.topic}") for raw in storage.scan(lambda t: t == topic.name)
        ]
    finally:
        storage.close()
