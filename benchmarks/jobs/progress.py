"""What is seen while runs go on: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from threading import Lock
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from engrams.benchmarks.jobs.limits import Forecast
    from engrams.benchmarks.runs import Run

SECONDS_BETWEEN_LINES = 30
"""Without a terminal: a run that takes long says that often where it is."""


SECONDS_BETWEEN_WAITS = 5


class _Left(TimeRemainingColumn):
    """The time that is left: of all runs the forecast's, of one run by the epochs that it has done."""

    def render(self, task: Task) -> Text:
        left = forecast.left() if (forecast := task.fields.get("forecast")) else None
        return super().render(task) if left is None else Text(duration(left), style="progress.remaining")


def duration(seconds: float) -> str:
    """Returns a time as it is spoken: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 100:
        return f"{ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Display:
    """One bar for all runs and one for each that is going on; a line for each that has ended."""

    def __init__(self, console: Console):
        self.console = console
        self._bars: dict[Run, TaskID] = {}
        self._told: dict[Run, float] = {}
        self._over: set[Run] = set()
        self._total = self._ended = 0
        self._forecast: Forecast | None = None
        self._lock = Lock()  # a run may end in one thread while another is told how far it is
        self._afterwards: list[str] = []
        self._said_left = 0.0

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def remember(self, text: str) -> None:
        """Keeps a line for :meth:`say_afterwards`."""
        self._afterwards.append(text)

    def say_afterwards(self) -> None:
        """Prints the lines that are the last to be read, once."""
        for text in self._afterwards:
            self.say(text)
        self._afterwards = []

    def left_to_send(self, runs: int) -> None:
        """Says now and then how many runs are still on their way to W&B."""
        if time.monotonic() - self._said_left > SECONDS_BETWEEN_WAITS:
            self._said_left = time.monotonic()
            self.say(f"W&B: {runs} run{'s' if runs > 1 else ''} on the way")

    @contextmanager
    def showing(self, total: int, already_done: int, forecast: Forecast | None = None) -> Iterator[None]:
        """Show the progress of ``total`` runs while the block lasts, and the time that is left by a forecast."""
        self._total, self._ended = total, already_done
        self._forecast = forecast
        if already_done:
            self.console.print(f"{already_done} of {total} runs have a complete record already", highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            _Left(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._overall = self._progress.add_task(
            "all runs", total=total, completed=already_done, unit="runs", forecast=forecast
        )
        try:
            with self._progress:
                yield
        except (KeyboardInterrupt, SystemExit):
            self.console.print("interrupted: what is finished is kept, the same command goes on from there")
            raise

    def advanced(self, run: Run, epochs: int) -> None:
        """A run has begun (0 epochs) or has done so many."""
        with self._lock:
            if run not in self._over:  # else told late, by another process
                self._advanced(run, epochs)

    def _advanced(self, run: Run, epochs: int) -> None:
        if self._forecast:
            self._forecast.advanced(run, epochs)
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(run.name, total=run.upper_limit_of_epochs, unit="epochs")
            self._told[run] = time.monotonic()
        per_experience = run.epochs
        parts = max(1, run.upper_limit_of_epochs // per_experience)
        text = f"{run.name}, experience {min(epochs // per_experience + 1, parts)} of {parts}"
        self._progress.update(self._bars[run], completed=epochs, description=text)
        if not self.console.is_terminal and time.monotonic() - self._told[run] > SECONDS_BETWEEN_LINES:
            self._told[run] = time.monotonic()
            self.console.print(f"    {text}, {epochs} of {run.upper_limit_of_epochs} epochs", highlight=False)

    def finished(self, run: Run, outcome: str, seconds: float | None = None) -> None:
        """A run has ended well; what it took is how long others will."""
        self._ended_with(run, outcome, None, seconds)

    def failed(self, run: Run, reason: str) -> None:
        """A run has ended without a result."""
        self._ended_with(run, reason, "red", None)

    def _ended_with(self, run: Run, outcome: str, style: str | None, seconds: float | None) -> None:
        with self._lock:
            self._ended += 1
            if self._forecast:
                self._forecast.ended(run, seconds)
            self._over.add(run)
            if run in self._bars:
                self._progress.remove_task(self._bars.pop(run))
            self._progress.update(self._overall, completed=self._ended)
        text = f"[{self._ended}/{self._total}] {run.name}: {outcome}"
        if self._forecast and not self.console.is_terminal and (left := self._forecast.left()):
            text += f", about {duration(left)} left"
        self.console.print(text, highlight=False, markup=False, style=style, soft_wrap=True)
