"""Baselines without a critic: they choose which recorded chunks to imitate."""

from __future__ import annotations

from torch import Tensor

from aloe_critic.methods.base import Method, SampleFacts


class FilteredBC(Method):
    """Imitates every chunk of a fragment that ended in success, whoever drove: demonstrations, the policy's own successes, human rescues."""

    name = "filtered_bc"

    def weights(self, advantage_N: Tensor, facts: SampleFacts) -> Tensor:
        return (facts.success & facts.train_policy).to(advantage_N.dtype)


class HGDagger(Method):
    """HG-DAgger (1810.02890): imitates demonstrations and human take-overs only, never the policy's own chunks."""

    name = "hg_dagger"

    def weights(self, advantage_N: Tensor, facts: SampleFacts) -> Tensor:
        return (facts.human & facts.train_policy).to(advantage_N.dtype)
