"""YAML as others write it: whatever the text is, there comes a value or a sentence out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from aloe_core.errors import AloeError

VALUES = 1_000_000  # in one document, references expanded: a page of nested references stands for billions
# What PyYAML's constructors let through besides its own errors: '!!int ""', '!!bool x', 2020-13-45, thousands of brackets.
FAULTS = (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


def parse_yaml(text: str, where: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of a document; `where` names it.

    Raises:
        AloeError: it is not YAML, not safe, or stands for more than `VALUES` values.
    """
    try:
        reader = loader(text)
        reader.name = where
        value = reader.get_single_data()
    except FAULTS as error:
        raise AloeError(f"{where}: not a readable YAML file: {' '.join(str(error).split())}") from None
    left, values = [value], 0
    while left:
        item = left.pop()
        values += 1
        if values > VALUES:
            raise AloeError(f"{where}: its references stand for more than {VALUES} values")
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, (list, tuple, set)):
            left += item
    return value


def read_yaml(file: Path) -> Any:
    """The value in a file.

    Raises:
        AloeError: the file cannot be read, or see `parse_yaml`.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise AloeError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise AloeError(f"{file}: not a readable YAML file: {error}") from None
    return parse_yaml(text, str(file))
