"""Improvement methods behind one interface: `METHODS` names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aloe_core.errors import AloeError
from aloe_core.robot import explain
from aloe_critic.critic import CriticConfig
from aloe_critic.methods.aloe import Aloe, AloeConfig
from aloe_critic.methods.awr import Awr, AwrConfig
from aloe_critic.methods.base import CriticBatch, Method, SampleFacts
from aloe_critic.methods.imitation import FilteredBC, HGDagger
from aloe_critic.methods.ota import Ota, OtaConfig
from aloe_critic.methods.pessorl import Pessorl, PessorlConfig
from aloe_critic.methods.recap import Recap, RecapConfig
from aloe_critic.methods.vlearn import Vlearn, VlearnConfig

__all__ = ["METHODS", "CriticBatch", "Method", "SampleFacts", "make_method"]

PRESETS: dict[str, dict[str, Any]] = {  # relatives of ALOE that are options of it
    "aloe": {},
    "iql": {"bootstrap": "expectile"},
    "bee": {"bootstrap": "blend"},
    "uwac": {"td_weight": "exp"},
    "state_td": {"action_level": False},  # the paper's ablation: without action-level evaluation
    "monte_carlo_q": {"bootstrap": "monte_carlo"},  # without off-policy bootstrapping
}
METHODS = (*PRESETS, "pessorl", "ota", "vlearn", "awr", "recap", "filtered_bc", "hg_dagger")


def make_method(
    name: str,
    critic: CriticConfig,
    options: Mapping[str, Any] | None = None,
    return_range: tuple[float, float] = (-2.0, 0.0),
) -> Method:
    """A method by name; `options` are fields of its configuration.

    Raises:
        AloeError: unknown method or option; the message lists the known ones.
    """
    options = dict(options or {})
    if name in PRESETS:
        return Aloe(critic, _configure(name, AloeConfig, {**PRESETS[name], **options}), return_range)
    if name == "pessorl":
        return Pessorl(critic, _configure(name, PessorlConfig, options), return_range)
    if name == "ota":
        return Ota(critic, _configure(name, OtaConfig, options))
    if name == "vlearn":
        return Vlearn(critic, _configure(name, VlearnConfig, options), return_range)
    if name == "awr":
        return Awr(critic, _configure(name, AwrConfig, options))
    if name == "recap":
        return Recap(critic, _configure(name, RecapConfig, options), return_range)
    if name in ("filtered_bc", "hg_dagger"):
        if options:
            raise AloeError(f"method '{name}' has no options, but was given: {', '.join(options)}")
        return FilteredBC() if name == "filtered_bc" else HGDagger()
    raise AloeError(f"unknown method '{name}'; known: {', '.join(METHODS)}")


def _configure(name: str, config: type, options: dict[str, Any]) -> Any:
    known = {f.name for f in fields(config)}
    if unknown := set(options) - known:
        raise AloeError(f"method '{name}' has no option '{min(unknown)}'; it has: {', '.join(sorted(known))}")
    try:
        return TypeAdapter(config).validate_python(options)
    except ValidationError as error:
        raise AloeError(f"method '{name}', option {explain(error)}") from None
