"""What is kept in memory of data; what was kept of a user's own is dropped when they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache, update_wrapper
from typing import Concatenate, Generic, ParamSpec, TypeVar

from engrams.benchmarks.data.names import DataError, features_fingerprint, fingerprint, is_own

P = ParamSpec("P")
R = TypeVar("R")


_forgotten: Counter[str] = Counter()
"""Data set -> how often :func:`forget` was told of it."""


def forget(dataset: str) -> None:
    """Drops all that is kept of a function's data: what it reads may have changed, which no fingerprint shows."""
    _forgotten[dataset] += 1


def version(dataset: str) -> str | None:
    """Returns what tells data from others that had the same name before; None for those that come with Engrams.

    A notebook, or a long command, outlives a file that is mended.
    """
    try:
        if not is_own(dataset):
            return features_fingerprint(dataset)
        return f"{fingerprint(dataset)} {_forgotten[dataset]}"
    except DataError:
        return None  # whoever reads them says what is wrong


class Kept(Generic[P, R]):
    """Calls a function of a data set's name (or a benchmark's), and keeps its last answers."""

    def __init__(self, function: Callable[Concatenate[str, P], R], maxsize: int):
        def of_version(version: str | None, dataset: str, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(dataset, *args, **kwargs)

        self._found = lru_cache(maxsize)(of_version)
        update_wrapper(self, function)

    def __call__(self, dataset: str, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._found(version(dataset), dataset, *args, **kwargs)  # type: ignore[arg-type]  # all are hashable

    def cache_clear(self) -> None:
        self._found.cache_clear()


def kept(maxsize: int) -> Callable[[Callable[Concatenate[str, P], R]], Kept[P, R]]:
    """Returns a decorator that keeps so many answers, as ``lru_cache`` does."""

    def keep(function: Callable[Concatenate[str, P], R]) -> Kept[P, R]:
        return Kept(function, maxsize)

    return keep
