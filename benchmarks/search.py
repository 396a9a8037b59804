"""Choosing hyperparameters on the validation stream, with Optuna.

Every strategy, Avalanche's included, gets the same number of trials and one seed that no reported run uses, and is
judged on samples held out of the training data. The test data are not even built into these benchmarks.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import tomli_w
from filelock import FileLock, Timeout
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from benchmarks import protocol as protocols
from benchmarks.datasets import DataError
from benchmarks.processes import Report, in_processes
from benchmarks.progress import Display
from benchmarks.protocol import Protocol
from benchmarks.run import TRACEBACK, Diverged, Run, learn, usual_device
from benchmarks.suite import SuiteError, check_startable
from reports.matrix import seen_so_far
from reports.store import replace_file
from strategies.catalogue import CATALOGUE

SEARCH_SEED = 1000
FIGURES = 3
"""Significant figures of a number that is chosen; it is not known better than that."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(
    protocol: Protocol,
    strategy_names: Sequence[str],
    trials: int,
    out: Path,
    workers: int | None,
    display: Display,
    stream_from_disk: bool = False,
) -> Path:
    """Search each strategy's space and write the best, with all that was tried, beside the protocol.

    Half of the trials are spread evenly over the (logarithmic) range, the others chosen by Optuna's TPE; from the
    middle of the stream on, one whose ACC lies below the median of those before it is pruned.

    Args:
        protocol: under which to try.
        strategy_names: what to try.
        trials: how many for each strategy.
        out: folder of Optuna's journals; trials that are finished in there are not done again.
        workers: trials at once; None for one a core.
        display: told what is going on.
        stream_from_disk: read images when they are needed, not all before; see :func:`benchmarks.run.execute`.

    Returns:
        The file written.

    Raises:
        SuiteError: a strategy has nothing to search, none of its trials came to an end, ``out`` holds trials of other
            settings, or another search is going on in it.
    """
    names = list(dict.fromkeys(strategy_names))
    for name in names:
        if not CATALOGUE[name].search:
            raise SuiteError(f"{name} has no hyperparameter to search")
    check_startable([_run(protocol, name, _lowest(name)) for name in names], out, stream_from_disk)
    with ExitStack() as locks:
        studies = {name: _study(protocol, name, trials, out, locks) for name in names}
        done = sum(len(_finished(study)) for study in studies.values())
        work = partial(_try_out, device=usual_device(), stream_from_disk=stream_from_disk)
        owed = _owed(protocol, studies, trials, out)
        with display.showing(max(done, len(names) * trials), done):
            for trial, outcome in in_processes(owed, work, workers, lambda t, epochs: display.advanced(t.run, epochs)):
                _tell(studies[trial.run.strategy], trial, outcome, display)
        return _write_choices(protocol, studies, trials)


# --- the studies ------------------------------------------------------------------------------------------------------


def _study(protocol: Protocol, name: str, trials: int, out: Path, locks: ExitStack) -> optuna.Study:
    """A strategy's study as an earlier search left it: finished trials are kept, one cut short starts over."""
    journal = _journal(out, protocol.name, name)
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        locks.enter_context(FileLock(journal.with_suffix(".lock"), timeout=0))
    except Timeout as error:
        raise SuiteError(
            f"another search is going on in {journal.parent}; wait for it or choose another --out"
        ) from error
    try:
        study = optuna.create_study(
            storage=_storage(journal), study_name=name, direction="maximize", load_if_exists=True
        )
    except ValueError as error:  # what the JSON decoder raises
        raise SuiteError(f"{journal} is no journal of a search ({error}); delete it and search again") from error
    settings = _settings(protocol, name)
    if study.user_attrs.get("settings", settings) != settings:
        raise SuiteError(f"{journal} was made with other settings; choose another --out, or delete it to search again")
    study.set_user_attr("settings", settings)
    # A random sampler that starts over with the same seed would repeat what it drew before.
    study.sampler = TPESampler(n_startup_trials=0, seed=SEARCH_SEED + len(study.trials), constant_liar=True)
    if not study.trials:
        for point in _spread(name, -(-trials // 2)):
            study.enqueue_trial(point)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # cut short
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _settings(protocol: Protocol, name: str) -> dict[str, Any]:
    run = _run(protocol, name, _lowest(name))
    fixed = {key: value for key, value in run.deciding()["strategy"].items() if key not in CATALOGUE[name].search}
    ranges = {key: list(space) for key, space in CATALOGUE[name].search.items()}
    return {**run.deciding(), "strategy": fixed, "search": ranges}


def _journal(out: Path, protocol: str, name: str) -> Path:
    return out / protocol / name / "study.journal"


def _storage(journal: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(journal)))


def _spread(name: str, count: int) -> list[dict[str, float]]:
    """Points evenly spread over the ranges, on a logarithmic scale."""
    axes = {key: np.geomspace(space.low, space.high, count) for key, space in CATALOGUE[name].search.items()}
    return [{key: float(values[index]) for key, values in axes.items()} for index in range(count)]


def _lowest(name: str) -> dict[str, float]:
    return {key: space.low for key, space in CATALOGUE[name].search.items()}


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a result: a value, pruned, or diverged; one that was cut short has none."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "reason" in trial.user_attrs
    ]


# --- the trials -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One point to try, as a process gets it."""

    run: Run
    journal: Path
    number: int

    @property
    def name(self) -> str:
        return self.run.name


@dataclass(frozen=True)
class Outcome:
    """``acc`` of a trial that reached the end, or the reason why it did not."""

    acc: float | None = None
    pruned: str | None = None
    failed: str | None = None


def _run(protocol: Protocol, name: str, point: dict[str, float]) -> Run:
    return Run(
        protocol,
        name,
        SEARCH_SEED,
        protocol.hyperparameters_of(name, point),
        judge="validation",
        variant=",".join(f"{key}={value:g}" for key, value in point.items()),
    )


def _owed(protocol: Protocol, studies: dict[str, optuna.Study], trials: int, out: Path) -> Iterator[Trial]:
    """Strategy after strategy, each trial chosen with the results of those before it."""
    for name, study in studies.items():
        tried = [_point(trial.params) for trial in _finished(study)]
        while len(tried) < trials:
            asked = study.ask()
            for key, space in CATALOGUE[name].search.items():
                asked.suggest_float(key, space.low, space.high, log=True)
            point = _point(asked.params)
            if point in tried:  # to as many figures as are kept; nothing is tried twice
                study.tell(asked.number, state=TrialState.FAIL)
                continue
            tried.append(point)
            yield Trial(_run(protocol, name, point), _journal(out, protocol.name, name), asked.number)


def _point(params: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.{FIGURES}g}") for key, value in params.items()}


def _try_out(trial: Trial, report: Report, device: str, stream_from_disk: bool) -> Outcome:
    """Train and judge on the validation stream, in a process of its own."""
    study = optuna.load_study(
        study_name=trial.run.strategy,
        storage=_storage(trial.journal),
        pruner=MedianPruner(n_startup_trials=4),
    )
    asked = optuna.trial.Trial(study, study.trials[trial.number]._trial_id)

    def prune_if_hopeless(matrix: list[list[float]]) -> None:
        # The first half says little: what holds old experiences too tightly has not yet met much that is new.
        if trial.run.experiences / 2 < len(matrix) < trial.run.experiences:
            asked.report(seen_so_far(matrix)["ACC"], len(matrix))
            if asked.should_prune():
                raise optuna.TrialPruned(f"pruned after {len(matrix)} of {trial.run.experiences} experiences")

    try:
        matrix, _ = learn(trial.run, device, [], report, prune_if_hopeless, stream_from_disk)
    except optuna.TrialPruned as stop:
        return Outcome(pruned=str(stop))
    except (Diverged, DataError) as error:
        return Outcome(failed=str(error))
    except Exception as error:  # a bug under one strategy must not cost the others their trials
        path = trial.journal.with_name(f"{trial.number}-{TRACEBACK}")
        path.write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(failed=f"{type(error).__name__}: {error} (see {path})")
    return Outcome(acc=seen_so_far(matrix)["ACC"])


def _tell(study: optuna.Study, trial: Trial, outcome: Outcome, display: Display) -> None:
    if outcome.acc is not None:
        study.tell(trial.number, outcome.acc)
        display.finished(trial.run, f"validation ACC {100 * outcome.acc:.2f}")
        return
    reason = outcome.pruned or f"failed: {outcome.failed}"
    asked = optuna.trial.Trial(study, study.trials[trial.number]._trial_id)
    asked.set_user_attr("reason", reason)
    study.tell(trial.number, state=TrialState.PRUNED if outcome.pruned else TrialState.FAIL)
    if outcome.pruned:
        display.finished(trial.run, reason)
    else:
        display.failed(trial.run, reason)


# --- what was chosen --------------------------------------------------------------------------------------------------


def _write_choices(protocol: Protocol, studies: dict[str, optuna.Study], trials: int) -> Path:
    path = protocols.chosen_path(protocol.name)
    chosen = {name: choice.model_dump() for name, choice in protocols.read_chosen(path).items()}
    for name, study in studies.items():
        chosen[name] = _choice(protocol, name, study, trials)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, tomli_w.dumps(dict(sorted(chosen.items()))))
    except OSError as error:
        raise SuiteError(f"the choice cannot be written to {path}: {error}") from error
    return path


def _choice(protocol: Protocol, name: str, study: optuna.Study, trials: int) -> dict[str, Any]:
    finished = _finished(study)
    if not any(trial.state is TrialState.COMPLETE for trial in finished):
        raise SuiteError(f"no trial of {name} came to an end; the first {finished[0].user_attrs['reason']}")
    return {
        "hyperparameters": _point(study.best_params),
        "evidence": {
            "command": f"python -m benchmarks search {protocol.name} {name} --trials {trials}",
            "seed": SEARCH_SEED,
            "validation_ACC": [
                {**_point(trial.params), "ACC": _seen(trial)}
                for trial in sorted(finished, key=lambda trial: list(trial.params.values()))
            ],
        },
    }


def _seen(trial: FrozenTrial) -> float | str:
    return (
        round(trial.value, 4)
        if trial.value is not None and trial.state is TrialState.COMPLETE
        else trial.user_attrs["reason"]
    )
