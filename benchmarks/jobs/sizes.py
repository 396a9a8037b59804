"""Data, before anything is learned from them: whether they are here and whole, and how many classes they have.

Reading data takes torch, which takes seconds and half a gigabyte: a process that has not read it asks one that has.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from engrams.benchmarks.data.names import CLASSES
from engrams.benchmarks.jobs.processes import has_torch, where_torch_is


class Data(NamedTuple):
    """What a run reads."""

    name: str
    """Of a data set, or of the function that makes a benchmark."""
    arguments: str | None = None
    """Of that function, as JSON; None for a data set."""
    tasks: bool = False
    """Whether every experience of a benchmark must have a task label of its own."""


_asked: dict[Data, int] = {}


def of(data: Data) -> int:
    """Returns how many classes a data set has, or how many experiences a benchmark; Engrams' own are not read for it.

    Raises:
        DataError, ProtocolError: as :func:`engrams.benchmarks.data.datasets.class_count` and
            :func:`engrams.benchmarks.data.own_benchmarks.experience_count`.
    """
    if _is_known(data):
        return CLASSES[data.name]
    if has_torch():
        return _size(data)
    if data not in _asked:
        _asked[data] = where_torch_is(_size, data)
    return _asked[data]


def check(several: Collection[Data], from_disk: bool) -> None:
    """Says what is wrong with data, and downloads what is missing, once.

    Args:
        several: to be looked at.
        from_disk: whether images will be read when they are needed.

    Raises:
        DataError, ProtocolError: data are missing or broken; a benchmark cannot be made.
    """
    if several := [data for data in several if data.name != "digits"]:  # they come with scikit-learn
        _asked.update(where_torch_is(_checked, several, from_disk))


def _checked(several: Collection[Data], from_disk: bool) -> dict[Data, int]:
    from engrams.benchmarks.data import datasets, own_benchmarks

    for data in several:
        if data.arguments is None:
            datasets.check(data.name, from_disk)
        else:
            own_benchmarks.check_repeatable(data.name, data.arguments)
    return {data: _size(data) for data in several if not _is_known(data)}


def _is_known(data: Data) -> bool:
    return data.arguments is None and data.name in CLASSES


def _size(data: Data) -> int:
    if data.arguments is None:
        from engrams.benchmarks.data import datasets

        return datasets.class_count(data.name)
    from engrams.benchmarks.data.own_benchmarks import experience_count

    return experience_count(data.name, data.arguments, data.tasks)
