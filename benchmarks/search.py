"""Choosing hyperparameters on the validation stream.

Every strategy, Avalanche's included, has a search space of the same size, gets one seed that no reported run uses, and
is judged on samples held out of the training data. The test data are not even built into these benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks import protocol as protocols
from benchmarks.progress import Display
from benchmarks.protocol import Protocol
from benchmarks.run import Run
from benchmarks.suite import SuiteError, run_all
from reports.store import Record, replace_file
from strategies.catalogue import CATALOGUE

SEARCH_SEED = 1000


def search(
    protocol: Protocol,
    strategy_names: Sequence[str],
    out: Path,
    workers: int | None,
    display: Display,
    values: Sequence[float] = (),
    stream_from_disk: bool = False,
) -> Path:
    """Try every value of each strategy's search space and write the best, with all that was tried, beside the protocol.

    Args:
        protocol: under which to try.
        strategy_names: what to try.
        out: folder of the trials' records; a trial that has one is not run again.
        workers: trials at once; None for one a core.
        display: told what is going on.
        values: to try in place of the search space's own.
        stream_from_disk: read images when they are needed, not all before; see :func:`benchmarks.run.execute`.

    Returns:
        The file written.

    Raises:
        SuiteError: a strategy has nothing to search, or none of its runs came to an end.
    """
    trials: dict[Run, tuple[str, dict[str, float]]] = {}
    for name in dict.fromkeys(strategy_names):
        space = CATALOGUE[name].search
        if not space:
            raise SuiteError(f"{name} has no hyperparameter to search")
        for point in product(*(dict.fromkeys(values or tried) for tried in space.values())):
            overrides = dict(zip(space, point, strict=True))
            run = Run(
                protocol,
                name,
                SEARCH_SEED,
                protocol.hyperparameters_of(name, overrides),
                judge="validation",
                variant=",".join(f"{key}={value:g}" for key, value in overrides.items()),
            )
            trials[run] = (name, overrides)
    records = run_all(list(trials), out, "disabled", workers, display, stream_from_disk)
    path = protocols.chosen_path(protocol.name)
    chosen = {name: choice.model_dump() for name, choice in protocols.read_chosen(path).items()}
    for name in dict.fromkeys(strategy_names):
        tried = [
            (overrides, record)
            for (strategy, overrides), record in zip(trials.values(), records, strict=True)
            if strategy == name
        ]
        command = ["python -m benchmarks search", protocol.name, name, *(f"--value {value:g}" for value in values)]
        chosen[name] = _choice(name, tried, " ".join(command))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, tomli_w.dumps(dict(sorted(chosen.items()))))
    except OSError as error:
        raise SuiteError(f"the choice cannot be written to {path}: {error}") from error
    return path


def _choice(name: str, tried: list[tuple[dict[str, float], Record]], command: str) -> dict[str, Any]:
    ended = [(overrides, record.acc) for overrides, record in tried if record.complete]
    if not ended:
        raise SuiteError(f"no value tried for {name} came to an end; the first failed because: {tried[0][1].reason}")
    best, _ = max(ended, key=lambda trial: trial[1])
    return {
        "hyperparameters": best,
        "evidence": {
            "command": command,
            "seed": SEARCH_SEED,
            "validation_ACC": [
                {**overrides, "ACC": round(record.acc, 4) if record.complete else "failed"}
                for overrides, record in tried
            ],
        },
    }
