"""Chunk samples: for every tick at which a chunk may start, what chunk temporal-difference learning needs to know (paper Eq. 7 with the terminal mask).

    chunk_return       = sum_{k < n} gamma^k r_{t+k}
    bootstrap          = row t + n
    bootstrap_discount = gamma^n (1 - terminal)

with n = min(backup, steps to the end of the fragment). Partial chunks at the ends of fragments are kept: they carry the outcome. No chunk crosses a border: of
a fragment, an episode, or a gap in the recording. Rewards come from outcomes (`RewardConfig`), so samples are made anew after relabelling, in milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from aloe_core.errors import AloeError
from aloe_core.fragments import PROTOCOLS, Fragment, Protocol, chunk_stops, derive_fragments
from aloe_core.vocabulary import Outcome
from aloe_policy.replay.rewards import RewardConfig
from aloe_policy.replay.store import ReplayStore


class ChunkSamples:
    """N samples over some episodes of a store.

    Attributes:
        start: int64 `[N]`, row of the first step.
        stop: int64 `[N]`, one past the last row the chunk may hold.
        bootstrap: int64 `[N]`, row that the chunk is backed up to, t + n.
        chunk_return: float32 `[N]`, discounted sum of the n scaled rewards; NaN where the protocol trains no critic.
        bootstrap_discount: float32 `[N]`, gamma^n, 0 where the chunk ends in a terminal step.
        return_to_go: float32 `[N]`, discounted return to the end of the fragment; NaN where it ends without an outcome.
        terminal: bool `[N]`, the chunk ends in a terminal step.
        truncated: bool `[N]`, the chunk is cut by the end of its fragment, and the value goes on.
        source: uint8 `[N]`, `Source` of the fragment.
        outcome, episode_outcome: uint8 `[N]`, `Outcome` of the fragment and of the episode.
        fragment: int64 `[N]`, number of the fragment, unique over the samples; episode: int64 `[N]`, number of the episode in the store.
        to_end: bool `[N]`, the chunk may hold every step up to the end of its fragment, so that nothing is known to follow its last row.
        iteration: int64 `[N]`, improvement iteration of the episode.
        train_policy, train_critic: bool `[N]`, what the protocol allows the chunk to train.
        failure_cost: C_fail [steps].
        return_range: lowest and highest return that the rewards allow.
        digest: 16 hex digits of everything the samples follow from; two equal ones give equal batches.
    """

    def __init__(
        self,
        store: ReplayStore,
        horizon: int,
        reward: RewardConfig | None = None,
        protocol: Protocol = "aloe",
        backup: int | None = None,
        episodes: Sequence[int] | None = None,
        encoder: str | None = None,
    ) -> None:
        """Derives the samples; reads only who drove, not images.

        Args:
            horizon: H, rows of a chunk.
            reward: the task's reward; None: the default one.
            protocol: how interventions are read.
            backup: longest n [steps], at most the horizon (paper: 1, 5, 15 or 50 of 50); None: the horizon.
            episodes: numbers of the episodes to use, as `IngestReport.episodes`; None: all.
            encoder: batches hold the cached features of this encoder instead of images.

        Raises:
            AloeError: unknown protocol, a backup longer than the horizon, or no chunk to learn from.
        """
        backup = horizon if backup is None else backup
        if protocol not in PROTOCOLS:
            raise AloeError(f"unknown intervention protocol '{protocol}'; known: {', '.join(PROTOCOLS)}")
        if not 1 <= backup <= horizon:
            raise AloeError(f"backup length {backup} must lie between 1 and the horizon {horizon}")
        self.store, self.horizon, self.backup, self.protocol = store, horizon, backup, protocol
        self.reward, self.encoder = reward or RewardConfig(), encoder
        self.episodes = list(range(len(store.episodes))) if episodes is None else sorted(set(episodes))
        outcomes = np.array([store.outcome(e) for e in self.episodes], np.int64)
        lengths = np.array([store.episodes[e].steps for e in self.episodes], np.int64)
        self.failure_cost = self.reward.cost(lengths, outcomes)
        self.return_range = self.reward.bounds(self.failure_cost)
        columns = self._columns(dict(zip(self.episodes, outcomes.tolist(), strict=True)))
        if not len(columns["start"]):
            raise AloeError(f"store {store.root}: the {len(self.episodes)} episodes chosen hold no chunk to learn from")
        self.start, self.stop = columns["start"], columns["stop"]
        self.source = columns["source"].astype(np.uint8)
        self.outcome = columns["outcome"].astype(np.uint8)
        self.episode_outcome = columns["episode_outcome"].astype(np.uint8)
        self.episode, self.fragment, self.to_end = columns["episode"], columns["fragment"], columns["to_end"]
        self.train_policy, self.train_critic = columns["train_policy"], columns["train_critic"]
        self.iteration = np.array([e.iteration for e in store.episodes], np.int64)[self.episode]
        self._returns(columns)
        self.digest = self._digest(outcomes)

    def __len__(self) -> int:
        return len(self.start)

    def batch(self, index: np.ndarray, steps: np.ndarray | None = None) -> dict[str, Any]:
        """Samples `index [B]`.

        Args:
            steps: int64 `[B]`, n where a chunk is to be cut and backed up earlier than by `backup`; its later rows count as not executed.

        Returns:
            What `ReplayStore.chunk_batch` returns, and chunk_return, bootstrap_discount, return_to_go float32 `[B]`, terminal bool `[B]`, source uint8 `[B]`,
            fragment, iteration int64 `[B]`, policy_version: B strings, bootstrap int64 `[B]`: the rows that the chunks are backed up to, and
            next: the observations there.
        """
        rows = self.start[index]
        backed_up = self._backed_up(index, np.full(len(rows), self.backup) if steps is None else steps)
        stop = self.stop[index]
        if steps is not None:
            stop = np.where(steps < self.backup, np.minimum(stop, backed_up["bootstrap"]), stop)
        batch = self.store.chunk_batch(rows, self.horizon, stop, self.encoder)
        batch |= backed_up
        for name in ("return_to_go", "source", "fragment", "iteration"):
            batch[name] = getattr(self, name)[index]
        versions = self.store.arrays["version"][rows]
        numbers = zip(batch["episode"].tolist(), versions.tolist(), strict=True)
        batch["policy_version"] = [self.store.episodes[e].versions[v] for e, v in numbers]
        batch["next"] = self.store.observe(batch["bootstrap"], self.encoder)
        return batch

    def _columns(self, outcomes: dict[int, int]) -> dict[str, np.ndarray]:
        """What follows from the fragments alone, a row per sample."""
        parts: list[dict[str, np.ndarray]] = []
        fragments = 0
        for first, end, number in self.store.segments:
            if number not in outcomes or first == end:
                continue
            entry = self.store.episodes[number]
            whole = entry.complete and end == entry.start + entry.steps
            outcome = (
                Outcome(outcomes[number]) if whole else Outcome.UNLABELLED
            )  # the end of the episode is not in the recording
            source = np.asarray(self.store.arrays["source"][first:end])
            derived = derive_fragments(
                source, outcome, self.protocol, timeout_is_failure=self.reward.timeout_is_failure
            )
            stops = chunk_stops(source, derived, self.protocol)
            parts.append(
                self._of_segment(
                    int(first), int(number), outcomes[number], derived, fragments, stops.policy, stops.critic
                )
            )
            fragments += len(derived)
        names = parts[0] if parts else ("start",)
        return {name: np.concatenate([p[name] for p in parts] or [np.empty(0, np.int64)]) for name in names}

    def _of_segment(
        self,
        first: int,
        episode: int,
        episode_outcome: int,
        fragments: list[Fragment],
        offset: int,
        policy_stop: np.ndarray,
        critic_stop: np.ndarray,
    ) -> dict[str, np.ndarray]:
        lengths = [f.stop - f.start for f in fragments]
        at = np.arange(len(policy_stop))
        ends = _stream_ends(fragments)
        stop = np.maximum(policy_stop, critic_stop)

        def spread(values: list[Any], dtype: Any) -> np.ndarray:
            return np.repeat(np.array(values, dtype), lengths)

        columns = {
            "start": at + first,
            "stop": stop + first,
            "to_end": stop == spread([f.stop for f in fragments], np.int64),
            "critic_steps": critic_stop - at,
            "source": spread([f.source for f in fragments], np.int64),
            "outcome": spread([f.outcome for f in fragments], np.int64),
            "episode_outcome": np.full(len(at), episode_outcome),
            "terminal_end": spread([f.terminal for f in ends], bool),
            "end_reward": spread(
                [self.reward.end_reward(f.outcome, f.terminal, self.failure_cost) for f in ends], np.float64
            ),
            "episode": np.full(len(at), episode),
            "fragment": spread(list(range(offset, offset + len(fragments))), np.int64),
            "train_policy": policy_stop > at,
            "train_critic": critic_stop > at,
        }
        return {name: values[stop > at] for name, values in columns.items()}

    def _returns(self, columns: dict[str, np.ndarray]) -> None:
        self._to_end, self._terminal_end = columns["critic_steps"], columns["terminal_end"]
        self._end_reward = columns["end_reward"]
        every = np.arange(len(self.start))
        whole = self._backed_up(every, np.full(len(every), self.backup))
        self.bootstrap, self.terminal = whole["bootstrap"], whole["terminal"]
        self.chunk_return, self.bootstrap_discount = whole["chunk_return"], whole["bootstrap_discount"]
        self.truncated = (self._to_end < self.horizon) & ~self._terminal_end & self.train_critic
        everything = self.reward.discounted(self._to_end, np.ones(len(every), bool), self._end_reward)
        absent = ~self.train_critic | ~self._terminal_end
        self.return_to_go = np.where(absent, np.nan, everything).astype(np.float32)

    def _backed_up(self, index: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
        """bootstrap, terminal, chunk_return, bootstrap_discount of samples backed up over `steps` `[B]`, or to the end of their fragment."""
        to_end, absent = self._to_end[index], ~self.train_critic[index]
        n = np.minimum(to_end, steps)
        reaches_end = n == to_end
        terminal = reaches_end & self._terminal_end[index] & ~absent
        chunk_return = self.reward.discounted(n, reaches_end, self._end_reward[index])
        discount = np.where(terminal | absent, 0.0, self.reward.gamma ** n.astype(np.float64))
        return {
            "bootstrap": self.start[index] + n,
            "terminal": terminal,
            "chunk_return": np.where(absent, np.nan, chunk_return).astype(np.float32),
            "bootstrap_discount": discount.astype(np.float32),
        }

    def _digest(self, outcomes: np.ndarray) -> str:
        digest = hashlib.blake2b(digest_size=8)
        parts = (
            self.horizon,
            self.backup,
            self.protocol,
            self.reward,
            self.failure_cost,
            self.encoder,
            outcomes.tolist(),
        )
        digest.update(repr(parts).encode())
        for number in self.episodes:
            digest.update(self.store.episodes[number].content.encode())
        return digest.hexdigest()


def _stream_ends(fragments: list[Fragment]) -> list[Fragment]:
    """For each fragment the one in which its stream ends: itself, unless chunks may run on into the next one."""
    ends: list[Fragment] = []
    for fragment in reversed(fragments):
        ends.append(fragment if fragment.terminal or fragment.truncated or not ends else ends[-1])
    return ends[::-1]
