"""One run, done and recorded."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engrams.benchmarks.judging.generation import GenerationObserver
from engrams.benchmarks.judging.observer import GeneratorObserver, classifier_for
from engrams.benchmarks.training.run import Run, learn
from engrams.reports import store
from engrams.reports.errors import UserError
from engrams.reports.matrix import metrics
from engrams.reports.store import Record
from engrams.reports.wandb.logger import WandBLogger, WandBMode

TRACEBACK = "traceback.txt"


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
        wandb_mode: where W&B keeps the run.
        report: called with the number of epochs done, as they are done.
        stream_from_disk: read images when they are needed, not all before: less memory, more time, the same result.
    """
    folder = run.folder(out)
    ran_on = {**environment(device), "images": "on disk" if stream_from_disk else "in memory"}
    logger = WandBLogger(
        folder,
        run.protocol.name,
        " ".join(part for part in (run.strategy.name, run.variant) if part),
        run.seed,
        {**run.deciding(), "environment": ran_on},
        wandb_mode,
        run.strategy.whole_stream_at_once,
    )
    outcome: dict[str, Any]
    started = time.perf_counter()
    try:
        observer = _observer(run, device, out, folder)
        watchers = [watcher for watcher in (observer, logger) if watcher is not None]
        judge = observer.judge if isinstance(observer, GenerationObserver) else None
        started = time.perf_counter()
        learned = learn(run, device, watchers, report, stream_from_disk, judge)
        outcome = {
            "status": "complete",
            "accuracy_matrix": learned.accuracy_matrix,
            "accuracy_at_initialisation": learned.accuracy_at_initialisation,
            "metrics": metrics(learned.accuracy_matrix, learned.accuracy_at_initialisation or None),
            "generated": observer.summary() if observer else None,
            "seconds": learned.seconds,
        }
        if isinstance(observer, GenerationObserver):
            logger.animation(observer.animate())
    except UserError as error:  # says all there is to say in one line
        outcome = {"status": "failed", "reason": str(error)}
    except Exception as error:  # a bug in one strategy must not cost the others their runs
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        reason = f"{type(error).__name__}: {error} (see {folder / TRACEBACK})"
        outcome = {"status": "failed", "reason": reason}
    record = Record(
        protocol=run.protocol.name,
        strategy=run.strategy.name,
        variant=run.variant,
        seed=run.seed,
        upper_bound=run.strategy.upper_bound,
        hyperparameters=run.deciding(),
        environment=ran_on,
        **{"seconds": time.perf_counter() - started} | outcome,
    )
    if record.complete:
        (folder / TRACEBACK).unlink(missing_ok=True)  # of an earlier try
    logger.finish(record, store.write(record, folder))
    return record


def _observer(run: Run, device: str, out: Path, folder: Path) -> GeneratorObserver | GenerationObserver | None:
    """What looks at the run's generator, if it has one."""
    if not run.strategy.needs_images:
        return None
    classifier = classifier_for(run.protocol, device, out)
    if run.protocol.generation and classifier:
        return GenerationObserver(run.protocol, classifier, run.name, folder)
    return GeneratorObserver(run.protocol, classifier, run.name, folder)


def usual_device() -> str:
    """torch's name of the GPU if there is one, else of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def environment(device: str) -> dict[str, Any]:
    """What the run ran on: versions, machine, device."""
    versions: dict[str, str | None] = {}
    for package in ("engrams", "torch", "torchvision", "avalanche-lib", "numpy", "scikit-learn", "wandb"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
    }
