"""Jobs in several processes at once, drawn one by one as a process gets free."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import Any, Protocol, TypeVar

import psutil

from engrams.benchmarks.jobs import hashes
from engrams.benchmarks.jobs.place import ProcessError, Report
from engrams.benchmarks.training import stopping
from engrams.reports.errors import UserError


class Job(Protocol):
    @property
    def name(self) -> str: ...


J = TypeVar("J", bound=Job)
R = TypeVar("R")
SECONDS_TO_END = 30
"""That a process has to end by itself when there is nothing more to do."""
HEARD_HERE = {signal.SIGINT, signal.SIGTERM}
"""Signals that the server of processes leaves to this one."""


# Never fork a process that has run torch's thread pool or touched the GPU: a server without either forks instead.
_context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
_started = False
"""Whether there is that server."""
_variables: set[str] = set()
"""Names that the environment has had whenever the server was asked for: all that it may have been started with."""


def start_server() -> None:
    """Starts the server that processes are forked from, which reads torch and Avalanche: that takes seconds.

    :func:`in_processes` does it too; called before, the server reads while this process does something else.

    Raises:
        UserError: Avalanche could not be read.
    """
    global _started
    _check_avalanches_folder()
    if os.name != "posix":
        return
    _context.set_forkserver_preload(["engrams.benchmarks.jobs.execute"])
    with _heard_here(), hashes.the_same():
        forkserver.ensure_running()
    _started = True
    _variables.update(os.environ)


@contextmanager
def _heard_here() -> Iterator[None]:
    """A process that is started in the block inherits that it hears neither an interrupt nor a queue's warning.

    They are this process's to answer: the other would end in a traceback where it still reads, and where the server has
    ended, nobody can wait for workers that are keeping a checkpoint. They are put off here, not ignored: one that comes
    in this moment is answered in the next.
    """
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # the other would start it, and that ends the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD_HERE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_avalanches_folder() -> None:
    """Avalanche writes its settings below HOME when it is read, and ends in a traceback where it cannot."""
    folder = Path("~/.avalanche").expanduser()
    if (folder / "config.json").exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"Avalanche keeps its settings in {folder}, which cannot be written: {error}; set HOME"
        ) from error


def _environment() -> dict[str, str | None]:
    """Returns what a worker's environment has to be: a fork has the server's, of when that was started.

    None stands for what has been taken out since. What the server's libraries have set, and the seed of its hashes, are
    left as they are. So is what they read once, which is fixed when the server starts: how many threads torch takes (a
    job takes one, see :func:`prepare`), where Avalanche's settings are.
    """
    return dict.fromkeys(_variables) | dict(os.environ)


def has_torch() -> bool:
    """Returns whether this process has read torch."""
    return "torch" in sys.modules


def where_torch_is(function: Callable[..., R], *arguments: Any) -> R:
    """Returns what a function returns that needs torch: called here if this process has read it, else in another.

    That is one of the server's, where there is one, else one that is started for it, and ends.

    Args:
        function: importable without torch, which it imports itself.
        arguments: of the function.

    Raises:
        ProcessError: the other process has died.
        UserError: Avalanche could not be read there; or what the function raises.
    """
    if has_torch():
        return function(*arguments)
    _check_avalanches_folder()
    if _started:
        worker = _Worker(_answer)
    else:
        with _heard_here():
            worker = _Worker(_answer, multiprocessing.get_context("spawn"))
    try:
        worker.connection.send((function, arguments))
        message = worker.connection.recv()
    except (EOFError, OSError) as error:
        worker.process.join()
        raise ProcessError(f"the process that looks at the data died: {_cause(worker.process.exitcode)}") from error
    finally:
        worker.process.kill()  # it keeps nothing
        worker.process.join()
        worker.connection.close()
    if isinstance(message, _Raised):
        raise message.error from message.cause
    return message.result


def _answer(question: tuple[Callable[..., R], tuple[Any, ...]], report: Report) -> R:
    function, arguments = question
    return function(*arguments)


@dataclass(frozen=True)
class Here:
    """This machine; see :func:`in_processes`."""

    workers: int | None = None
    """Jobs at once; None for one a core."""
    outlives = False

    def do(
        self, jobs: Iterable[J], work: Callable[[J, Report], R], advanced: Callable[[J, int], None]
    ) -> Generator[tuple[J, R | ProcessError], None, None]:
        return in_processes(jobs, work, self.workers, advanced)


def in_processes(
    jobs: Iterable[J], work: Callable[[J, Report], R], workers: int | None, advanced: Callable[[J, int], None]
) -> Generator[tuple[J, R | ProcessError], None, None]:
    """Yields (job, what its work returned), as they end; each job has a process and one thread.

    With small networks two runs side by side are faster than one on two cores, and the result does not depend on how
    many there are. On a GPU the processes share it.

    A process that dies (killed, out of memory, a crash in native code) takes one attempt of one job with it. The job is
    tried once more, with no other beside it; if its process dies again, its outcome is a :class:`ProcessError` that
    says what is known.

    Args:
        jobs: what to do. The next one is drawn when a process is free and the caller has taken in what ended, so that
            it may depend on that.
        work: done in the process; must be importable there. It is handed what to tell of its progress.
        workers: jobs at once; None for one a core.
        advanced: told in this process what the work tells of its progress.

    Raises:
        ProcessError: a process could not write its files.
    """
    import joblib  # here, as torch below: the command line reads this file before it knows what it needs

    crew = _Crew(iter(jobs), work, workers or joblib.cpu_count())
    try:
        crew.draw()
        while crew.busy:
            for worker in crew.heard():
                job = worker.job
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):  # whole messages only: what it was about to say died with it
                    if (outcome := crew.lost(worker)) is not None:
                        yield job, outcome
                        crew.draw()
                    continue
                if isinstance(message, _Progress):
                    worker.most_memory = max(worker.most_memory, message.memory)
                    advanced(job, message.epochs)
                else:
                    crew.free(worker)
                    yield job, message.value(job)
                    crew.draw()
    except BaseException as error:
        if crew.busy and isinstance(error, KeyboardInterrupt | SystemExit):
            print("ending: every run finishes its step and keeps a checkpoint; once more ends at once", file=sys.stderr)
        crew.terminate()  # jobs that nobody waits for any more must not go on
        raise
    finally:
        crew.dismiss()


# --- in this process --------------------------------------------------------------------------------------------------


class _Worker:
    """A process that does one job after another, or one that ``has_own_code`` and no other.

    It has a pipe of its own: of a queue that all share, one that is killed while it holds the lock would silence all.
    """

    def __init__(self, work: Callable[[Any, Report], Any], context: Any = _context):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, _environment()), daemon=False)
        self.process.start()
        theirs.close()
        self.job: Any = None
        self.is_last_attempt = False
        self.most_memory = 0


class _Crew:
    """The workers, and the jobs that none of them has yet."""

    def __init__(self, jobs: Iterator[Any], work: Callable[[Any, Report], Any], size: int):
        self.jobs, self.work, self.size = jobs, work, size
        self.idle: list[_Worker] = []
        self.leaving: list[_Worker] = []
        self.busy: list[_Worker] = []
        self.once_more: list[Any] = []

    def draw(self) -> None:
        """Gives jobs to those that are free; a job that killed its process waits until no other runs."""
        if self.once_more:
            if not self.busy:
                self._begin(self.once_more.pop(0), is_last_attempt=True)
        elif not any(worker.is_last_attempt for worker in self.busy):
            for job in islice(self.jobs, self.size - len(self.busy)):
                self._begin(job, is_last_attempt=False)

    def _begin(self, job: Any, is_last_attempt: bool) -> None:
        worker = self.idle.pop() if self.idle else None
        if worker and _has_own_code(job):
            self._let_go(worker)
            worker = None
        if worker is None:
            start_server()
            worker = _Worker(self.work)
        worker.job, worker.is_last_attempt, worker.most_memory = job, is_last_attempt, 0
        self.busy.append(worker)
        with suppress(OSError):  # it died while it was idle, which shows when it is listened to
            worker.connection.send(job)

    def heard(self) -> list[_Worker]:
        """Waits until one of the busy has something to say, or is no more."""
        # A process that it started may hold its end of the pipe open, so an end of the pipe alone is not waited for.
        ready = multiprocessing.connection.wait(
            [end for worker in self.busy for end in (worker.connection, worker.process.sentinel)]
        )
        return [w for w in self.busy if w.connection in ready or w.process.sentinel in ready]

    def free(self, worker: _Worker) -> None:
        """Lets a worker wait for its next job, or end: somebody's own code may have changed what the next one finds."""
        self.busy.remove(worker)
        if _has_own_code(worker.job):
            self._let_go(worker)
        else:
            self.idle.append(worker)

    def _let_go(self, worker: _Worker) -> None:
        worker.connection.close()  # which it takes for the end
        self.leaving = [*(one for one in self.leaving if one.process.is_alive()), worker]

    def lost(self, worker: _Worker) -> ProcessError | None:
        """Returns why the job of a worker that died has no result; None if it is tried once more."""
        self.busy.remove(worker)
        worker.process.join()
        worker.connection.close()
        if not worker.is_last_attempt:
            print(
                f"the process of {worker.job.name} died ({_cause(worker.process.exitcode)}); once more", file=sys.stderr
            )
            self.once_more.append(worker.job)
            self.draw()
            return None
        return ProcessError(
            f"the process of {worker.job.name} died twice, the second time with no other beside it: "
            f"{_cause(worker.process.exitcode)}"
            f", having held {worker.most_memory / 2**30:.1f} GiB of memory"
        )

    def _all(self) -> list[_Worker]:
        return [*self.busy, *self.idle, *self.leaving]

    def terminate(self) -> None:
        for worker in self._all():
            worker.process.terminate()

    def dismiss(self) -> None:
        """Ends all workers; one that holds on is killed, and all are where this process is told to end once more."""
        for worker in (*self.busy, *self.idle):
            worker.connection.close()  # which the idle take for the end
        try:
            for worker in self._all():
                worker.process.join(SECONDS_TO_END)
        finally:
            for worker in self._all():
                worker.process.kill()  # if it is alive still
                worker.process.join()


def _has_own_code(job: Any) -> bool:
    return getattr(job, "has_own_code", False)


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"it left with status {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"it was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


# --- in the worker's process ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Progress:
    epochs: int
    memory: int
    """Bytes that the process holds."""


@dataclass(frozen=True)
class _Returned:
    result: Any

    def value(self, job: Job) -> Any:
        return self.result


@dataclass(frozen=True)
class _Raised:
    error: BaseException
    traceback: str

    def value(self, job: Job) -> Any:
        if isinstance(self.error, OSError):
            raise ProcessError(f"the files of {job.name} cannot be written: {self.error}") from self.error
        raise self.error from self.cause

    @property
    def cause(self) -> Exception:
        """What was going on there."""
        return RuntimeError(f"in a process of its own:\n{self.traceback}")


def _serve(connection, work: Callable[[Any, Report], Any], environment: Mapping[str, str | None]) -> None:
    """Does what comes through the pipe until it ends."""
    _set(environment)  # first: a job's own files and data are read when it comes
    _prepare()
    process = psutil.Process()

    def tell(message: _Progress | _Returned | _Raised) -> None:
        with suppress(OSError):  # nobody listens any more: what goes on keeps its checkpoint, and ends
            connection.send(message)

    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # a file of one's own, which it names, is being written just now
            words = str(error).partition("\n")[0]
            said = f"the run cannot be read there: {type(error).__name__}: {words}; run it again"
            tell(_Returned(ProcessError(said)))
            continue
        tell(_attempt(job, work, lambda epochs: tell(_Progress(epochs, process.memory_info().rss))))
        if stopping.asked():  # the job was done before it could be stopped
            return
        # Avalanche's streams and strategies refer to each other in circles: gigabytes that a process of many runs
        # would otherwise gather until Python happens to look.
        gc.collect()


def _attempt(job: Any, work: Callable[[Any, Report], Any], report: Report) -> _Returned | _Raised:
    try:
        return _Returned(work(job, report))
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it takes more arguments than it keeps, or holds what cannot be sent
            return _Raised(RuntimeError(f"{type(error).__name__}: {error}"), traceback.format_exc())
        return _Raised(error, traceback.format_exc())


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _prepare() -> None:
    gc.freeze()  # what the server has read stays: not to be looked through after each job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    stopping.on_sigterm()
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD_HERE)  # the server's block was inherited
    Thread(target=_end_with_parent, daemon=True).start()
    prepare()


def prepare() -> None:
    """Makes this process one that does jobs, as every place does them: with one thread."""
    import torch

    torch.set_num_threads(1)
    warn_in_one_line()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism on a GPU asks for


def warn_in_one_line() -> None:
    """Says what a strategy or Avalanche warns of without the line of theirs, which says nothing.

    That functions are deprecated which Avalanche 0.6.0 calls itself (replay, GDumb) is not said. No filter can do that:
    at every such call Avalanche puts its own in front of all others (``avalanche/_annotations.py``).
    """
    import avalanche

    from engrams import benchmarks, strategies

    avalanches, ours = str(Path(avalanche.__file__).parent), (benchmarks.__path__[0], strategies.__path__[0])
    show = warnings.showwarning

    def shown(message, category, filename, lineno, file=None, line=None) -> None:
        if not filename.startswith((avalanches, *ours)):
            show(message, category, filename, lineno, file, line)
        elif filename.startswith(ours) or not issubclass(category, DeprecationWarning):
            print(f"{category.__name__}: {message}", file=file or sys.stderr, flush=True)

    warnings.showwarning = shown


def _end_with_parent() -> None:
    """A parent that is killed outright cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
