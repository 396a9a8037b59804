"""Where runs are done: in processes here (``processes.py``), in a queue (``slurm.py``), on a cluster (``ray.py``)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from engrams.reports.errors import UserError

if TYPE_CHECKING:
    from engrams.benchmarks.runs import Run

Report = Callable[[int], None]
"""Told the number of epochs done, as they are done; 0 when the run has begun."""


class PlaceError(UserError):
    """Nothing can be done in the place that was chosen; the message is one line that says what to do."""


class ProcessError(UserError):
    """A job has no result, since what did it is no more; the message is one line that says what is known."""


class Place(Protocol):
    """Where runs are done: what comes out does not depend on it."""

    @property
    def outlives(self) -> bool:
        """Tells whether runs go on when whoever waits for them stops."""
        ...

    def do(
        self, runs: Iterable[Run], work: Callable[[Run, Report], Any], advanced: Callable[[Run, int], None], /
    ) -> Generator[tuple[Run, Any], None, None]:
        """Yields (run, what its work returned or a :class:`ProcessError`), as they end.

        Args:
            runs: what to do.
            work: done there; importable there. It returns None where another process does the run.
            advanced: told here what the work reports: the epochs done, first 0.

        Raises:
            PlaceError: the place does not take the runs.
        """
        ...
