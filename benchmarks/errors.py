"""What to say to a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from engrams.reports.errors import UserError


class UnknownName(UserError):
    """There is no protocol, strategy, ... of this name; the message suggests the nearest of those there are."""

    def __init__(self, kind: str, name: str, names: Iterable[str]):
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "'engrams list' shows all"
        super().__init__(f"no {kind} is called {name!r}; {hint}")
