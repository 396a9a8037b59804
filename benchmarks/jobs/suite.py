"""Many runs: which are still owed, and where they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from engrams.benchmarks.data.names import settled
from engrams.benchmarks.jobs import sizes
from engrams.benchmarks.jobs.claims import Claimed, claim
from engrams.benchmarks.jobs.limits import forecast, gpu_memory
from engrams.benchmarks.jobs.outcomes import failed
from engrams.benchmarks.jobs.place import Place, ProcessError, Report
from engrams.benchmarks.jobs.processes import Here, start_server
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.revisions import present
from engrams.benchmarks.runs import Run
from engrams.reports import provenance, store
from engrams.reports.errors import UserError
from engrams.reports.files import remove_leftovers, set_aside
from engrams.reports.settings import differing, first_difference
from engrams.reports.store import Record, RecordError
from engrams.reports.wandb.sending import sending
from engrams.reports.wandb.settings import WandBMode, WandBSettings


class SuiteError(UserError):
    """The runs cannot be done as asked; the message is one line that says why and what to do."""


def run_all(
    runs: Sequence[Run],
    out: Path,
    wandb: WandBSettings,
    place: Place,
    display: Display,
    stream_from_disk: bool = False,
) -> list[Record]:
    """Does the runs that have no complete record yet, several at once, and return all records in the order of ``runs``.

    A record that is damaged, or another run's, is kept beside the one that takes its place. What another command is
    doing in the same folder is waited for, and not done again.

    Args:
        runs: what to do.
        out: folder of the records.
        wandb: where W&B keeps the runs. They are sent beside the work; what became of them is the display's to say.
        place: where the runs are done.
        display: told what is going on.
        stream_from_disk: read images when they are needed, not all before; see :func:`execute`.

    Raises:
        SuiteError: a complete record in ``out`` is of other settings, or ``out`` cannot be written to.
        PlaceError: the place does not take the runs.
        ProtocolError: the classes cannot be split as a protocol says, or a strategy cannot learn so many experiences.
        DataError: data are missing or broken.
        store.NewerRecord: a record is of a later Engrams.
    """
    done = _done_already(runs, out, display)
    owed = [run for run in runs if run not in done]
    if owed and isinstance(place, Here):
        start_server()
    check_startable(owed, out, stream_from_disk)
    for line in provenance.remarks(done.values(), present()):
        display.say(line)
    expected = forecast(owed, out, place.workers) if isinstance(place, Here) else None  # of this machine alone
    if owed and expected:
        for line in (expected.line(), *expected.too_much(out)):
            display.say(line)
    begun: set[Run] = set()
    with (
        sending(wandb, out, display, lambda run: run.folder(out), display.advanced, bool(owed)) as (mode, sender),
        display.showing(len(runs), len(done), expected),
    ):

        def advanced(run: Run, epochs: int) -> None:
            begun.add(run)
            sender.advanced(run, epochs)

        try:
            for waits in (False, True):
                claimed = []
                work = partial(_work, out=out, wandb_mode=mode, stream_from_disk=stream_from_disk, waits=waits)
                # Closed, so that what is under way has kept its checkpoint before it is counted.
                with closing(place.do(owed, work, advanced)) as outcomes:
                    for run, outcome in outcomes:
                        if outcome is None:
                            claimed.append(run)
                            continue
                        record = done[run] = outcome if isinstance(outcome, Record) else _of_a_death(run, out, outcome)
                        if run in begun:  # else another command did it, which sends it too
                            sender.over(run)
                        if record.complete:
                            said = f"ACC {100 * record.acc:.2f} ({record.seconds:.1f} s)"
                            display.finished(run, said, record.seconds)
                        else:
                            display.failed(run, f"FAILED: {record.reason}")
                if not (owed := claimed):
                    break
                display.say(f"{len(owed)} of these runs are being done by another command; waiting for it")
        except (KeyboardInterrupt, SystemExit):
            if not place.outlives:
                _say_what_goes_on(begun - done.keys(), out, display)
            elif mode != "disabled":
                display.say(f"W&B: 'engrams upload {out}' sends the runs that end while nobody waits for them")
            raise
    return [done[run] for run in runs]


@settled()
def _done_already(runs: Iterable[Run], out: Path, display: Display) -> dict[Run, Record]:
    done: dict[Run, Record] = {}
    for run in runs:
        try:
            record = finished(run, out)
        except store.NewerRecord:
            raise
        except RecordError as error:
            display.say(f"not believed: {error}")
            continue
        if record is not None:
            done[run] = record
    return done


def _say_what_goes_on(under_way: Iterable[Run], out: Path, display: Display) -> None:
    left = [run for run in under_way if not _has_ended(run, out)]  # one may have in this moment
    kept = [(run.folder(out) / store.CHECKPOINT).exists() for run in left]
    if kept:
        display.say(f"under way: {kept.count(True)} to go on from a checkpoint, {kept.count(False)} to begin again")


def _has_ended(run: Run, out: Path) -> bool:
    try:
        return finished(run, out) is not None
    except (RecordError, SuiteError):
        return False


def _of_a_death(run: Run, out: Path, cause: ProcessError) -> Record:
    """Writes and returns the record of a run that took its process with it, and so could write none itself."""
    record = failed(run, None, str(cause))
    with suppress(OSError):
        store.write(record, run.folder(out))
    return record


def check_startable(runs: Sequence[Run], out: Path, stream_from_disk: bool = False) -> None:
    """Raises an error for what would stop every run, once and before any process starts.

    Raises:
        SuiteError: ``out`` cannot be written to; or as :func:`check_each`.
        ProtocolError: as :func:`check_each`.
        DataError: data are missing or broken.
    """
    sizes.check(dict.fromkeys(run.data for run in runs), stream_from_disk)
    check_each(runs, stream_from_disk)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SuiteError(f"the records cannot be written to {out}: {error}") from error


@settled()
def check_each(runs: Iterable[Run], stream_from_disk: bool = False) -> None:
    """Raises an error for what would stop a run, as far as it is known without reading all data or writing anything.

    Raises:
        SuiteError: a strategy cannot leave its images on disk.
        ProtocolError, DataError: as :meth:`engrams.benchmarks.runs.Run.check`.
    """
    for run in runs:
        run.check()
        if stream_from_disk and run.strategy.needs_images:
            raise SuiteError(
                f"{run.strategy.name} learns to make images and needs an experience's in memory; leave it out or run "
                f"it without --stream-from-disk"
            )


def finished(run: Run, out: Path) -> Record | None:
    """Returns the run's complete record in ``out``, None if it is still owed.

    Raises:
        SuiteError: it is of other settings.
        store.RecordError: it cannot be read, or is not to be believed.
    """
    path = run.folder(out) / store.RECORD
    if not path.exists():
        return None
    record = store.read(path)
    if not record.complete:
        return None
    wanted, was, looked = run.deciding(), *_looked_at(run, record)
    before, now = {**record.hyperparameters, "judging": was}, {**wanted, "judging": looked}
    if differing(before, now):
        difference = first_difference(before, now)
        if difference.startswith("code was "):  # a digest of the strategy's own file, which tells nobody anything
            difference = f"{run.strategy.reference.rpartition(':')[0]} has changed since"
        raise SuiteError(
            f"{path} was made with other settings ({difference}); keep it and choose another --out, or delete its "
            f"folder to run again"
        )
    return record


def _looked_at(run: Run, record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns how a complete record was judged while it learned, and how it would be now, as far as that is asked for.

    What the whole stream at once or a mixture of old and new samples leaves undefined is in neither.
    """
    judging = run.protocol.judging
    was: dict[str, Any] = {}
    now: dict[str, Any] = {}
    if judging is None or run.strategy.whole_stream_at_once:
        return was, now
    if judging.every:
        curve = record.anytime
        was = {"every": curve and curve.every, "samples": curve and curve.samples}
        now = {"every": judging.every, "samples": judging.samples}
    if judging.prequential and "prequential" not in record.undefined:
        was["window"], now["window"] = record.prequential and record.prequential.window, judging.window
    return was, now


def _work(
    run: Run, report: Report, out: Path, wandb_mode: WandBMode, stream_from_disk: bool, waits: bool
) -> Record | None:
    """Does a run in a process of its own; None if another command is doing it, unless this one ``waits``."""
    from engrams.benchmarks.jobs import gpu  # here, as the next: whoever hands out work reads no torch
    from engrams.benchmarks.jobs.execute import execute, usual_device

    folder, device = run.folder(out), usual_device()
    try:
        with claim(folder, waits):
            try:
                if (record := finished(run, out)) is not None:  # by another command, meanwhile
                    return record
            except RecordError:
                set_aside(folder / store.RECORD)
            remove_leftovers(folder)
            report(0)
            with gpu.room(device, partial(gpu_memory, run, out)):
                return execute(run, out, device, wandb_mode, report, stream_from_disk)
    except Claimed:
        return None
    except OSError as error:
        return failed(run, device, f"{folder} cannot be written to: {error}")
