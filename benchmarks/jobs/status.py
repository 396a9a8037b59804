"""What is done, goes on, waits and has failed, from what lies in a folder of records and what is in the queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engrams.benchmarks.jobs import slurm
from engrams.benchmarks.jobs.claims import CLAIM, is_claimed
from engrams.benchmarks.jobs.elsewhere import epochs_told
from engrams.reports import store
from engrams.reports.files import found_below
from engrams.reports.store import RecordError

STATES = ("done", "running", "waiting", "failed", "stopped")


@dataclass(frozen=True)
class Seen:
    """A run, as far as it can be seen from outside."""

    folder: Path
    """Below that of the records."""
    state: str
    """One of :data:`STATES`; ``stopped`` is one that nobody does; it goes on from its checkpoint if there is one."""
    said: str = ""
    """Of one that goes on, where and how far it is; of one that failed, why."""


def look(out: Path, damaged: list[RecordError]) -> tuple[list[Seen], str]:
    """Returns the runs that left something in a folder of records or are in a queue, and why the queue is not seen.

    Args:
        out: the folder.
        damaged: gets why a record is not believed.

    Raises:
        RecordError: there is no such folder.
    """
    if not out.is_dir():
        raise RecordError(f"there is no folder {out}; 'engrams run' makes one")
    unseen = ""
    try:
        queued = slurm.queue(out)
    except slurm.NoAnswer as error:
        queued, unseen = {}, str(error)
    marked = (path.parent for name in (CLAIM, store.CHECKPOINT) for path in found_below(out, name))
    folders = {path.parent for path in store.paths_below(out)} | {one for one in marked if one.name.isdecimal()}
    folders |= {folder for folder, job in queued.items() if not job.over}
    return list(_seen(out, sorted(folders), queued, damaged)), unseen


def _seen(
    out: Path, folders: list[Path], queued: dict[Path, slurm.QueuedJob], damaged: list[RecordError]
) -> Iterator[Seen]:
    for folder in folders:
        claimed = is_claimed(folder)  # before the record is read: a run that ends meanwhile leaves one
        record = None
        if (path := folder / store.RECORD).exists():
            try:
                record = store.read(path)
            except RecordError as error:
                damaged.append(error)
        job = queued.get(folder)
        below = folder.relative_to(out)
        if record and record.complete:
            yield Seen(below, "done")
        elif claimed or (job and job.runs):
            epochs = epochs_told(folder)
            told = [] if epochs is None else [f"{epochs} epochs"]
            yield Seen(below, "running", ", ".join([*told, *([f"job {job.id} on {job.node}"] if job else [])]))
        elif job and job.waits:
            yield Seen(below, "waiting")
        elif record:
            yield Seen(below, "failed", record.reason or "")
        elif (folder / store.CHECKPOINT).exists():
            yield Seen(below, "stopped")
        elif not path.exists():
            yield Seen(below, "stopped", "without a checkpoint: it begins again")
