"""One run, done and recorded."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.names import settled
from engrams.benchmarks.data.streams import classes_of_experiences
from engrams.benchmarks.jobs.outcomes import environment, failed, record_of
from engrams.benchmarks.judging.generation import GenerationObserver
from engrams.benchmarks.judging.observer import GeneratorObserver, classifier_for
from engrams.benchmarks.protocols.schema import SplitStream
from engrams.benchmarks.revisions import revisions_of
from engrams.benchmarks.runs import Run
from engrams.benchmarks.training.checkpoint import Checkpoints
from engrams.benchmarks.training.learn import Learned, learn
from engrams.reports import predictions, store
from engrams.reports.errors import UserError, without_paths
from engrams.reports.matrix import metrics, undefined
from engrams.reports.store import Record
from engrams.reports.wandb import page
from engrams.reports.wandb.journal import Journal
from engrams.reports.wandb.settings import WandBMode

if TYPE_CHECKING:
    from engrams.benchmarks.judging.vectors import VectorObserver

TRACEBACK = "traceback.txt"


@settled()
def execute(
    run: Run,
    out: Path,
    device: str,
    wandb_mode: WandBMode,
    report: Callable[[int], None],
    stream_from_disk: bool = False,
) -> Record:
    """Does one run and writes its record; whatever goes wrong inside is recorded, not raised.

    Args:
        run: what to do.
        out: folder of all records.
        device: torch's name of the device to train on.
        wandb_mode: where W&B keeps the run; a journal is written for whoever sends it, unless it is disabled.
        report: called with the number of epochs done, as they are done.
        stream_from_disk: read images when they are needed, not all before: less memory, more time, the same result.
    """
    folder = run.folder(out)
    ran_on = {**environment(device), "images": "on disk" if stream_from_disk else "in memory"}
    checkpoints = Checkpoints(folder, _identity(run, ran_on))
    kept = checkpoints.read()
    lines = kept["watchers"].get(Journal.__name__, {}).get("lines", 0) if kept else 0
    journal = None if wandb_mode == "disabled" else journal_of(run, folder, ran_on, lines)
    outcome: dict[str, Any]
    learned: Learned | None = None
    goes_on = False
    started = time.perf_counter()
    try:
        (folder / TRACEBACK).unlink(missing_ok=True)  # of an earlier try
        observer = _observer(run, device, out, folder)
        watchers = [watcher for watcher in (observer, journal) if watcher is not None]
        judge = observer.judge if isinstance(observer, GenerationObserver) else None
        started = time.perf_counter()
        learned = learn(run, device, watchers, report, stream_from_disk, judge, checkpoints, kept)
        if files := datasets.files_of(run.protocol.dataset):
            ran_on = {**ran_on, "files": files}
        outcome = {
            "status": "complete",
            "accuracy_matrix": learned.accuracy_matrix,
            "accuracy_at_initialisation": learned.accuracy_at_initialisation,
            "metrics": metrics(learned.accuracy_matrix, learned.accuracy_at_initialisation or None),
            "undefined": {
                **undefined(learned.accuracy_matrix, learned.accuracy_at_initialisation or None),
                **_without_prequential(run, learned),
            },
            "generated": observer.summary() if observer else None,
            "anytime": learned.anytime,
            "prequential": learned.prequential,
            "costs": learned.costs,
            "seconds": learned.seconds,
        }
        if isinstance(observer, GenerationObserver):
            animation = observer.animate()
            if journal and animation:
                journal.animation(animation)
    except UserError as error:  # says all there is to say in one line
        outcome = {"status": "failed", "reason": str(error)}
    except Exception as error:  # a bug in one strategy must not cost the others their runs
        outcome = {"status": "failed", "reason": f"{type(error).__name__}: {error}{_kept(folder)}"}
        goes_on = isinstance(error, OSError | MemoryError | torch.OutOfMemoryError)  # for no fault of the run's
    record = record_of(run, ran_on, {"seconds": time.perf_counter() - started} | outcome)
    try:
        predictions.remove(folder)  # of an earlier try
        if record.complete and learned:
            predictions.write(learned.predictions, folder)
        store.write(record, folder)
        if not goes_on:
            checkpoints.remove()
    except OSError as error:
        if record.complete:  # not another's fault, and not to be shown as done
            record = failed(run, device, f"done, but its record cannot be written: {error}; make room and run it again")
    if journal:
        journal.ended(complete=record.complete, record=record)
    return record


def _without_prequential(run: Run, learned: Learned) -> dict[str, str]:
    """Why there is no prequential accuracy where it was asked for, for the record."""
    judging = run.protocol.judging
    if not (judging and judging.prequential) or learned.prequential:
        return {}
    if run.strategy.whole_stream_at_once:
        return {"prequential": "the whole stream is learned at once"}
    return {"prequential": "old samples, or some that are still to come, are learned among the new ones"}


def _kept(folder: Path) -> str:
    """Writes the traceback of the present error, and says where."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return ""
    return f" (see {folder / TRACEBACK})"


def _identity(run: Run, ran_on: Mapping[str, Any]) -> str:
    """What a checkpoint and a run that goes on from it have in common."""
    of_run = [run.protocol.name, run.strategy.name, run.variant, run.seed, run.deciding(), revisions_of(run.strategy)]
    judging = run.protocol.judging
    looked = judging.model_dump() if judging else None  # it decides nothing, but a curve has one of them
    return json.dumps([*of_run, ran_on["versions"], ran_on["device"], looked], sort_keys=True)


def journal_of(run: Run, folder: Path, ran_on: dict[str, Any], lines: int = 0) -> Journal:
    """Returns a journal of a run that begins, for W&B.

    Args:
        run: what begins.
        folder: of the run.
        ran_on: the record's ``environment``.
        lines: of the run's earlier journal that it goes on from.
    """
    known = {
        "protocol": run.protocol.name,
        "strategy": run.strategy.name,
        "variant": run.variant,
        "seed": run.seed,
        "upper_bound": run.strategy.upper_bound,
        "hyperparameters": run.deciding(),
        "environment": ran_on,
        "experiences": run.experiences,
        "revisions": revisions_of(run.strategy),
    }
    about = {
        "title": run.protocol.title,
        "sources": run.protocol.sources,
        "engrams": {"version": ran_on["versions"]["engrams"], "commit": commit()},
        "command": without_paths(shlex.join(["engrams", *sys.argv[1:]])),
    }
    return Journal(folder, page.introduction(known, about), run.strategy.whole_stream_at_once, lines)


@cache
def commit() -> str | None:
    """Returns the commit of Engrams itself, where it runs from its repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _observer(
    run: Run, device: str, out: Path, folder: Path
) -> GeneratorObserver | GenerationObserver | VectorObserver | None:
    """What looks at the run's generator, if it has one."""
    stream = run.protocol.stream
    if not run.strategy.needs_images:
        return None
    of_classes = stream if isinstance(stream, SplitStream) and stream.boundaries == "sharp" else None
    if stream.kind != "benchmark" and datasets.load(run.protocol.dataset).vectors:
        from engrams.benchmarks.judging.vectors import VectorObserver  # here: scikit-learn's classifiers take a moment

        return VectorObserver(run, of_classes) if of_classes else None
    classifier = classifier_for(run.protocol, device, out)
    if run.protocol.generation and classifier:
        return GenerationObserver(run.protocol, classifier, run.name, folder)
    experiences: list[list[int]] = []
    if classifier and of_classes:
        experiences = classes_of_experiences(of_classes, classifier.classes, run.judge, run.seed)
    return GeneratorObserver(run.protocol, classifier, run.name, folder, experiences)


def usual_device() -> str:
    """Returns torch's name of the GPU if there is one, else of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
