"""Updates per second of critic and actor on one core, each against a straightforward way to do the same.

- Critic: K heads on one trunk, and K separate trunks in batched products, against a loop over K networks of one head. Same size, batch and targets.
- Targets: looking the policy's chunks up in a table drawn once, against drawing them at every step.
- Actor: the advantage-weighted loss against the same policy's plain behaviour cloning; the goal is a cost below 10 %.

Alternatives are timed in turns within one run, so that other load on the machine hits both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from result import Result
from torch import Tensor

from aloe_critic.critic import ChunkCritic, small
from aloe_critic.losses import critic_loss, weighted_flow_loss
from aloe_critic.policy_chunks import ChunkTable, FreshChunks
from aloe_critic.targets import polyak_, reduce_heads, td_target
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation

BATCH, HORIZON, ACTIONS, OBJECTS = 256, 50, 14, 7
NETWORKS = {"mlp": 256, "transformer": 64}  # the small critics of states, and of cameras: width
ROUNDS = 5


def run() -> list[Result]:
    """See the module."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = []
    for network, width in NETWORKS.items():
        size = {"network": network, "width": width}
        for heads in (2, 10):
            shared = critic_update([critic(heads=heads, **size)])
            separate = critic_update([critic(heads=heads, separate_trunks=True, **size)])
            loop = critic_update([critic(heads=1, **size) for _ in range(heads)])
            per_s = rates([shared, separate, loop], repeats=3)
            for way, rate in zip(("shared trunk", "separate trunks"), per_s, strict=False):
                title = f"critic updates, {network}, K = {heads}, {way} (baseline: loop over heads)"
                results.append(Result(title, rate, "1/s", per_s[2]))

    replay, actor = observations(4 * BATCH), policy()
    fresh = FreshChunks(actor.eval(), lambda ticks: {k: v[ticks] for k, v in replay.items()}, HORIZON)  # type: ignore[return-value, arg-type]
    table = ChunkTable(fresh, 4 * BATCH, 4, (0,))
    ticks, generator = torch.arange(BATCH), torch.Generator().manual_seed(0)
    looked_up, drawn = rates([lambda s=s: s.draw(ticks, 1, generator) for s in (table, fresh)], repeats=3)
    results.append(Result("target chunks from the table, batches (baseline: drawn each time)", looked_up, "1/s", drawn))

    weighted, plain = rates([actor_update(policy(), weight=True), actor_update(policy(), weight=False)], repeats=10)
    results.append(Result("actor updates, advantage-weighted (baseline: behaviour cloning)", weighted, "1/s", plain))
    return results


def rates(ways: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Calls per second of each way: the best of several rounds in which they take turns."""
    best = [float("inf")] * len(ways)
    for way in ways:
        way()
    for _ in range(ROUNDS):
        for number, way in enumerate(ways):
            began = time.perf_counter()
            for _ in range(repeats):
                way()
            best[number] = min(best[number], (time.perf_counter() - began) / repeats)
    return [1 / seconds for seconds in best]


def critic(**changes: object) -> ChunkCritic:
    """The small critic of state observations."""
    inputs = {
        "state_dim": ACTIONS,
        "action_dim": ACTIONS,
        "horizon": HORIZON,
        "object_dim": OBJECTS,
        "steps_per_token": 10,
    }
    return ChunkCritic(small(**{**inputs, **changes}))


def observations(size: int) -> dict[str, Tensor]:
    """Random observations."""
    return {"state": torch.randn(size, ACTIONS), "object_state": torch.randn(size, OBJECTS)}


def critic_update(networks: list[ChunkCritic]) -> Callable[[], object]:
    """One step of chunk TD for all networks on one batch: target, loss, gradient, optimizer, Polyak."""
    batch = {**observations(BATCH), "action": torch.randn(BATCH, HORIZON, ACTIONS)}
    following = {**observations(BATCH), "action": torch.randn(BATCH, HORIZON, ACTIONS)}
    chunk_return, discount = torch.randn(BATCH), torch.full((BATCH,), 0.6)
    targets = [ChunkCritic(n.config).requires_grad_(False) for n in networks]
    optimizers = [torch.optim.AdamW(n.parameters(), lr=3e-4) for n in networks]

    def update() -> None:
        with torch.no_grad():
            heads = torch.cat([t(following) for t in targets], dim=1)
            target, _ = td_target(chunk_return, discount, reduce_heads(heads))
        for network, slow, optimizer in zip(networks, targets, optimizers, strict=True):
            loss, _ = critic_loss(network(batch), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            polyak_(slow, network)

    return update


def policy() -> FlowPolicy:
    """The default policy of state observations."""
    spec = PolicySpec("bench", "0", tuple(f"joint_{i}" for i in range(ACTIONS)), HORIZON, object_dim=OBJECTS)
    sizes = {"state": ACTIONS, "action": ACTIONS, "object_state": OBJECTS}
    return FlowPolicy(spec, FlowConfig(), Normalisation({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()}))


def actor_update(network: FlowPolicy, weight: bool) -> Callable[[], object]:
    """One actor step, with weights looked up for the samples of the batch, or without."""
    batch = {
        **observations(BATCH),
        "action": torch.randn(BATCH, HORIZON, ACTIONS),
        "action_mask": torch.ones(BATCH, HORIZON, dtype=torch.bool),
    }
    weights, generator = torch.rand(50_000), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def update() -> None:
        loss_B = network.loss(batch, generator)  # type: ignore[arg-type]
        if weight:
            index = torch.randint(len(weights), (BATCH,), generator=generator)
            loss, _ = weighted_flow_loss(loss_B, weights[index])
        else:
            loss = loss_B.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return update
