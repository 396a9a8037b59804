"""Jobs in several processes at once, drawn one by one as a process gets free."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import forkserver
from threading import Thread
from typing import Any, Protocol, TypeVar

from engrams.reports.errors import UserError


class Job(Protocol):
    @property
    def name(self) -> str: ...


J = TypeVar("J", bound=Job)
R = TypeVar("R")
Report = Callable[[int], None]
"""Told the number of epochs done, as they are done."""


# Never fork a process that has run torch's thread pool or touched the GPU: a server without either forks instead.
_context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


def start_server() -> None:
    """Start the server that processes are forked from, which reads torch and Avalanche: that takes seconds.

    :func:`in_processes` does it too; called before, the server reads while this process does something else.
    """
    if os.name != "posix":
        return
    _context.set_forkserver_preload(["engrams.benchmarks.jobs.execute"])
    # The server inherits this. An interrupt is this process's to answer: reading, it would end in a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


class ProcessError(UserError):
    """A process was killed or could not write; the message is one line that says what to do."""


def in_processes(
    jobs: Iterable[J], work: Callable[[J, Report], R], workers: int | None, advanced: Callable[[J, int], None]
) -> Iterator[tuple[J, R]]:
    """(job, what its work returned), as they end; each job has a process and one thread.

    With small networks two runs side by side are faster than one on two cores, and the result does not depend on how
    many there are. On a GPU the processes share it.

    Args:
        jobs: what to do. The next one is drawn when a process is free and the caller has taken in what ended, so that
            it may depend on that.
        work: done in the process; must be importable there.
        workers: jobs at once; None for one a core.
        advanced: told in this process of a job that has begun (0) or has done so many epochs.

    Raises:
        ProcessError: a process was killed, or could not write its files.
    """
    import joblib  # here, as torch below: the command line reads this file before it knows what it needs

    start_server()
    remaining = iter(jobs)
    started: list[J] = []
    pending: dict[Future, J] = {}
    events = _context.Queue()
    listener = Thread(target=_listen, args=(events, started, advanced), daemon=True)
    workers = workers or joblib.cpu_count()
    pool = ProcessPoolExecutor(workers, _context, _start_worker, (events,))

    def submit(count: int) -> None:
        for job in islice(remaining, count):
            started.append(job)
            pending[pool.submit(_work, len(started) - 1, job, work)] = job

    listener.start()
    try:
        submit(workers)
        while pending:
            ended, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in ended:
                job = pending.pop(future)
                yield job, _result(future, job)
                submit(1)
    except BaseException:
        for process in multiprocessing.active_children():  # jobs that nobody waits for any more must not go on
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        events.put(None)
        listener.join()


def _result(future: Future, job: Job) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ProcessError(
            f"a process was killed while {job.name} ran (out of memory?); what is finished is kept, run the same "
            f"command again, perhaps with --workers 1"
        ) from error
    except OSError as error:
        raise ProcessError(f"the files of {job.name} cannot be written: {error}") from error


def _listen(events, started: list, advanced: Callable[[Any, int], None]) -> None:
    while (event := events.get()) is not None:
        index, epochs = event
        advanced(started[index], epochs)


_events: Any = None
"""The worker's queue of (index of the job, epochs done)."""


def _start_worker(events) -> None:
    import torch

    global _events
    _events = events
    gc.freeze()  # what the server has read stays: not to be looked through after each job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism on a GPU asks for


def _end_with_parent() -> None:
    """A parent that is killed outright cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(index: int, job: Any, work: Callable[[Any, Report], Any]) -> Any:
    _events.put((index, 0))
    try:
        return work(job, lambda epochs: _events.put((index, epochs)))
    finally:
        # Avalanche's streams and strategies refer to each other in circles: gigabytes that a process of many runs
        # would otherwise gather until Python happens to look.
        gc.collect()
