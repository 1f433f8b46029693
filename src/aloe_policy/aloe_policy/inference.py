"""A thread that owns the policy: computes chunks, and exchanges the policy for a newer one between two of them."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.policy import POLICY_FILE, ChunkPolicy, load_policy, request_generator
from aloe_core.robot import RobotDescription

logger = logging.getLogger(__name__)

LATENCIES_KEPT = 500  # chunks over which latency is reported


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """One chunk to compute; fields as in `aloe_msgs/ChunkRequest`."""

    observation: Observation
    episode_id: str
    request_id: int
    prefix: np.ndarray  # [n, A]; n = 0: none
    prefix_steps: int


@dataclass(frozen=True, slots=True)
class PolicyOffer:
    """A policy to change to; fields as in `aloe_msgs/PolicyVersion`. Empty `version` and `sha256`: whatever `path` holds."""

    path: str
    version: str = ""
    sha256: str = ""
    robot_hash: str = ""


class Listener(Protocol):
    """Called in the worker's thread."""

    def on_chunk(self, chunk: ActionChunk) -> None:
        """A chunk is ready."""

    def on_loaded(self, policy: ChunkPolicy) -> None:
        """This policy answers from now on."""

    def on_refused(self, offer: PolicyOffer, reason: str) -> None:
        """An offered policy cannot be used; the one before stays."""

    def on_failed(self, job: ChunkJob, reason: str) -> None:
        """A chunk could not be computed."""


@dataclass
class Latencies:
    """Wall time of inference [s], warm-up left out."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))

    def quantile(self, share: float) -> float:
        """0 before the first chunk."""
        return float(np.quantile(np.array(self.values), share)) if self.values else 0.0


class InferenceWorker:
    """Does offers and jobs one after the other, in the order they came; an offer thus never changes a chunk under way.

    A job waits while no policy is loaded and fails if loading failed. Any error of a policy costs its chunk, never the thread.
    """

    def __init__(
        self,
        robot: RobotDescription,
        seed: int,
        listener: Listener,
        setup: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        """`setup` runs first in the thread (thread limits); `options` go to the policy's loader (device)."""
        self._robot, self._seed, self._listener, self._setup, self._options = robot, seed, listener, setup, options
        self._queue: queue.SimpleQueue[ChunkJob | PolicyOffer | None] = queue.SimpleQueue()
        self._policy: ChunkPolicy | None = None
        self._next_id = 1
        self.chunks = 0
        self.latencies = Latencies()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, work: ChunkJob | PolicyOffer) -> None:
        """Adds work and returns at once."""
        self._queue.put(work)

    def stop(self) -> None:
        """Ends the thread after the work under way, and closes the policy."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._setup()
        while (work := self._queue.get()) is not None:
            if isinstance(work, PolicyOffer):
                self._load(work)
            else:
                self._infer(work)
        self._close(self._policy)

    def _load(self, offer: PolicyOffer) -> None:
        policy: ChunkPolicy | None = None
        try:
            if offer.robot_hash and offer.robot_hash != self._robot.hash:
                raise AloeError(
                    f"policy {offer.version} was made for a robot with hash {offer.robot_hash}, '{self._robot.name}' has {self._robot.hash}"
                )
            policy = load_policy(offer.path, self._robot, **self._options)
            if offer.sha256 and (found := _sha256(offer.path)) != offer.sha256:
                raise AloeError(f"{offer.path} has content {found[:8]}..., announced was {offer.sha256[:8]}...")
            if offer.version and policy.version != offer.version:
                raise AloeError(f"{offer.path} holds version {policy.version}, announced was {offer.version}")
            self._warm_up(policy)
        except AloeError as error:
            self._listener.on_refused(offer, str(error))
            self._close(policy)
        except Exception as error:  # a foreign policy may fail in any way, and the arms must not stop for it
            self._listener.on_refused(offer, f"{offer.path}: {type(error).__name__}: {error}")
            self._close(policy)
        else:
            before, self._policy = self._policy, policy
            self.latencies = Latencies()
            self._listener.on_loaded(policy)
            self._close(before)

    def _close(self, policy: ChunkPolicy | None) -> None:
        """Gives back what a policy holds that answers no more, such as its connection to a server."""
        close = getattr(policy, "close", None)
        if policy is None or close is None:
            return
        try:
            close()
        except Exception as error:  # as in _load
            logger.warning("policy %s could not be closed: %s: %s", policy.version, type(error).__name__, error)

    def _warm_up(self, policy: ChunkPolicy) -> None:
        """One inference on an empty scene: lazy initialisation is paid here, and a policy that cannot infer is found out before it drives."""
        if policy.uses_task_state:
            return  # the shape of a task's state is known only when it comes
        height, width = policy.image_size or (480, 640)
        images = {name: np.zeros((height, width, 3), np.uint8) for name in policy.cameras}
        blank = Observation(0, self._robot.home.astype(np.float32), images, instruction="warm up")
        self._check(policy, policy.propose(blank, np.random.default_rng(0)))

    def _infer(self, job: ChunkJob) -> None:
        policy = self._policy
        if policy is None:
            self._listener.on_failed(job, "no usable policy is loaded")
            return
        generator = request_generator(self._seed, job.episode_id, job.request_id)
        prefix = job.prefix if len(job.prefix) else None
        try:
            began = time.perf_counter()
            positions = policy.propose(job.observation, generator, prefix, job.prefix_steps)
            latency = time.perf_counter() - began
            self._check(policy, positions)
        except AloeError as error:
            self._listener.on_failed(job, str(error))
            return
        except Exception as error:  # as in _load
            self._listener.on_failed(job, f"policy {policy.version}: {type(error).__name__}: {error}")
            return
        self.latencies.values.append(latency)
        self.chunks += 1
        chunk_id, self._next_id = self._next_id, self._next_id + 1
        self._listener.on_chunk(
            ActionChunk(
                stamp_ns=job.observation.stamp_ns,
                positions=positions,
                dt_ns=self._robot.control_dt_ns,
                chunk_id=chunk_id,
                request_id=job.request_id,
                policy_version=policy.version,
                episode_id=job.episode_id,
                inference_latency_s=latency,
                camera_stamps_ns=dict(job.observation.camera_stamps_ns),
            )
        )

    def _check(self, policy: ChunkPolicy, positions: np.ndarray) -> None:
        if positions.ndim != 2 or positions.shape[1] != self._robot.action_dim:
            raise AloeError(
                f"policy {policy.version} gave a chunk of shape {positions.shape}, the robot has {self._robot.action_dim} actions"
            )
        if not np.isfinite(positions).all():
            raise AloeError(f"policy {policy.version} gave a chunk that is not finite")


def _sha256(folder: str) -> str:
    """What the checkpoint claims; its loader has verified it."""
    return str(json.loads((Path(folder) / POLICY_FILE).read_text()).get("sha256", ""))
