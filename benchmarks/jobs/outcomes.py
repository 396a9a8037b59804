"""What became of a run -> its record."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engrams.benchmarks.revisions import revisions_of
from engrams.benchmarks.runs import Run
from engrams.reports.store import Record


def record_of(run: Run, ran_on: dict[str, Any], outcome: dict[str, Any]) -> Record:
    """Returns the record of a run.

    Args:
        run: that has ended.
        ran_on: the record's ``environment``.
        outcome: what the record has besides.
    """
    return Record(
        experiences=run.experiences if outcome["status"] == "complete" else None,
        revisions=revisions_of(run.strategy),
        protocol=run.protocol.name,
        strategy=run.strategy.name,
        variant=run.variant,
        seed=run.seed,
        upper_bound=run.strategy.upper_bound,
        hyperparameters=run.deciding(),
        environment=ran_on,
        **outcome,
    )


def failed(run: Run, device: str | None, reason: str) -> Record:
    """Returns the record of a run that came to nothing before it could say so itself.

    Args:
        run: that failed.
        device: torch's name of the one that it ran on; None where nobody knows it any more.
        reason: why.
    """
    return record_of(run, environment(device), {"status": "failed", "reason": reason, "seconds": 0.0})


@cache
def environment(device: str | None) -> dict[str, Any]:
    """Returns what a run ran on: versions, machine, device.

    Args:
        device: torch's name of it; None where nobody knows it any more: then torch is not asked.
    """
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
        "cpu": _cpu(),
        **({"device": "unknown"} if device is None else _as_torch_says(device)),
    }


def _as_torch_says(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {"device": name, "threads": torch.get_num_threads()}


def _cpu() -> str:
    """Its model, where the system says it: two of them may round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
