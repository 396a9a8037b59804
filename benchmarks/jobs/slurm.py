"""A SLURM queue, through submitit: one array task a run.

What was submitted is known to the queue alone: a submission has a name of its own, which its jobs bear, and a folder
below the records with the list of its runs. So a command may end at any moment and be given again: it finds its runs in
the queue and submits those that are in none.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrams.benchmarks.jobs import hashes
from engrams.benchmarks.jobs.claims import claim
from engrams.benchmarks.jobs.elsewhere import Errand, epochs_told
from engrams.benchmarks.jobs.place import PlaceError, ProcessError, Report
from engrams.reports import files, store
from engrams.reports.store import Record, RecordError

if TYPE_CHECKING:
    from engrams.benchmarks.runs import Run

FOLDER = "slurm"
"""Below the folder of the records: the submissions, with the jobs' output."""
PREFIX = "engrams-"
RUNS = "runs.json"
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
"""SLURM's states of jobs that are no more; one that is put back is pending again."""
AT_ONCE = 1000
"""Tasks of an array; SLURM's own limit, unless a site has another, is 1001."""
MINUTES = 240
"""That a job may take, unless ``--time`` says otherwise."""
TURNS = 20
"""How often a run whose time is over is put back, to go on from its checkpoint."""
PAUSES = (1.0, 15.0)
"""Seconds between two looks at the queue: while things happen, and while nothing does."""
SAYS_EVERY = 60.0
UNSEEN = 60.0
"""Seconds that the record of a job that has ended well may take to be seen here, over a network."""
AWAY = 5.0
"""Seconds after which a job that waited, and is in the queue no more, was taken out of it: SLURM remembers nothing of a
task that was cancelled before it began."""
GONE = "GONE"
PATIENCE = 60.0
"""Seconds that the queue may take to answer."""


@dataclass(frozen=True)
class QueuedJob:
    """One array task."""

    id: str
    state: str
    node: str

    @property
    def over(self) -> bool:
        return self.state in ENDED or self.state == GONE

    @property
    def runs(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING")

    @property
    def waits(self) -> bool:
        return not self.over and not self.runs


class NoAnswer(Exception):
    """The queue does not say what is in it; the message is one line."""


def queue(out: Path) -> dict[Path, QueuedJob]:
    """Returns the folder of every run that was submitted for some records and is known to SLURM -> its latest job.

    Args:
        out: folder of the records.

    Raises:
        NoAnswer: there is no SLURM here, or it does not answer.
    """
    submitted = {path.parent.name: path for path in (out / FOLDER).glob(f"{PREFIX}*/{RUNS}")}
    if not submitted:
        return {}
    command = ["squeue", "--states=all", "--array", "--noheader", "--format=%j|%F|%K|%T|%N"]
    try:
        asked = subprocess.run(
            [*command, f"--name={','.join(submitted)}"], capture_output=True, text=True, timeout=PATIENCE
        )
    except FileNotFoundError as error:
        raise NoAnswer("squeue is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswer("squeue does not answer") from error
    if asked.returncode:
        raise NoAnswer(_first_line(asked.stderr) or f"squeue ended with status {asked.returncode}")
    found: dict[Path, QueuedJob] = {}
    lists = {name: _runs_of(path) for name, path in submitted.items()}
    for line in sorted(asked.stdout.splitlines(), key=lambda line: int(line.split("|")[1])):  # a later job last
        name, number, task, state, node = line.split("|")
        is_task = task.isdecimal()
        runs = lists.get(name, [])
        if (place := int(task) if is_task else 0) < len(runs):
            found[out / runs[place]] = QueuedJob(f"{number}_{task}" if is_task else number, state, node)
    return found


def _runs_of(path: Path) -> list[str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError):  # just removed by another command
        return []


def check() -> None:
    """Says what a queue needs that is not here.

    Raises:
        PlaceError: something is missing.
    """
    if find_spec("submitit") is None:
        raise PlaceError("--on slurm needs submitit: pip install 'engrams[slurm]'")
    if missing := [name for name in ("sbatch", "squeue", "srun") if not shutil.which(name)]:
        raise PlaceError(f"--on slurm: {missing[0]} is not on PATH; give the command on a machine that submits jobs")


def parameters(
    partition: str | None, time: str | None, gpus: float | None, workers: int | None, ask: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what submitit is told of the jobs.

    Args:
        partition, time: as ``sbatch`` has them.
        gpus: of a run.
        workers: runs at once.
        ask: parameters of submitit, or options of ``sbatch`` that it does not know.

    Raises:
        PlaceError: one says what cannot be.
    """
    from submitit.slurm.slurm import SlurmExecutor

    if gpus is not None and gpus != int(gpus):
        raise PlaceError(f"--gpus {gpus:g}: SLURM gives a run whole GPUs")
    chosen: dict[str, Any] = {"time": minutes_of(time) if time else MINUTES, "cpus_per_task": 1}
    chosen |= {"partition": partition} if partition else {}
    chosen |= {"gpus_per_node": int(gpus)} if gpus else {}
    chosen |= {"array_parallelism": workers} if workers else {}
    others: dict[str, Any] = {"requeue": True}  # where a site's default is to drop what was preempted
    for key, value in ask.items():
        name = key.replace("-", "_")
        if name in ("job_name", "array", "output", "error", "time", "partition"):
            own = "has an option of its own" if name in ("time", "partition") else "is Engrams' to say"
            raise PlaceError(f"--ask {key}: this {own}")
        if name in SlurmExecutor._valid_parameters():
            chosen[name] = value
        else:
            others[key.replace("_", "-")] = value
    return {**chosen, "additional_parameters": others}


def minutes_of(time: str) -> int:
    """Returns the minutes of a time as ``sbatch`` has it, rounded up.

    Args:
        time: ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``, ``days-hours:minutes`` or
            ``days-hours:minutes:seconds``.

    Raises:
        PlaceError: it is none of these, or no time at all.
    """
    if re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", time):
        days, dash, rest = time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if not dash and len(parts) < 3:
            parts = [0, *parts]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        if total := ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds:
            return -(-total // 60)
    raise PlaceError(f"--time {time}: write it as sbatch has it: 90 (minutes), 1:30:00 or 1-12:00:00 (with days)")


class _Task(Errand):
    def __call__(self) -> Any:
        from engrams.benchmarks.training import stopping

        stopping.on_sigterm()  # the queue's warning before it ends a job, which submitit passes over
        return super().__call__()

    def checkpoint(self) -> Any:
        """Is called when a job's time is over: it is put back and does the same, which goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Slurm:
    """The queue, for the runs of one folder of records, which all its machines share."""

    out: Path
    say: Callable[[str], None]
    """Prints a line."""
    parameters: Mapping[str, Any] = field(default_factory=lambda: parameters(None, None, None, None, {}))
    """Of the jobs, for submitit."""
    outlives = True

    def do(
        self, jobs: Iterable[Run], work: Callable[[Run, Report], Any], advanced: Callable[[Run, int], None]
    ) -> Generator[tuple[Run, Record | ProcessError], None, None]:
        runs = {run.folder(self.out): run for run in jobs}
        if not runs:
            return
        last = self._submit(runs, work)
        told: dict[Path, int] = {}
        ended: dict[Path, float] = {}
        said, pause, before = time.monotonic(), PAUSES[0], ""
        try:
            while runs:
                time.sleep(pause)
                try:
                    there = queue(self.out)
                except NoAnswer as error:  # the controller is started again, say: jobs go on without it
                    now = f"SLURM does not answer ({error}); waiting for it"
                else:
                    gone = {f: replace(job, state=GONE) for f, job in last.items() if job.waits or job.state == GONE}
                    last = gone | there
                    now = _summary(last[folder] for folder in runs if folder in last)
                    for folder, run in list(runs.items()):
                        job = last.get(folder)
                        if job and job.runs and (epochs := epochs_told(folder)) is not None:
                            self._advance(run, told.get(folder), epochs, advanced)
                            told[folder] = epochs
                        outcome = self._outcome(run, folder, job, ended)
                        if outcome is not None:
                            self._advance(run, told.get(folder), 0, advanced)
                            del runs[folder]
                            pause = 0.0
                            yield run, outcome
                if runs and now != before and (not before or time.monotonic() - said > SAYS_EVERY):
                    said, before = time.monotonic(), now
                    self.say(now)
                pause = min(max(PAUSES[0], 1.2 * pause), PAUSES[1])
        except BaseException:
            self._say_what_stays(job for folder, job in last.items() if folder in runs and not job.over)
            raise

    @staticmethod
    def _advance(run: Run, before: int | None, epochs: int, advanced: Callable[[Run, int], None]) -> None:
        if before is None:
            advanced(run, 0)
        if epochs > (before or 0):
            advanced(run, epochs)

    def _submit(self, runs: Mapping[Path, Run], work: Callable[[Run, Report], Any]) -> dict[Path, QueuedJob]:
        """Submits the runs that are in no queue, and returns what was in it before."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor

        with claim(self.out / FOLDER, wait=True):  # two commands at once submit no run twice
            try:
                there = queue(self.out)
            except NoAnswer as error:
                raise PlaceError(f"SLURM does not answer: {error}") from error
            self._clean(there)
            owed = [folder for folder in runs if folder not in there or there[folder].over]
            if queued := len(runs) - len(owed):
                self.say(f"SLURM: {_runs(queued)} in the queue already")
            for first in range(0, len(owed), AT_ONCE):
                part = owed[first : first + AT_ONCE]
                submission = self.out / FOLDER / f"{PREFIX}{uuid.uuid4().hex[:8]}"
                submission.mkdir()
                files.write_json(
                    submission / RUNS, {"runs": [folder.relative_to(self.out).as_posix() for folder in part]}
                )
                tasks = [_Task(work, runs[folder], folder.absolute()) for folder in part]
                try:
                    executor = SlurmExecutor(submission, max_num_timeout=TURNS)
                    executor.update_parameters(job_name=submission.name, **self.parameters)
                    with redirect_stderr(io.StringIO()), hashes.the_same():  # submitit prints what it raises, too
                        submitted = executor.submit_array(tasks)
                except (FailedJobError, FailedSubmissionError) as error:
                    shutil.rmtree(submission)
                    raise PlaceError(f"SLURM does not take the runs: {_reason(error)}") from error
                number = submitted[0].job_id.partition("_")[0]
                self.say(
                    f"SLURM: {_runs(len(part))} in the queue as job {number}. Ctrl-C leaves them there; "
                    f"'engrams status {self.out}' shows them, 'scancel {number}' takes them out"
                )
        return {folder: job for folder, job in there.items() if not job.over}

    def _outcome(
        self, run: Run, folder: Path, job: QueuedJob | None, ended: dict[Path, float]
    ) -> Record | ProcessError | None:
        """The run's record, or why there will be none; None while there may be one yet."""
        from engrams.benchmarks.jobs.suite import finished

        over = job is None or job.over
        well = job is None or job.state == "COMPLETED"
        patience = UNSEEN if well else AWAY if job and job.state == GONE else 0.0
        if not over:
            ended.pop(folder, None)
        try:
            if over and well and (folder / store.RECORD).exists():
                record = store.read(folder / store.RECORD)
                return record if not record.complete else finished(run, self.out)
            if (complete := finished(run, self.out)) is not None:
                return complete
        except RecordError:  # not whole yet, seen over a network
            pass
        if not over or time.monotonic() - ended.setdefault(folder, time.monotonic()) < patience:
            return None
        if job is None:
            return ProcessError("its job left the queue without a record; the same command submits it again")
        if job.state == GONE:
            return ProcessError(f"its job {job.id} was taken out of the queue; the same command submits it again")
        output = next((self.out / FOLDER).glob(f"{PREFIX}*/{job.id}_0_log.err"), None)
        seen = f" (see {output})" if output else ""
        return ProcessError(f"its job {job.id} ended as {job.state}{seen}; the same command submits it again")

    def _clean(self, there: Mapping[Path, QueuedJob]) -> None:
        """Removes the submissions that are over, but for the output of what has no complete record."""
        for path in (self.out / FOLDER).glob(f"{PREFIX}*/{RUNS}"):
            folders = [self.out / name for name in _runs_of(path)]
            if any(folder in there and not there[folder].over for folder in folders):
                continue
            if all(map(_is_complete, folders)):
                shutil.rmtree(path.parent, ignore_errors=True)

    def _say_what_stays(self, jobs: Iterable[QueuedJob]) -> None:
        numbers = Counter(job.id.partition("_")[0] for job in jobs)
        if numbers:
            self.say(
                f"SLURM: {_runs(sum(numbers.values()))} in the queue still; 'engrams status {self.out}' shows them, "
                f"'scancel {' '.join(numbers)}' takes them out, the same command waits for them again"
            )


def _is_complete(folder: Path) -> bool:
    try:
        return store.read(folder / store.RECORD).complete
    except RecordError:
        return False


def _summary(jobs: Iterable[QueuedJob]) -> str:
    states = Counter("waiting" if job.waits else "running" for job in jobs if not job.over)
    return f"SLURM: {states['running']} running, {states['waiting']} waiting"


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _reason(error: Exception) -> str:
    """sbatch's own word among submitit's; where it has none, its exit status."""
    found = re.findall(r"sbatch: (?:error: )?(.+)", str(error))
    said = "; ".join(dict.fromkeys(found)) or _first_line(str(error))
    if not said and isinstance(error.__cause__, subprocess.CalledProcessError):
        said = f"sbatch ended with status {error.__cause__.returncode} and says nothing"
    return said
