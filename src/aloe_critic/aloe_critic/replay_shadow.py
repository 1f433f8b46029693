"""Replays a bag in shadow mode without ROS: what another policy would have proposed, and what a critic thinks of both. Nothing moves.

The policy is asked where the robot asked, from the observation the robot had, with the randomness the request had: with the policy and seed of the recording
its chunks come out bit by bit as recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aloe_core import topics
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import bag_make, chunk_msg, header_msg, typestore
from aloe_core.policy import ChunkPolicy, request_generator
from aloe_critic.recording import Eyes, Recording, Request
from aloe_critic.scoring import ChunkScorer, Score
from aloe_policy.replayed_bag import CHUNK, VALUE, Addition, write_replayed

VALUE_TYPE, CHUNK_TYPE = "aloe_msgs/msg/CriticValue", "aloe_msgs/msg/ActionChunk"


def replay(
    recording: Recording,
    policy: ChunkPolicy,
    target: Path,
    scorer: ChunkScorer | None = None,
    every: int = 0,
    seed: int = 0,
    on_request: Callable[[], object] = lambda: None,
) -> list[str]:
    """Asks `policy` and `scorer` along a recording and writes the new bag `target`.

    Args:
        policy: answers on `replay/chunk`.
        scorer: judges recorded chunks on `critic/value` and proposals on `replay/value`.
        every: ask at each `every`-th tick; 0: where the recording asked.
        seed: of the policy's randomness.
        on_request: called after each request.

    Returns:
        What was left out, a sentence each.

    Raises:
        AloeError: `target` exists, or the policy cannot answer a single request.
    """
    if target.exists():
        raise AloeError(f"{target} exists already; bags are never overwritten, choose another output folder")
    eyes: list[Eyes] = [policy] if scorer is None else [policy, scorer]
    requests = recording.asked(eyes, every)
    problems: list[str] = []
    additions: list[Addition] = []
    for number, request in enumerate(requests, start=1):
        try:
            chunk = propose(recording, policy, request, number, seed)
        except AloeError as error:
            problems.append(f"request {request.request_id}: {error}")
            continue
        additions.append(
            Addition(CHUNK, CHUNK_TYPE, _cdr(chunk_msg(bag_make, chunk, recording.robot)), request.log_time_ns)
        )
        if scorer is not None:
            recorded = recording.recorded_chunk(request.stamp_ns, request.request_id)
            for topic, judged in ((VALUE, chunk), (topics.CRITIC_VALUE, recorded)):
                if judged is None:
                    continue
                try:
                    value = value_msg(judged, _score(recording, scorer, request, judged), scorer)
                except AloeError as error:
                    problems.append(f"{topic} of request {request.request_id}: {error}")
                else:
                    additions.append(Addition(topic, VALUE_TYPE, _cdr(value), request.log_time_ns))
        on_request()
    if not additions:
        raise AloeError(
            f"bag {recording.folder}: nothing could be replayed: {problems[0] if problems else 'no requests'}"
        )
    return problems + write_replayed(
        recording.folder, target, recording.info, additions, {"replay_policy": policy.version}
    )


def propose(recording: Recording, policy: ChunkPolicy, request: Request, chunk_id: int, seed: int) -> ActionChunk:
    """The policy's answer to a request.

    Raises:
        AloeError: the observation cannot be built, or the policy refuses it or gives a chunk that does not fit.
    """
    observation = recording.observe(request.stamp_ns, policy, request.instruction)
    generator = request_generator(seed, request.episode_id, request.request_id)
    prefix = request.prefix if len(request.prefix) else None
    began = time.perf_counter()
    positions = policy.propose(observation, generator, prefix, request.prefix_steps)
    latency = time.perf_counter() - began
    if positions.ndim != 2 or positions.shape[1] != recording.robot.action_dim or not np.isfinite(positions).all():
        raise AloeError(
            f"policy {policy.version} gave a chunk of shape {positions.shape} that is not finite or does not fit the robot"
        )
    return ActionChunk(
        stamp_ns=request.stamp_ns,
        positions=positions,
        dt_ns=recording.robot.control_dt_ns,
        chunk_id=chunk_id,
        request_id=request.request_id,
        policy_version=policy.version,
        episode_id=request.episode_id,
        inference_latency_s=latency,
        camera_stamps_ns=dict(observation.camera_stamps_ns),
    )


def _score(recording: Recording, scorer: ChunkScorer, request: Request, chunk: ActionChunk) -> Score:
    seen = recording.observe(request.stamp_ns, scorer, request.instruction)
    return scorer.score(seen, np.array(chunk.positions), chunk.chunk_id)


def value_msg(chunk: ActionChunk, score: Score, scorer: ChunkScorer) -> Any:
    """`aloe_msgs/CriticValue` of a chunk, as `critic_node` publishes it."""
    return bag_make(
        VALUE_TYPE,
        header=header_msg(bag_make, chunk.stamp_ns),
        episode_id=chunk.episode_id,
        chunk_id=chunk.chunk_id,
        q=score.q,
        q_heads=np.asarray(score.q_heads, np.float64),
        v=score.v,
        advantage=score.advantage,
        head_std=score.head_std,
        critic_version=scorer.critic_version,
        policy_version=scorer.policy_version,
    )


def _cdr(message: Any) -> bytes:
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))
