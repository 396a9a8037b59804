"""Nested tables, and the dotted keys of what is in them: ``training.epochs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def set_below(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Sets ``values[keys[0]][keys[1]]...``; tables on the way that are missing, or are none, are made."""
    *tables, last = keys
    for key in tables:
        inner = values.get(key)
        values[key] = dict(inner) if isinstance(inner, Mapping) else {}  # a copy: the file's own stays as it is
        values = values[key]
    values[last] = value


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flattened(value).items()}
        else:
            flat[key] = value
    return flat
