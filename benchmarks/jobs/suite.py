"""Many runs: which are still owed, and where they run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from engrams.benchmarks.data import datasets
from engrams.benchmarks.jobs.execute import execute, usual_device
from engrams.benchmarks.jobs.processes import Report, in_processes
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.training.run import Run
from engrams.reports import store
from engrams.reports.errors import UserError
from engrams.reports.store import Record
from engrams.reports.wandb.sending import sending
from engrams.reports.wandb.settings import WandBMode, WandBSettings


class SuiteError(UserError):
    """The runs cannot be done as asked; the message is one line that says why and what to do."""


def run_all(
    runs: Sequence[Run],
    out: Path,
    wandb: WandBSettings,
    workers: int | None,
    display: Display,
    stream_from_disk: bool = False,
) -> list[Record]:
    """Do the runs that have no complete record yet, several at once, and return all records in the order of ``runs``.

    Args:
        runs: what to do.
        out: folder of the records.
        wandb: where W&B keeps the runs. They are sent beside the work; what became of them is the display's to say.
        workers: runs at once; None for as many as there are cores.
        display: told what is going on.
        stream_from_disk: read images when they are needed, not all before; see :func:`execute`.

    Raises:
        SuiteError: a complete record in ``out`` is of other settings, or ``out`` cannot be written to.
        ProcessError: a process was killed.
        ProtocolError: the classes cannot be split as a protocol says.
        datasets.DataError: data are missing or broken.
        store.RecordError: a record cannot be read.
    """
    done = {run: record for run in runs if (record := finished(run, out)) is not None}
    owed = [run for run in runs if run not in done]
    check_startable(owed, out, stream_from_disk)
    with sending(wandb, out, display, lambda run: run.folder(out), display.advanced, bool(owed)) as (mode, sender):
        work = partial(_work, out=out, device=usual_device(), wandb_mode=mode, stream_from_disk=stream_from_disk)
        with display.showing(len(runs), len(done)):
            for run, record in in_processes(owed, work, workers, sender.advanced):
                done[run] = record
                sender.over(run)
                if record.complete:
                    display.finished(run, f"ACC {100 * record.acc:.2f} ({record.seconds:.1f} s)")
                else:
                    display.failed(run, f"FAILED: {record.reason}")
    return [done[run] for run in runs]


def check_startable(runs: Sequence[Run], out: Path, stream_from_disk: bool = False) -> None:
    """Say what would stop every run, once and before any process starts.

    Raises:
        SuiteError: ``out`` cannot be written to; a strategy cannot leave its images on disk.
        ProtocolError: the classes cannot be split as a protocol says.
        datasets.DataError: data are missing or broken.
    """
    for name in {run.protocol.dataset for run in runs if run.protocol.stream.kind != "benchmark"}:
        datasets.check(name, stream_from_disk)  # a download happens once
    for run in runs:
        _ = run.experiences
        if stream_from_disk and run.strategy.needs_images:
            raise SuiteError(
                f"{run.strategy.name} learns to make images and needs an experience's in memory; leave it out or run "
                f"it without --stream-from-disk"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SuiteError(f"the records cannot be written to {out}: {error}") from error


def finished(run: Run, out: Path) -> Record | None:
    """The run's complete record in ``out``, None if it is still owed.

    Raises:
        SuiteError: it is of other settings.
        store.RecordError: it cannot be read.
    """
    path = run.folder(out) / store.RECORD
    if not path.exists():
        return None
    record = store.read(path)
    if not record.complete:
        return None
    if record.hyperparameters != run.deciding():
        raise SuiteError(
            f"{path} was made with other settings ({first_difference(record.hyperparameters, run.deciding())}); "
            f"keep it and choose another --out, or delete its folder to run again"
        )
    return record


def first_difference(old: dict, new: dict, key: str = "") -> str:
    """``key.key was OLD, is now NEW`` of the first setting that differs."""
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict):
                return first_difference(before, now, f"{key}{name}.")
            return f"{key}{name} was {before}, is now {now}"
    return "none"


def _work(run: Run, report: Report, out: Path, device: str, wandb_mode: WandBMode, stream_from_disk: bool) -> Record:
    return execute(run, out, device, wandb_mode, report, stream_from_disk)
