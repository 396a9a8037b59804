"""What is kept in memory of data; what was kept of a user's own is dropped when they change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from engrams.benchmarks.data.names import DataError, features_fingerprint, fingerprint, is_own

P = ParamSpec("P")
R = TypeVar("R")


_all: list[Kept[Any, Any]] = []


def forget(dataset: str) -> None:
    """Drops all that is kept of a function's data: what it reads may have changed, which no fingerprint shows."""
    for one in _all:
        one.forget(dataset)


def version(dataset: str) -> str | None:
    """Returns what tells data from others that had the same name before; None for those that come with Engrams.

    A notebook, or a long command, outlives a file that is mended.
    """
    try:
        return fingerprint(dataset) if is_own(dataset) else features_fingerprint(dataset)
    except DataError:
        return None  # whoever reads them says what is wrong


class Kept(Generic[P, R]):
    """Calls a function of a data set's name (or a benchmark's), and keeps its last answers."""

    def __init__(self, function: Callable[Concatenate[str, P], R], maxsize: int):
        self._function, self._maxsize = function, maxsize
        self._answers: OrderedDict[tuple[str, Hashable], tuple[str | None, R]] = OrderedDict()
        """Data set and arguments -> the version of the data, and the answer; the one asked for last is the last."""
        update_wrapper(self, function)
        _all.append(self)

    def __call__(self, dataset: str, *args: P.args, **kwargs: P.kwargs) -> R:
        key, present = (dataset, (args, tuple(sorted(kwargs.items())))), version(dataset)
        before, answer = self._answers.pop(key, (None, None))
        if answer is None or before != present:
            answer = None  # two of them may be more than there is memory for
            answer = self._function(dataset, *args, **kwargs)
        self._answers[key] = present, answer
        if len(self._answers) > self._maxsize:
            self._answers.popitem(last=False)
        return answer

    def forget(self, dataset: str) -> None:
        """Drops the answers about one data set."""
        for key in [key for key in self._answers if key[0] == dataset]:
            del self._answers[key]

    def cache_clear(self) -> None:
        """Drops all answers, as those of ``lru_cache`` are dropped."""
        self._answers.clear()


def kept(maxsize: int) -> Callable[[Callable[Concatenate[str, P], R]], Kept[P, R]]:
    """Returns a decorator that keeps so many answers, as ``lru_cache`` does."""

    def keep(function: Callable[Concatenate[str, P], R]) -> Kept[P, R]:
        return Kept(function, maxsize)

    return keep
