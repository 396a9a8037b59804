"""What arguments must be: each of these raises a ValueError of one line that names the first one that is not."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, get_args


def at_least_one(**settings: int | None) -> None:
    """Refuses what is no whole number (1.0 and True are none), or below 1; None stands for no value."""
    for name, value in settings.items():
        if value is None:
            continue
        try:
            whole = not isinstance(value, bool) and operator.index(value)
        except TypeError:
            whole = False
        if whole is False:
            raise ValueError(f"{name} must be a whole number; got {value!r}")
        if whole < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


def finite(**settings: float) -> None:
    """Refuses what is no number, not a number (NaN), or infinite."""
    for name, value in settings.items():
        try:
            number = math.isfinite(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
            number = False
        if not number:
            raise ValueError(f"{name} must be a finite number; got {value!r}")


def not_negative(**settings: float) -> None:
    """Refuses what is below 0, or no finite number."""
    finite(**settings)
    for name, value in settings.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0; got {value}")


def one_of(choices: Any, **settings: str) -> None:
    """Refuses what is none of a ``Literal``'s values, or of some names."""
    allowed: Iterable[str] = get_args(choices) or tuple(choices)
    for name, value in settings.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
