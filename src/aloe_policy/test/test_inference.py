"""The thread behind policy_node: chunks in order, policies exchanged between them, and nothing that stops it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import HORIZON, make_policy
from test_remote import Running

from aloe_core.observation import Observation
from aloe_core.robot import load_robot
from aloe_policy.flow import FlowPolicy
from aloe_policy.inference import ChunkJob, InferenceWorker, PolicyOffer

ROBOT = load_robot("aloha_sim")
NO_PREFIX = np.empty((0, 14), np.float32)


class Events:
    """A listener that keeps what happened."""

    def __init__(self) -> None:
        self.queue: queue.Queue = queue.Queue()
        self.policies: list = []

    def on_chunk(self, chunk) -> None:
        self.queue.put(("chunk", chunk))

    def on_loaded(self, policy) -> None:
        self.policies.append(policy)
        self.queue.put(("loaded", policy.version))

    def on_refused(self, offer, reason: str) -> None:
        self.queue.put(("refused", reason))

    def on_failed(self, job, reason: str) -> None:
        self.queue.put(("failed", reason))

    def next(self) -> tuple:
        return self.queue.get(timeout=60)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def worker(events: Events) -> Iterator[InferenceWorker]:
    worker = InferenceWorker(ROBOT, 7, events)
    yield worker
    worker.stop()


def job(request: int = 1, episode: str = "e", objects: int = 7) -> ChunkJob:
    observation = Observation(20, np.zeros(14, np.float32), object_state=np.zeros(objects, np.float32))
    return ChunkJob(observation, episode, request, NO_PREFIX, 0)


def saved(folder: Path, name: str) -> str:
    make_policy(ROBOT).save(folder / name, name)
    return str(folder / name)


def test_a_chunk_depends_on_seed_episode_and_request_alone(
    tmp_path: Path, worker: InferenceWorker, events: Events
) -> None:
    worker.submit(PolicyOffer(saved(tmp_path, "bc-0")))
    kind, version = events.next()
    assert kind == "loaded"
    jobs = [job(1), job(2), job(1), job(1, episode="other")]
    for work in jobs:
        worker.submit(work)
    chunks = [events.next()[1] for _ in jobs]
    assert [c.request_id for c in chunks] == [1, 2, 1, 1]
    assert [c.chunk_id for c in chunks] == [1, 2, 3, 4]
    assert {c.policy_version for c in chunks} == {version}
    assert {c.stamp_ns for c in chunks} == {20}
    assert chunks[0].positions.shape == (HORIZON, 14)
    np.testing.assert_array_equal(chunks[0].positions, chunks[2].positions)
    for other in (chunks[1], chunks[3]):
        assert not np.array_equal(chunks[0].positions, other.positions)


def test_a_policy_is_exchanged_between_chunks_and_bad_ones_change_nothing(
    tmp_path: Path, worker: InferenceWorker, events: Events
) -> None:
    old, new = saved(tmp_path, "bc-0"), saved(tmp_path, "bc-1")
    worker.submit(PolicyOffer(old))
    version = events.next()[1]
    for offer, reason in (
        (PolicyOffer(new, sha256="0" * 64), "announced was 00000000"),
        (PolicyOffer(new, version="bc-9-00000000"), "announced was bc-9-00000000"),
        (PolicyOffer(new, robot_hash="f" * 16), "made for a robot with hash ffff"),
        (PolicyOffer(str(tmp_path / "nothing")), "neither a checkpoint folder nor a known policy"),
        (PolicyOffer("x" * 1000), "neither a checkpoint folder nor a known policy"),
    ):
        worker.submit(offer)
        kind, message = events.next()
        assert kind == "refused"
        assert reason in message
    worker.submit(job(1))
    worker.submit(PolicyOffer(new))
    worker.submit(job(2))
    first, loaded, second = (events.next() for _ in range(3))
    assert first[1].policy_version == version
    assert loaded[0] == "loaded"
    assert second[1].policy_version == loaded[1] != version


def test_a_failing_chunk_costs_that_chunk(tmp_path: Path, worker: InferenceWorker, events: Events) -> None:
    worker.submit(job())
    assert events.next() == ("failed", "no usable policy is loaded")
    worker.submit(PolicyOffer(saved(tmp_path, "bc-0")))
    events.next()
    worker.submit(job(objects=3))
    kind, reason = events.next()
    assert kind == "failed"
    assert "needs an object state of 7 numbers, the observation has 3" in reason
    worker.submit(job())
    assert events.next()[0] == "chunk"
    assert worker.chunks == 1
    assert worker.latencies.quantile(0.5) > 0


def test_chunks_that_no_robot_may_follow_are_refused(
    tmp_path: Path, worker: InferenceWorker, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.submit(PolicyOffer(saved(tmp_path, "bc-0")))
    version = events.next()[1]
    lost = replace(job().observation, state=np.full(14, np.nan, np.float32))
    worker.submit(replace(job(), observation=lost))
    assert events.next() == ("failed", f"policy {version} gave a chunk that is not finite")
    act = FlowPolicy.act
    monkeypatch.setattr(FlowPolicy, "act", lambda *arguments: act(*arguments)[..., :13])
    worker.submit(job())
    reason = f"policy {version} gave a chunk of shape ({HORIZON}, 13), the robot has 14 actions"
    assert events.next() == ("failed", reason)
    assert worker.chunks == 0


def test_a_policy_that_answers_no_more_is_closed(tmp_path: Path, events: Events) -> None:
    """One that was exchanged, one that was refused, and the last one; the connection to a server would stay."""
    server = Running()
    worker = InferenceWorker(ROBOT, 7, events)
    try:
        worker.submit(PolicyOffer(f"remote:{server.url}"))
        assert events.next()[0] == "loaded"
        worker.submit(PolicyOffer(f"remote:{server.url}", version="another"))
        assert events.next()[0] == "refused"
        worker.submit(PolicyOffer(saved(tmp_path, "bc-0")))
        worker.submit(PolicyOffer(f"remote:{server.url}"))
    finally:
        worker.stop()
    assert len(events.policies) == 3
    deadline = time.monotonic() + 60
    while connections := [t for t in threading.enumerate() if "recv_events" in t.name]:
        assert time.monotonic() < deadline, connections
        time.sleep(0.01)
    server.stop()


def test_a_policy_that_cannot_be_closed_costs_nothing(tmp_path: Path, events: Events, monkeypatch, caplog) -> None:
    server = Running()
    worker = InferenceWorker(ROBOT, 7, events)
    try:
        worker.submit(PolicyOffer(f"remote:{server.url}"))
        assert events.next()[0] == "loaded"
        monkeypatch.setattr(events.policies[0], "close", lambda: 1 / 0)
        worker.submit(PolicyOffer(saved(tmp_path, "bc-0")))
        worker.submit(job())
        assert [events.next()[0] for _ in range(2)] == ["loaded", "chunk"]
    finally:
        worker.stop()
        server.stop()
    assert "policy echo-0-12345678 could not be closed: ZeroDivisionError" in caplog.text
