"""Bags -> samples: the one replay of behaviour cloning and of the critic.

`ReplayStore` holds every tick of every ingested bag; `ChunkSamples` says what each chunk start is worth under a protocol and a reward;
`SourceSampler` draws from it. No torch in here but in `tensors`.
"""

from aloe_policy.replay.ingest import IngestReport
from aloe_policy.replay.layout import StoredEpisode, StoreSpec
from aloe_policy.replay.report import ReplayReport, replay_report
from aloe_policy.replay.rewards import RewardConfig
from aloe_policy.replay.sampler import SourceSampler
from aloe_policy.replay.samples import ChunkSamples
from aloe_policy.replay.store import ReplayStore

__all__ = [
    "ChunkSamples",
    "IngestReport",
    "ReplayReport",
    "ReplayStore",
    "RewardConfig",
    "SourceSampler",
    "StoreSpec",
    "StoredEpisode",
    "replay_report",
]
