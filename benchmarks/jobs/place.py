"""Where jobs are done: in processes here (``processes.py``), in a queue (``slurm.py``), on a cluster (``ray.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from engrams.reports.errors import UserError

Report = Callable[[int], None]
"""Told the number of epochs done, as they are done; 0 when the job has begun."""


class Job(Protocol):
    @property
    def name(self) -> str: ...


J = TypeVar("J", bound=Job)


class PlaceError(UserError):
    """Nothing can be done in the place that was chosen; the message is one line that says what to do."""


class ProcessError(UserError):
    """A job has no result, since what did it is no more; the message is one line that says what is known."""


class Place(Protocol):
    """Where jobs are done, all in the same way: what comes out does not depend on it."""

    @property
    def outlives(self) -> bool:
        """Whether jobs go on when whoever waits for them stops."""
        ...

    def do(
        self, jobs: Iterable[J], work: Callable[[J, Report], Any], advanced: Callable[[J, int], None]
    ) -> Iterator[tuple[J, Any]]:
        """Yields (job, what its work returned or a :class:`ProcessError`), as they end.

        Args:
            jobs: what to do.
            work: done there; importable there.
            advanced: told here what the work reports: the epochs done, first 0.

        Raises:
            PlaceError: the place does not take the jobs.
        """
        ...
