"""Inference and training speed of the policy, on one thread of this machine's CPU.

Baselines: for a chunk the bare network on tensors that are ready (images encoded, then as many calls as the integration makes); for what policy_node
adds to that (its thread, batches, checks, the message; not transport, which bench_latency.py has) the goal of 5 % + 2 ms; for real-time chunking the
same chunk without a prefix. What is compared is timed in turns. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from result import Result

from aloe_core.messages import bag_make, chunk_msg
from aloe_core.observation import Observation, ObservationBuilder
from aloe_core.robot import load_robot
from aloe_policy.acting import ActingPolicy
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.encoders import embed
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.inference import ChunkJob, InferenceWorker, PolicyOffer
from aloe_policy.normalisation import Normalisation

ROBOT = load_robot("aloha_sim")
CAMERAS = ("overhead", "left_wrist", "right_wrist")
HORIZON, CALLS, WARM_UP, BATCH = 50, 40, 3, 128
MODES = {
    "state, mlp": FlowConfig(),
    "state, transformer": FlowConfig(network="transformer", width=128),
    "images, mlp": FlowConfig(camera_tokens=4),
    "images, transformer": FlowConfig(network="transformer", width=128, camera_tokens=4),
}


def run() -> list[Result]:
    """All numbers."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: list[Result] = []
    for mode, config in MODES.items():
        policy = _policy(config, images=mode.startswith("images"))
        results += _inference(mode, policy)
        if mode != "images, transformer":
            results.append(_training(mode, policy))
    results += _prefix(_policy(MODES["state, mlp"], images=False))
    results.append(_observing())
    return results


def _inference(mode: str, policy: FlowPolicy) -> list[Result]:
    acting, observation, generator = ActingPolicy(policy, "bench"), _observation(policy), np.random.default_rng(0)
    batch, x, eta = acting._batch(observation), torch.zeros(1, HORIZON, ROBOT.action_dim), torch.zeros(1)

    def network() -> None:
        with torch.no_grad(), policy._autocast():
            tokens = policy._tokens(batch)
            for _ in range(policy.config.steps):
                policy.network(x, eta, tokens)

    arrivals = _Arrivals()
    worker = InferenceWorker(ROBOT, 0, arrivals)

    def ask() -> None:
        arrivals.event.clear()
        worker.submit(ChunkJob(observation, "bench", 1, np.empty((0, ROBOT.action_dim), np.float32), 0))
        arrivals.event.wait()

    with TemporaryDirectory() as folder:
        policy.save(Path(folder) / "policy")
        worker.submit(PolicyOffer(str(Path(folder) / "policy")))
        arrivals.event.wait()
        node, chunk, bare = _times(ask, lambda: acting.propose(observation, generator), network)
        worker.stop()
    results = [Result(f"policy: chunk, {mode}, p{p}", _ms(chunk, p), "ms", _ms(bare, p)) for p in (50, 99)]
    results += [Result(f"policy: node, {mode}, p{p}", _ms(node, p), "ms", _ms(bare, p)) for p in (50, 99)]
    added, goal = _ms(node, 50) - _ms(bare, 50), 0.05 * _ms(bare, 50) + 2.0
    return [*results, Result(f"policy: added by the node, {mode}, p50", added, "ms", goal)]


def _training(mode: str, policy: FlowPolicy) -> Result:
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    batch: dict = {"state": torch.randn(BATCH, 14), "action": torch.randn(BATCH, HORIZON, 14)}
    if policy.spec.object_dim:
        batch["object_state"] = torch.randn(BATCH, policy.spec.object_dim)
    if policy.spec.cameras:
        batch["features"] = {camera: torch.randn(BATCH, 64, 112) for camera in CAMERAS}
        batch["instruction"] = torch.randn(BATCH, 384)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        policy.loss(batch, generator).mean().backward()  # type: ignore[arg-type]
        optimizer.step()

    policy.train()
    (seconds,) = _times(step, calls=10)
    return Result(f"policy: training, {mode}", BATCH / float(np.median(seconds)), "samples/s")


def _prefix(policy: FlowPolicy) -> list[Result]:
    acting, observation, generator = ActingPolicy(policy, "bench"), _observation(policy), np.random.default_rng(0)
    prefix = np.zeros((25, ROBOT.action_dim), np.float32)
    guided, free = _times(
        lambda: acting.propose(observation, generator, prefix, 5), lambda: acting.propose(observation, generator)
    )
    return [Result("policy: chunk, state, mlp, real-time chunking, p50", _ms(guided, 50), "ms", _ms(free, 50))]


def _observing() -> Result:
    """What policy_node does before: an observation out of three 640x480 JPEG images."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (640, 480))
    jpeg = cv2.imencode(".jpg", smooth)[1].tobytes()
    builder = ObservationBuilder(ROBOT, CAMERAS, (128, 128))
    builder.add_joint_state(0, ROBOT.action_names, [0.0] * ROBOT.action_dim)
    for camera in CAMERAS:
        builder.add_image(camera, 0, jpeg)
    (seconds,) = _times(lambda: builder.build(0))
    return Result("policy: observation of three 640x480 images, p50", _ms(seconds, 50), "ms")


class _Arrivals:
    """Listener that makes the message of each chunk and notes that it has come."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def on_chunk(self, chunk) -> None:
        chunk_msg(bag_make, chunk, ROBOT)
        self.event.set()

    def on_loaded(self, policy) -> None:
        self.event.set()

    def on_refused(self, offer, reason: str) -> None:
        raise RuntimeError(reason)

    def on_failed(self, job, reason: str) -> None:
        raise RuntimeError(reason)


def _policy(config: FlowConfig, images: bool) -> FlowPolicy:
    torch.manual_seed(0)
    zero, one = torch.zeros(14), torch.ones(14)
    statistics = {"state": (zero, one), "action": (zero, one)}
    if images:
        return FlowPolicy(PolicySpec.of(ROBOT, HORIZON, CAMERAS, (128, 128)), config, Normalisation(statistics))
    statistics["object_state"] = (zero[:7], one[:7])
    return FlowPolicy(PolicySpec.of(ROBOT, HORIZON, object_dim=7), config, Normalisation(statistics))


def _observation(policy: FlowPolicy) -> Observation:
    images = {camera: np.zeros((128, 128, 3), np.uint8) for camera in policy.spec.cameras}
    if images:
        embed("go")
    return Observation(0, np.zeros(14, np.float32), images, "go", np.zeros(7, np.float32) if not images else None)


def _times(*alternatives: Callable[[], object], calls: int = CALLS) -> np.ndarray:
    """Wall times `[alternatives, calls]` [s], taken in turns after a warm-up, so that other load on the machine hits all alike.

    A turn is two calls, the second counts: the first brings the weights back to the core it runs on. Without that, whatever follows a call in another
    thread pays for the cold cache, and whatever follows that does not.
    """
    times = np.empty((len(alternatives), calls))
    for k in range(-WARM_UP, calls):
        for number, call in enumerate(alternatives):
            call()
            began = time.perf_counter()
            call()
            if k >= 0:
                times[number, k] = time.perf_counter() - began
    return times


def _ms(times: np.ndarray, share: int) -> float:
    return float(np.percentile(times, share) * 1e3)


if __name__ == "__main__":
    for result in run():
        print(result.as_dict(), flush=True)
