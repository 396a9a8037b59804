"""What arguments must be: each of these raises a ValueError of one line that names the first one that is not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args


def at_least_one(**settings: int | None) -> None:
    """Refuses what is below 1; None stands for no value."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


def not_negative(**settings: float) -> None:
    """Refuses what is below 0, or not a number."""
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0; got {value}")


def one_of(choices: Any, **settings: str) -> None:
    """Refuses what is none of a ``Literal``'s values, or of some names."""
    allowed: Iterable[str] = get_args(choices) or tuple(choices)
    for name, value in settings.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
