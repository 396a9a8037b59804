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
from engrams.benchmarks.data.datasets import DataError
from engrams.benchmarks.jobs.processes import Report, in_processes
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import SuiteError, check_startable
from engrams.benchmarks.judging.observer import classifier_for
from engrams.benchmarks.protocols import schema as protocols
from engrams.benchmarks.protocols.schema import Protocol
from engrams.benchmarks.training.run import TRACEBACK, Diverged, Run, learn, usual_device
from engrams.reports.matrix import seen_so_far
from engrams.reports.store import replace_file
from engrams.strategies.catalogue import CATALOGUE
from filelock import FileLock, Timeout
from optuna.pruners import PercentilePruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

SEARCH_SEED = 1000
FIGURES = 3
"""Significant figures of a number that is chosen; it is not known better than that."""
KEPT = 90.0
"""Percentage of trials that are let go on: ACC in the middle of a stream says little about its end."""

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

    Half of the trials are spread evenly over the (logarithmic) range, the others are chosen by Optuna's TPE. Of these
    one is pruned if, in the second half of the stream, its ACC is among the worst tenth of those that went before it.
    What TPE chooses depends on which trial ends first, so a search repeated with several workers may try other points.

    Args:
        protocol: under which to try.
        strategy_names: what to try. The choice for each is written as soon as its trials are done.
        trials: how many for each strategy.
        out: folder of Optuna's journals; trials that are finished in there are not done again.
        workers: trials at once; None for one a core.
        display: told what is going on.
        stream_from_disk: read images when they are needed, not all before; see :func:`execute`.

    Returns:
        The file written.

    Raises:
        SuiteError: a strategy has nothing to search, none of its trials came to an end, ``out`` holds trials of other
            settings or cannot be written to, or another search is going on in it.
        ProcessError, DataError, ProtocolError: as :func:`engrams.benchmarks.jobs.suite.run_all`.
    """
    names = list(dict.fromkeys(strategy_names))
    for name in names:
        if not CATALOGUE[name].search:
            raise SuiteError(f"{name} has no hyperparameter to search")
    check_startable([_run(protocol, name, _lowest(name)) for name in names], out, stream_from_disk)
    with ExitStack() as locks:
        studies = {name: _study(protocol, name, trials, out, locks) for name in names}
        finished = {name: len(_finished(study)) for name, study in studies.items()}
        work = partial(_try_out, device=usual_device(), stream_from_disk=stream_from_disk)
        owed = _owed(protocol, studies, trials, out)
        for name in names:
            if finished[name] >= trials:
                _write_choice(protocol, name, studies[name], trials)
        with display.showing(sum(max(trials, count) for count in finished.values()), sum(finished.values())):
            for trial, outcome in in_processes(owed, work, workers, lambda t, epochs: display.advanced(t.run, epochs)):
                name = trial.run.strategy
                _tell(studies[name], trial, outcome, display)
                if len(_finished(studies[name])) == trials:
                    _write_choice(protocol, name, studies[name], trials)
        for name, study in studies.items():
            if (count := len(_finished(study))) < trials:
                raise SuiteError(f"{name}: {trials - count} of {trials} trials broke; the same command tries again")
    return protocols.chosen_path(protocol.name)


# --- the studies ------------------------------------------------------------------------------------------------------


def _study(protocol: Protocol, name: str, trials: int, out: Path, locks: ExitStack) -> optuna.Study:
    """A strategy's study as an earlier search left it: finished trials are kept, one cut short starts over."""
    journal = _journal(out, protocol.name, name)
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        locks.enter_context(FileLock(journal.with_suffix(".lock"), timeout=0))
    except Timeout as error:
        raise SuiteError(
            f"another search is going on in {journal.parent}; wait for it or choose another --out"
        ) from error
    except OSError as error:
        raise SuiteError(f"the trials cannot be written to {journal.parent}: {error}") from error
    try:
        study = optuna.create_study(
            storage=_storage(journal), study_name=name, direction="maximize", load_if_exists=True
        )
    except (ValueError, KeyError) as error:  # no JSON, or not a journal's
        raise SuiteError(f"{journal} is no journal of a search ({error}); delete it and search again") from error
    settings = _settings(protocol, name)
    if study.user_attrs.get("settings", settings) != settings:
        raise SuiteError(f"{journal} was made with other settings; choose another --out, or delete it to search again")
    study.set_user_attr("settings", settings)
    # A random sampler that starts over with the same seed would repeat what it drew before.
    study.sampler = TPESampler(n_startup_trials=0, seed=SEARCH_SEED + len(study.trials), constant_liar=True)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # cut short
        study.tell(trial.number, state=TrialState.FAIL)
    finished = [_point(trial.params) for trial in _finished(study)]
    for point in _spread(name, _spread_over(trials)):
        if _point(point) not in finished:
            study.enqueue_trial(point)
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


def _spread_over(trials: int) -> int:
    """How many of a strategy's trials are spread over the range."""
    return (trials + 1) // 2


def _spread(name: str, count: int) -> list[dict[str, float]]:
    """Points evenly spread over the ranges, their ends included, on a logarithmic scale; a single one in the middle."""
    axes = {
        key: np.geomspace(space.low, space.high, count) if count > 1 else [np.sqrt(space.low * space.high)]
        for key, space in CATALOGUE[name].search.items()
    }
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
    out: Path
    number: int
    before_pruning: int
    """Trials that have to reach the end before one is pruned."""

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def journal(self) -> Path:
        return _journal(self.out, self.run.protocol.name, self.run.strategy)


@dataclass(frozen=True)
class Outcome:
    """``acc`` of a trial that reached the end, or why it did not; ``broken``: for no fault of the point's."""

    acc: float | None = None
    pruned: str | None = None
    diverged: str | None = None
    broken: str | None = None


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
            yield Trial(_run(protocol, name, point), out, asked.number, before_pruning=_spread_over(trials))


def _point(params: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.{FIGURES}g}") for key, value in params.items()}


def _try_out(trial: Trial, report: Report, device: str, stream_from_disk: bool) -> Outcome:
    """Train and judge on the validation stream, in a process of its own."""
    study = optuna.load_study(
        study_name=trial.run.strategy,
        storage=_storage(trial.journal),
        pruner=PercentilePruner(KEPT, n_startup_trials=trial.before_pruning),
    )
    asked = optuna.trial.Trial(study, study.trials[trial.number]._trial_id)

    def prune_if_hopeless(_, matrix: list[list[float]]) -> None:
        if trial.run.experiences / 2 < len(matrix) < trial.run.experiences:
            asked.report(seen_so_far(matrix)["ACC"], len(matrix))
            if asked.should_prune():
                raise optuna.TrialPruned(f"pruned after {len(matrix)} of {trial.run.experiences} experiences")

    try:
        generation = trial.run.protocol.generation
        classifier = classifier_for(trial.run.protocol, device, trial.out) if generation else None
        matrix, _ = learn(trial.run, device, [], report, prune_if_hopeless, stream_from_disk, classifier)
    except optuna.TrialPruned as stop:
        return Outcome(pruned=str(stop))
    except Diverged as error:
        return Outcome(diverged=f"diverged: {error}")
    except DataError as error:
        return Outcome(broken=str(error))
    except Exception as error:  # a bug under one strategy must not cost the others their trials
        path = trial.journal.with_name(f"{trial.number}-{TRACEBACK}")
        path.write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(broken=f"{type(error).__name__}: {error} (see {path})")
    return Outcome(acc=seen_so_far(matrix)["ACC"])


def _tell(study: optuna.Study, trial: Trial, outcome: Outcome, display: Display) -> None:
    if outcome.acc is not None:
        study.tell(trial.number, outcome.acc)
        display.finished(trial.run, f"validation ACC {100 * outcome.acc:.2f}")
        return
    if reason := outcome.pruned or outcome.diverged:
        asked = optuna.trial.Trial(study, study.trials[trial.number]._trial_id)
        asked.set_user_attr("reason", reason)
        study.tell(trial.number, state=TrialState.PRUNED if outcome.pruned else TrialState.FAIL)
        display.finished(trial.run, reason)
    else:  # says nothing about the point, which the same command tries again
        study.tell(trial.number, state=TrialState.FAIL)
        display.failed(trial.run, f"failed: {outcome.broken}")


# --- what was chosen --------------------------------------------------------------------------------------------------


def _write_choice(protocol: Protocol, name: str, study: optuna.Study, trials: int) -> None:
    """Put a strategy's choice beside those of others, which may be searched at the same time."""
    path = protocols.chosen_path(protocol.name)
    choice = _choice(protocol, name, study, trials)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            chosen = {other: kept.model_dump() for other, kept in protocols.read_chosen(path).items()}
            replace_file(path, tomli_w.dumps(dict(sorted((chosen | {name: choice}).items()))))
        path.with_suffix(".lock").unlink(missing_ok=True)
    except OSError as error:
        raise SuiteError(f"the choice cannot be written to {path}: {error}") from error


def _choice(protocol: Protocol, name: str, study: optuna.Study, trials: int) -> dict[str, Any]:
    finished = _finished(study)
    if not any(trial.state is TrialState.COMPLETE for trial in finished):
        raise SuiteError(f"no trial of {name} came to an end; the first one {finished[0].user_attrs['reason']}")
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
    if trial.state is TrialState.COMPLETE and trial.value is not None:
        return round(trial.value, 4)
    return trial.user_attrs["reason"]
