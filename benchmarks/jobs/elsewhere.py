"""A run in a process on another machine: it is told what this one knows, and answers through the folder they share."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrams.benchmarks.data.names import OFFLINE
from engrams.reports.files import TEMPORARY

if TYPE_CHECKING:
    from engrams.benchmarks.jobs.place import Report
    from engrams.benchmarks.runs import Run

TOLD = f".epochs{TEMPORARY}"
"""In a run's folder while it goes on: how many epochs have been done."""
TELLS_EVERY = 5.0
"""Seconds, at least."""
WAITS = 5.0
"""Seconds between two looks whether a run that another process does is over."""


def _ours() -> dict[str, str]:
    """Nothing is downloaded there: what is missing was named before the first run."""
    return {name: value for name, value in os.environ.items() if name.startswith("ENGRAMS_")} | {OFFLINE: "1"}


@dataclass(frozen=True)
class Errand:
    """A run's work, to be done where nothing is prepared for it."""

    work: Callable[[Run, Report], Any]
    run: Run
    folder: Path
    """Of the run."""
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    working_folder: str = field(default_factory=os.getcwd)
    variables: dict[str, str] = field(default_factory=_ours)

    def __call__(self) -> Any:
        os.environ.update(self.variables)
        os.chdir(self.working_folder)
        sys.argv = list(self.command)  # which the run's page in W&B has
        from engrams.benchmarks.jobs.processes import prepare

        prepare()
        try:
            while (outcome := self.work(self.run, _Teller(self.folder))) is None:
                time.sleep(WAITS)  # a process that has just died may hold the claim for a while, over a network
        finally:
            with suppress(OSError):
                (self.folder / TOLD).unlink(missing_ok=True)
        return outcome


class _Teller:
    """Writes down how many epochs have been done, now and then."""

    def __init__(self, folder: Path):
        self.path, self.again = folder / TOLD, 0.0

    def __call__(self, epochs: int) -> None:
        if time.monotonic() >= self.again:
            self.again = time.monotonic() + TELLS_EVERY
            with suppress(OSError):
                self.path.write_text(str(epochs))


def epochs_told(folder: Path) -> int | None:
    """Returns how many epochs a run that goes on has done when it last said so; None if it does not go on."""
    try:
        return int((folder / TOLD).read_text())
    except (OSError, ValueError):
        return None
