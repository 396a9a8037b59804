"""Many runs: which are still owed, and where they run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Thread
from typing import Any

import joblib
import torch

from benchmarks import datasets
from benchmarks.progress import Display
from benchmarks.run import Run, execute
from reports import store
from reports.store import Record
from reports.wandb_logger import WandBMode


class SuiteError(Exception):
    """The runs cannot be done as asked; the message is one line that says why and what to do."""


def run_all(
    runs: Sequence[Run],
    out: Path,
    wandb_mode: WandBMode,
    workers: int | None,
    display: Display,
    stream_from_disk: bool = False,
) -> list[Record]:
    """Do the runs that have no complete record yet, several at once, and return all records in the order of ``runs``.

    Each run has a process and one thread: with small networks two runs side by side are faster than one on two cores,
    and the result does not depend on how many there are. On a GPU the processes share it.

    Args:
        runs: what to do.
        out: folder of the records.
        wandb_mode: where W&B keeps the runs.
        workers: runs at once; None for as many as there are cores.
        display: told what is going on.
        stream_from_disk: read images when they are needed, not all before; see :func:`benchmarks.run.execute`.

    Raises:
        SuiteError: a complete record in ``out`` is of other settings, ``out`` cannot be written to, or a process was
            killed.
        ProtocolError: the classes cannot be split as a protocol says.
        datasets.DataError: data are missing or broken.
        store.RecordError: a record cannot be read.
    """
    done = {run: record for run in runs if (record := _finished(run, out)) is not None}
    owed = [run for run in runs if run not in done]
    for name in {run.protocol.dataset for run in owed}:
        datasets.load(
            name, stream_from_disk
        )  # before any process starts: a download happens once, a missing file is said once
    for run in owed:
        _ = run.experiences  # likewise, classes that cannot be split
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SuiteError(f"the records cannot be written to {out}: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = min(workers or joblib.cpu_count(), max(1, len(owed)))
    with display.showing(len(runs), len(done)):
        for run, record in _in_processes(owed, out, device, wandb_mode, workers, display, stream_from_disk):
            done[run] = record
    return [done[run] for run in runs]


def _finished(run: Run, out: Path) -> Record | None:
    path = run.folder(out) / store.RECORD
    if not path.exists():
        return None
    record = store.read(path)
    if not record.complete:
        return None
    if record.hyperparameters != run.deciding():
        raise SuiteError(
            f"{path} was made with other settings ({_first_difference(record.hyperparameters, run.deciding())}); "
            f"keep it and choose another --out, or delete its folder to run again"
        )
    return record


def _first_difference(old: dict, new: dict, key: str = "") -> str:
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict):
                return _first_difference(before, now, f"{key}{name}.")
            return f"{key}{name} was {before}, is now {now}"
    return "none"


def _in_processes(owed, out, device, wandb_mode, workers, display, stream_from_disk):
    if not owed:
        return
    # Never fork a process that has run torch's thread pool or touched the GPU: a server without either forks instead.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["benchmarks.run"])
    events = context.Queue()
    listener = Thread(target=_listen, args=(events, owed, display), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(events,))
    try:
        futures = {
            pool.submit(_work, index, run, out, device, wandb_mode, stream_from_disk): run
            for index, run in enumerate(owed)
        }
        for future in as_completed(futures):
            run = futures[future]
            try:
                record = future.result()
            except BrokenProcessPool as error:
                raise SuiteError(
                    f"a process was killed while {run.name} ran (out of memory?); what is finished is in {out}, "
                    f"run the same command again, perhaps with --workers 1"
                ) from error
            except OSError as error:
                raise SuiteError(f"the record of {run.name} cannot be written: {error}") from error
            display.finished(run, record)
            yield run, record
    except BaseException as error:
        for process in multiprocessing.active_children():  # runs that nobody waits for any more must not go on
            process.terminate()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            display.console.print("interrupted: finished runs are kept, the same command goes on from there")
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        events.put(None)
        listener.join()


def _listen(events, owed: Sequence[Run], display: Display) -> None:
    while (event := events.get()) is not None:
        index, epochs = event
        display.advanced(owed[index], epochs)


_events: Any = None
"""The worker's queue of (index of the run, epochs done)."""


def _start_worker(events) -> None:
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism on a GPU asks for


def _work(index: int, run: Run, out: Path, device: str, wandb_mode: WandBMode, stream_from_disk: bool) -> Record:
    _events.put((index, 0))
    try:
        return execute(run, out, device, wandb_mode, lambda epochs: _events.put((index, epochs)), stream_from_disk)
    finally:
        # Avalanche's streams and strategies refer to each other in circles: gigabytes that a process of many runs
        # would otherwise gather until Python happens to look.
        gc.collect()
