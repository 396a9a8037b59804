"""What is wrong with a protocol, in one line."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from engrams.reports.errors import UserError


class ProtocolError(UserError):
    """A protocol file says something that cannot be; the message is one line naming the file and the line or key."""


MISSING = "missing"


class Problem(NamedTuple):
    """What is wrong with which settings, by dotted keys; without a key it is about several together."""

    keys: list[str]
    what: str

    def __str__(self) -> str:
        return ": ".join(filter(None, [", ".join(self.keys), self.what]))


def problem_of(error: ValidationError, kinds: Collection[str]) -> Problem:
    """Returns one problem that pydantic found: what is wrong and which value was given.

    What is missing comes last, and all of it at once: ``key.key, key.key: missing``.

    Args:
        error: what pydantic raised.
        kinds: the values of ``kind``: pydantic names the chosen one between the keys; it is no key of the file.
    """
    problems = error.errors()
    wrong = next((problem for problem in problems if problem["type"] != "missing"), None)
    if wrong is None:
        return Problem([_key(problem, kinds) for problem in problems], MISSING)
    keys = list(filter(None, [_key(wrong, kinds)]))
    if wrong["type"] == "extra_forbidden":
        return Problem(keys, "unknown key")
    message = wrong["msg"].removeprefix("Value error, ")
    if not keys or isinstance(wrong["input"], dict):  # a file, a table: nobody wants to read all of it
        return Problem(keys, message)
    return Problem(keys, f"{message} (got {wrong['input']!r})")


def _key(problem: ErrorDetails, kinds: Collection[str]) -> str:
    """Returns the dotted key that a problem is about, without the kinds between; empty if it is about several."""
    return ".".join(str(key) for key in problem["loc"] if key not in kinds)
