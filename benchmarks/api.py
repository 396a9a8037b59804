"""What the command line does, for scripts and notebooks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from engrams.benchmarks.jobs.plan import plan, what_is_stale
from engrams.benchmarks.jobs.processes import Here
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import run_all
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.protocol import Protocol
from engrams.reports.store import Records
from engrams.reports.wandb.settings import WandBMode, WandBSettings, resolve
from engrams.strategies.contract import Strategy


def load_protocol(reference: str | Path, settings: Mapping[str, Any] | None = None) -> Protocol:
    """Returns a protocol, checked.

    Args:
        reference: a name that ``engrams list`` shows, or the path of a file (``my.toml``; ``my.toml/class`` where it
            has several scenarios).
        settings: dotted key -> value, in place of the file's: ``{"training.epochs": 2}``.

    Raises:
        UserError: there is no such protocol, or something in it cannot be; one line says what.
    """
    return registry.get(str(reference), settings)


def run(
    protocol: str | Path | Protocol,
    strategies: str | Strategy | Sequence[str | Strategy],
    seeds: int | Iterable[int] = 3,
    out: str | Path = "runs",
    settings: Mapping[str, Any] | None = None,
    *,
    experiences: int | None = None,
    wandb: WandBMode | WandBSettings = "disabled",
    workers: int | None = None,
    stream_from_disk: bool = False,
    progress: bool = True,
) -> Records:
    """Runs strategies under a protocol and returns their records; what ``out`` has already is not run again.

    Runs go on in processes of their own. In a script, call this below ``if __name__ == "__main__":``.

    Args:
        protocol: its name, the path of its file, or one that was loaded.
        strategies: one or several: names (``"ewc"``, ``"ewc+replay"``, ``"my_module:my_strategy"``).
        seeds: how many (0, 1, ...), or which.
        out: folder of the records.
        settings: dotted key -> value, in place of the protocol's: ``{"ewc_lambda": 10.0, "training.epochs": 2}``. The
            records say so and lie apart from the protocol's own.
        experiences: how many are learned and judged, for a smoke test; None for all.
        wandb: where W&B keeps the runs: ``online``, ``offline`` or ``disabled``; or more than that. A run of your own
            that is active in this process is left alone.
        workers: runs at once; None for one a core.
        stream_from_disk: read images when they are needed: less memory, more time, the same results.
        progress: show a bar.

    Raises:
        UserError: something that one can mend; one line says what. A run that fails is in the records, with its reason.
    """
    wanted = [strategies] if isinstance(strategies, str | Strategy) else list(strategies)
    runs = plan(
        protocol if isinstance(protocol, Protocol) else str(protocol),
        wanted,
        seeds if isinstance(seeds, Iterable) else range(int(seeds)),
        settings,
        experiences,
    )
    for line in what_is_stale(runs, settings or {}):
        warnings.warn(line, stacklevel=2)
    display = Display(Console(quiet=not progress))
    sent_to = wandb if isinstance(wandb, WandBSettings) else resolve(wandb)
    if sent_to.word:
        warnings.warn(sent_to.word, stacklevel=2)
    records = run_all(runs, Path(out).expanduser(), sent_to, Here(workers), display, stream_from_disk)
    display.say_afterwards()
    return Records(records)
