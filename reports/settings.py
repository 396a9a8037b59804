"""What decided a run, as a record and its row's name have it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import reduce
from typing import Any


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Returns nested settings as dotted key -> text, in their order."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        elif value is not None:
            found[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


FOLDER = re.compile(r"\s*\(([^()]*)\)$")
"""At the end of a variant's name: which of several folders its record is of."""


def folder_named(variant: str) -> str:
    """Returns the name of the folder that a variant's record is of, where there are several; else ''."""
    found = FOLDER.search(variant)
    return found[1] if found else ""


def set_by_hand(variant: str, decided: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (key, value) of every setting that a variant names; a folder's name in parentheses is none of them.

    Args:
        variant: of a record.
        decided: its hyperparameters, which tell where a text ends that has ``,key=`` in it.
    """
    rest = FOLDER.sub("", variant)
    found = []
    while rest:
        key, _, rest = rest.partition("=")
        value = str(recorded(decided, key))
        if not f"{rest},".startswith(f"{value},"):  # a path is named without its folders, 1 may be 1.0
            value = re.split(r",(?=[\w.-]+=)", rest, maxsplit=1)[0]
        found.append((key, value))
        rest = rest[len(value) + 1 :]
    return found


def recorded(decided: Mapping[str, Any], key: str) -> Any:
    """Returns the value that a record's hyperparameters have under a dotted key; None where they have none."""
    for holder in (decided.get("strategy", {}), decided):
        try:
            return reduce(lambda part, name: part[name], key.split("."), holder)
        except (KeyError, TypeError):
            continue
    return None


DATA = "dataset_fingerprint"
"""What data are made of. Records of features from before it was kept lack it, and so does a machine without them."""


def differing(one: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> tuple[str, Any, Any] | None:
    """Returns the dotted key of the first setting that differs, and its two values; None if none does.

    What is missing is None. A fingerprint of the data that is missing is unknown, and may be any.
    """
    for key in sorted(one.keys() | other.keys()):
        first, second = one.get(key), other.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            if found := differing(first, second, f"{before}{key}."):
                return found
        elif first != second and not (key == DATA and None in (first, second)):
            return f"{before}{key}", first, second
    return None


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns ``key.key was OLD, is now NEW`` of the first setting that differs."""
    found = differing(old, new)
    return "{} was {}, is now {}".format(*found) if found else "none"
