"""`ImproveConfig` from a YAML file and from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aloe_core.errors import AloeError
from aloe_core.robot import explain
from aloe_core.yaml_file import parse_yaml, read_yaml
from aloe_critic.critic import CriticConfig, small
from aloe_critic.improvement import ImproveConfig
from aloe_critic.methods import make_method


def load_config(file: Path) -> ImproveConfig:
    """Reads and checks a configuration.

    Raises:
        AloeError: unreadable, an unknown key or a bad value; the message names file and key.
    """
    data = read_yaml(file)
    if not isinstance(data, dict):
        raise AloeError(f"{file}: a configuration is a mapping of keys, this file is a {type(data).__name__}")
    try:
        config = TypeAdapter(ImproveConfig).validate_python(data)
    except ValidationError as error:
        raise AloeError(f"{file}: {explain(error)}") from None
    try:
        return check(config)
    except AloeError as error:
        raise AloeError(f"{file}: {error}") from None


def overridden(
    config: ImproveConfig,
    *,
    method: str | None = None,
    protocol: Any = None,
    options: Sequence[str] = (),
    **learner: int | None,
) -> ImproveConfig:
    """The configuration with what is not None replaced; `options` are texts `key=value` for the method.

    Raises:
        AloeError: an option that is not `key=value`, or that the method does not have.
    """
    if method is not None and method != config.method:
        config = replace(config, method=method, options={})
    given = dict(config.options)
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise AloeError(f"option '{text}' is not key=value")
        given[key] = parse_yaml(value, f"option '{text}'")
    changed = {key: value for key, value in learner.items() if value is not None}
    config = replace(config, options=given, learner=replace(config.learner, **changed))  # type: ignore[arg-type]
    return check(config if protocol is None else replace(config, protocol=protocol))


def check(config: ImproveConfig) -> ImproveConfig:
    """Whether the method, its options and the critic's settings exist and have values that can be used.

    Raises:
        AloeError: they do not; the message names them.
    """
    known = {field.name for field in fields(CriticConfig)}
    if unknown := set(config.critic) - known:
        raise AloeError(f"critic has no setting '{min(unknown)}'; it has: {', '.join(sorted(known))}")
    inputs = {"state_dim": 1, "action_dim": 1, "horizon": 0}
    try:
        TypeAdapter(CriticConfig).validate_python({**asdict(small(**inputs)), **config.critic})
    except ValidationError as error:
        raise AloeError(f"critic: {explain(error)}") from None
    make_method(config.method, replace(small(**inputs), horizon=1, steps_per_token=1, width=8), config.options)
    return config
