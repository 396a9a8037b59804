"""What to say to a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UnknownName(Exception):
    """There is no protocol, strategy, ... of this name; the message suggests one."""

    def __init__(self, kind: str, name: str, suggestion: str | None):
        hint = f"did you mean {suggestion!r}?" if suggestion else "'python -m benchmarks list' shows all"
        super().__init__(f"no {kind} is called {name!r}; {hint}")


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name most like a misspelt one, or None if none is near."""
    return next(iter(get_close_matches(name, names, n=1)), None)
