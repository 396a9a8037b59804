"""What to say to a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable

from engrams.reports.errors import UserError, near_or


class UnknownName(UserError):
    """There is no protocol, strategy, ... of this name; the message suggests the nearest of those there are."""

    def __init__(self, kind: str, name: str, names: Iterable[str]):
        hint = near_or("'engrams list' shows all", name, names)
        super().__init__(f"no {kind} is called {name!r}; {hint}")
