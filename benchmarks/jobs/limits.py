"""What runs will take, said before they begin and while they go on: time, memory and room on disk.

All of it is from records: those of the folder that the runs write to, else those that come with the repository. What
has no record is learned as the runs go on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from heapq import nlargest
from itertools import islice
from math import ceil
from pathlib import Path
from statistics import mean, median

import psutil

from engrams import reports
from engrams.benchmarks.jobs.progress import duration
from engrams.benchmarks.runs import Run
from engrams.reports import store
from engrams.reports.store import Record, RecordError

COMMITTED = Path(reports.__path__[0]) / "results" / "records"
ENOUGH = 5
"""Records of one strategy under one protocol that are read."""
OTHERS = 4
"""Times more memory of a GPU that a strategy may hold than others under its protocol: a generator, a buffer."""


@dataclass
class Forecast:
    """What some runs will take; what is None is not known."""

    runs: Sequence[Run]
    workers: int
    seconds: dict[Run, float]
    """Of those runs that there are records of."""
    guessed: dict[Run, float]
    """Of others: as long as those of other strategies under their protocol took."""
    memory: int | None
    """Bytes that as many of the runs take at once as there are workers, the largest."""
    disk: int
    """Bytes that the runs leave."""
    _pace: list[float] = field(default_factory=list)
    """Of those that have ended: by how much longer they took than expected."""
    _begun: dict[Run, tuple[float, int]] = field(default_factory=dict)
    _ended: set[Run] = field(default_factory=set)

    def advanced(self, run: Run, epochs: int) -> None:
        """A run has begun (0 epochs) or has done so many."""
        began, _ = self._begun.get(run, (time.monotonic(), 0))
        self._begun[run] = began, epochs

    def ended(self, run: Run, seconds: float | None) -> None:
        """A run is over, and took so many seconds; None if it failed, which says nothing of the others."""
        self._ended.add(run)
        if seconds is None:
            return
        if run in self.seconds:
            self._pace.append(seconds / max(self.seconds[run], 0.01))
        else:  # its other seeds will take as long
            self.seconds |= {one: seconds for one in self.runs if _kind(one) == _kind(run) and one not in self.seconds}

    def left(self) -> float | None:
        """Returns in how many seconds all runs will have ended; None while that is not known of any.

        One that nothing is known of is taken for the mean of the others.
        """
        found = {run: self._left_of(run) for run in self.runs if run not in self._ended}
        known = [seconds for seconds in found.values() if seconds is not None]
        if not found or not (known or self.guessed):
            return None if found else 0.0
        usual = mean(known or self.guessed.values())
        filled = [self.guessed.get(run, usual) if seconds is None else seconds for run, seconds in found.items()]
        return max(max(filled), sum(filled) / min(self.workers, len(filled)))

    def _left_of(self, run: Run) -> float | None:
        began, epochs = self._begun.get(run, (None, 0))
        gone = 0.0 if began is None else time.monotonic() - began
        if epochs:
            return gone / epochs * max(0, run.upper_limit_of_epochs - epochs)
        if run not in self.seconds:
            return None
        return max(0.0, self.seconds[run] * (median(self._pace) if self._pace else 1.0) - gone)

    def line(self) -> str:
        """Returns in one line what the runs will take."""
        parts = [f"to do: {len(self.runs)} run{'s' * (len(self.runs) != 1)}"]
        if (left := self.left()) is None:
            parts.append("for how long no record says")
        else:
            without = sum(run not in self.seconds for run in self.runs)
            parts.append(f"about {duration(left)} with {self.workers} at once")
            parts[-1] += f" ({without} of them guessed: no record is like them)" if without else ""
        if self.memory is not None:
            parts.append(f"{self.memory / 2**30:.1f} GiB of memory")
        if self.disk:
            parts.append(f"{ceil(self.disk / 2**20)} MiB of disk")
        return ", ".join(parts)

    def too_much(self, out: Path) -> list[str]:
        """Returns a line for everything that this machine has not enough of.

        Args:
            out: folder of the records, there or not yet.
        """
        lines = []
        free = psutil.virtual_memory().available
        if self.memory is not None and self.memory > free:
            lines.append(
                f"memory: {self.workers} runs at once take up to {self.memory / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free; fewer at once (--workers) or --stream-from-disk take less"
            )
        with suppress(OSError):
            there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
            room = shutil.disk_usage(there).free
            if self.disk > room:
                lines.append(
                    f"disk: the runs leave about {ceil(self.disk / 2**20)} MiB, and {out} has room for "
                    f"{room // 2**20}; make room, or choose another --out"
                )
        return lines


def forecast(runs: Sequence[Run], out: Path, workers: int | None) -> Forecast:
    """Returns what runs will take, as far as records say.

    Args:
        runs: that are to be done.
        out: folder of the records.
        workers: runs at once; None for one a core.
    """
    import joblib

    workers = min(workers or joblib.cpu_count(), max(1, len(runs)))
    like = {key: _like(*key, (out, COMMITTED)) for key in {_kind(run) for run in runs}}
    others = cache(lambda protocol: next(filter(None, (_others(protocol, root) for root in (out, COMMITTED))), []))
    seconds: dict[Run, float] = {}
    guessed: dict[Run, float] = {}
    memory: list[int] = []
    disk = 0.0
    for run in runs:
        if records := like[_kind(run)]:
            seconds[run] = _seconds(run, records)
            disk += median(size for _, size in records)
            memory += [max(peaks)] if (peaks := [peak for record, _ in records if (peak := _peak(record))]) else []
        elif records := others(run.protocol.name):
            guessed[run] = _seconds(run, records)
    return Forecast(runs, workers, seconds, guessed, sum(nlargest(workers, memory)) or None, int(disk))


def gpu_memory(run: Run, out: Path) -> int | None:
    """Returns the most bytes that runs like one have held on a GPU, as records say.

    They are those of a folder, else those that come with the repository. Where none is of the run's strategy: so many
    times (:data:`OTHERS`) the most that others held under its protocol, lest the first run of each has half of the GPU
    to itself.

    Returns:
        Bytes; None if no record says it.
    """
    for root in (out, COMMITTED):
        if own := _gpu_peaks(_like(*_kind(run), (root,))):
            return max(own)
        if others := _gpu_peaks(islice(_complete(store.paths_below(root / run.protocol.name)), ENOUGH)):
            return OTHERS * max(others)
    return None


def _gpu_peaks(records: Iterable[tuple[Record, int]]) -> list[int]:
    return [peak for record, _ in records if (peak := _peak(record, on_gpu=True))]


def _kind(run: Run) -> tuple[str, str, str]:
    """What runs have in common that differ in nothing but their seed."""
    return run.protocol.name, run.strategy.name, run.variant


def _like(protocol: str, strategy: str, variant: str, roots: Iterable[Path]) -> list[tuple[Record, int]]:
    """A few complete records and the bytes of their folders; of other settings where there are none of these."""
    for root in roots:
        same, any_settings = (store.folder_of(root, protocol, strategy, 0, these).parent for these in (variant, ""))
        for paths in (same.glob(f"*/{store.RECORD}"), store.paths_below(any_settings)):
            if found := list(islice(_complete(sorted(paths)), ENOUGH)):
                return found
    return []


def _others(protocol: str, root: Path) -> list[tuple[Record, int]]:
    """A few complete records of each strategy under a protocol, and the bytes of their folders."""
    return [one for folder in (root / protocol).glob("*/") for one in _like(protocol, folder.name, "", (root,))]


def _complete(paths: Iterable[Path]) -> Iterator[tuple[Record, int]]:
    for path in paths:
        with suppress(RecordError, OSError):
            if (record := store.read(path)).complete:
                yield record, sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())


def _seconds(run: Run, records: list[tuple[Record, int]]) -> float:
    return median(record.seconds * _share(run, record) for record, _ in records)


def _share(run: Run, record: Record) -> float:
    """How much more a run does than the one of a record: epochs, steps on a minibatch, and experiences."""
    training = record.hyperparameters.get("training")
    more = run.experiences / len(record.accuracy_matrix[0])
    if isinstance(training, dict):
        for key in ("epochs", "iterations_per_batch"):
            before = training.get(key, 1)
            more *= getattr(run.protocol.training, key) / (before if isinstance(before, int) and before > 0 else 1)
    return more


def _peak(record: Record, on_gpu: bool = False) -> int | None:
    """The most memory that a run held, of a GPU or of a process without one, if its record says it."""
    asked = (record.environment.get("device") != "cpu") == on_gpu
    return record.costs.peak_memory if record.costs and asked else None
