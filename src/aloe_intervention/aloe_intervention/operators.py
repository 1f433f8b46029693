"""Simulated operators by name: the same person on good and bad days, for experiments on what the quality of corrections is worth."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aloe_core.errors import AloeError
from aloe_intervention.operator_sim import OperatorConfig

OPERATORS: Mapping[str, OperatorConfig] = MappingProxyType(
    {
        "practised": OperatorConfig(),
        "slow": OperatorConfig(reaction_time=1.5, speed=0.11, turn_speed=0.55),
        "unsteady": OperatorConfig(unsteadiness=0.45, delay=0.15),
        "clumsy": OperatorConfig(clumsiness=0.006, unsteadiness=0.3, reaction_time=1.0),
    }
)


def operator_config(name: str) -> OperatorConfig:
    """The operator of that name; raises `AloeError` with the known names."""
    if name not in OPERATORS:
        raise AloeError(f"unknown operator '{name}'; known operators: {', '.join(OPERATORS)}")
    return OPERATORS[name]
