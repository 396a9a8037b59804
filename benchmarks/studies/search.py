"""Choosing hyperparameters on the validation stream, with Optuna.

Every strategy, Avalanche's included, gets the same number of trials and one seed that no reported run uses, and is
judged on samples held out of the training data. The test data are not even built into these benchmarks.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import tomli_w
from filelock import FileLock, Timeout
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from engrams.benchmarks.data.names import DataError
from engrams.benchmarks.jobs.outcomes import environment
from engrams.benchmarks.jobs.plan import by_name
from engrams.benchmarks.jobs.processes import ProcessError, Report, in_processes, start_server
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import SuiteError, check_startable
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.dotted import flattened
from engrams.benchmarks.protocols.protocol import Protocol, searching
from engrams.benchmarks.runs import Run
from engrams.reports.errors import without_paths
from engrams.reports.files import replace_file
from engrams.reports.matrix import seen_so_far
from engrams.reports.settings import differing
from engrams.reports.wandb.sending import sending
from engrams.reports.wandb.settings import DISABLED, WandBMode, WandBSettings
from engrams.strategies.contract import Strategy

if TYPE_CHECKING:
    from engrams.benchmarks.training.learn import Watcher

SEARCH_SEED = 1000
FIGURES = 3
"""Significant figures of a number that is chosen; it is not known better than that."""
MOST_REPEATS = 100
"""Proposals in a row that have been tried already, before a search gives up."""
KEPT = 90.0
"""Percentage of trials that are let go on: ACC in the middle of a stream says little about its end."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(
    protocol: Protocol,
    strategies: Sequence[Strategy],
    trials: int,
    out: Path,
    workers: int | None,
    display: Display,
    stream_from_disk: bool = False,
    wandb: WandBSettings = DISABLED,
) -> Path:
    """Searches each strategy's space and writes the best, with all that was tried, beside the protocol.

    Half of the trials are spread evenly over the (logarithmic) range, the others are chosen by Optuna's TPE. Of these
    one is pruned if, in the second half of the stream, its ACC is among the worst tenth of those that went before it.
    What TPE chooses depends on which trial ends first, so a search repeated with several workers may try other points.

    Args:
        protocol: under which to try.
        strategies: what to try. The choice for each is written as soon as its trials are done.
        trials: how many for each strategy.
        out: folder of Optuna's journals; trials that are finished in there are not done again.
        workers: trials at once; None for one a core.
        display: told what is going on.
        stream_from_disk: read images when they are needed, not all before; see :func:`execute`.
        wandb: where W&B keeps the trials.

    Returns:
        The file written.

    Raises:
        SuiteError: a strategy has nothing to search, none of its trials came to an end, ``out`` holds trials of other
            settings or cannot be written to, or another search is going on in it.
        ProcessError, DataError, ProtocolError: as :func:`engrams.benchmarks.jobs.suite.run_all`.
    """
    wanted = by_name(strategies)
    for name, strategy in wanted.items():
        if not strategy.search:
            raise SuiteError(f"{name} has no hyperparameter to search")
    path = registry.chosen_path(protocol.name, protocol.file.parent)
    _check_writable(path, protocol)
    start_server()
    check_startable([_run(protocol, one, _lowest(one)) for one in wanted.values()], out, stream_from_disk)
    with ExitStack() as locks:
        with _room(out):
            studies = {name: _study(protocol, strategy, trials, out, locks) for name, strategy in wanted.items()}
        finished = {name: len(_finished(study)) for name, study in studies.items()}
        asked: dict[str, optuna.Trial] = {}
        exhausted: set[str] = set()
        owed = _owed(protocol, wanted, studies, trials, out, asked, exhausted)
        for name, strategy in wanted.items():
            if finished[name] >= trials:
                _write_choice(protocol, strategy, studies[name], trials)
        shown = lambda trial, epochs: display.advanced(trial.run, epochs)  # noqa: E731
        anything = any(count < trials for count in finished.values())
        with (
            sending(wandb, out, display, lambda trial: trial.folder, shown, anything) as (mode, sender),
            display.showing(sum(max(trials, count) for count in finished.values()), sum(finished.values())),
        ):
            work = partial(_try_out, stream_from_disk=stream_from_disk, wandb_mode=mode)
            for trial, outcome in in_processes(owed, work, workers, sender.advanced):
                sender.over(trial)
                if isinstance(outcome, ProcessError):
                    outcome = Outcome([], broken=str(outcome))
                study = studies[trial.run.strategy.name]
                with _room(out):
                    _tell(study, asked.pop(trial.name), trial, outcome, display)
                if len(_finished(study)) == trials:
                    _write_choice(protocol, trial.run.strategy, study, trials)
        for name, study in studies.items():
            if (count := len(_finished(study))) < trials:
                if name in exhausted:
                    raise SuiteError(
                        f"{name}: the last {MOST_REPEATS} proposals had all been tried; ask for --trials {count}, or "
                        f"give its search a wider range"
                    )
                raise SuiteError(f"{name}: {trials - count} of {trials} trials broke; the same command tries again")
    return path


# --- the studies ------------------------------------------------------------------------------------------------------


@contextmanager
def _room(out: Path) -> Iterator[None]:
    """Says where there is no room, or no right to write, for what Optuna keeps."""
    try:
        yield
    except OSError as error:
        raise SuiteError(
            f"the trials cannot be written to {out}: {error.strerror or error}; mend that, and the same command goes "
            f"on with those that are there"
        ) from error


def _study(protocol: Protocol, strategy: Strategy, trials: int, out: Path, locks: ExitStack) -> optuna.Study:
    """A strategy's study as an earlier search left it: finished trials are kept, one cut short starts over."""
    journal = _journal(out, protocol.name, strategy.name)
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        locks.enter_context(FileLock(journal.with_suffix(".lock"), timeout=0))
        # Optuna's own lock, which a search that was killed left behind: nobody else is here.
        journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
        _drop_line_cut_short(journal)
    except Timeout as error:
        raise SuiteError(
            f"another search is going on in {journal.parent}; wait for it or choose another --out"
        ) from error
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=strategy.name,
            direction="maximize",
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:  # no JSON, or not a journal's
        raise SuiteError(f"{journal} is no journal of a search ({error}); delete it and search again") from error
    settings = _settings(protocol, strategy)
    if differing(study.user_attrs.get("settings", settings), settings):
        raise SuiteError(f"{journal} was made with other settings; choose another --out, or delete it to search again")
    study.set_user_attr("settings", settings)
    # A random sampler that starts over with the same seed would repeat what it drew before.
    study.sampler = TPESampler(n_startup_trials=0, seed=SEARCH_SEED + len(study.trials), constant_liar=True)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # cut short
        study.tell(trial.number, state=TrialState.FAIL)
    finished = [_point(trial.params) for trial in _finished(study)]
    for point in _spread(strategy, _spread_over(trials)):
        if _point(point) not in finished:
            study.enqueue_trial(point)
    return study


def _drop_line_cut_short(journal: Path) -> None:
    """Takes away what a full disk or a killed process left of the last line; Optuna would write on behind it."""
    if journal.exists():
        with journal.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _settings(protocol: Protocol, strategy: Strategy) -> dict[str, Any]:
    run = _run(protocol, strategy, _lowest(strategy))
    settings = flattened(run.deciding()["strategy"])
    fixed = {key: value for key, value in settings.items() if key not in strategy.search}
    ranges = {key: list(space) for key, space in strategy.search.items()}
    return {**run.deciding(), "strategy": fixed, "search": ranges}


def _journal(out: Path, protocol: str, strategy: str) -> Path:
    return out / protocol / strategy.replace(":", ".") / "study.journal"


def _spread_over(trials: int) -> int:
    """How many of a strategy's trials are spread over the range."""
    return (trials + 1) // 2


def _spread(strategy: Strategy, count: int) -> list[dict[str, float]]:
    """Points evenly spread over the ranges, their ends included, on a logarithmic scale; a single one in the middle."""
    axes = {
        key: np.geomspace(space.low, space.high, count) if count > 1 else [np.sqrt(space.low * space.high)]
        for key, space in strategy.search.items()
    }
    return [{key: float(values[index]) for key, values in axes.items()} for index in range(count)]


def _lowest(strategy: Strategy) -> dict[str, float]:
    return {key: space.low for key, space in strategy.search.items()}


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
    least: dict[int, float]
    """Experiences learned -> the ACC so far below which the trial is given up."""

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def has_own_code(self) -> bool:
        return self.run.has_own_code

    @property
    def folder(self) -> Path:
        """Returns where its journal for W&B lies."""
        return self.run.folder(self.out)


@dataclass(frozen=True)
class Outcome:
    """ACC so far after each experience, and, of a trial that did not reach the end, why.

    ``broken``: for no fault of the point's.
    """

    acc: list[float]
    pruned: str | None = None
    diverged: str | None = None
    broken: str | None = None


def _run(protocol: Protocol, strategy: Strategy, point: dict[str, float]) -> Run:
    return Run(
        protocol,
        strategy,
        SEARCH_SEED,
        protocol.hyperparameters_of(strategy, point),
        judge="validation",
        variant=",".join(f"{key}={value:g}" for key, value in point.items()),
    )


def _owed(
    protocol: Protocol,
    strategies: dict[str, Strategy],
    studies: dict[str, optuna.Study],
    trials: int,
    out: Path,
    asked: dict[str, optuna.Trial],
    exhausted: set[str],
) -> Iterator[Trial]:
    """Yields trials, strategy after strategy, each chosen with the results of those before it.

    ``asked`` gets Optuna's, ``exhausted`` the strategies for which nothing is proposed any more that was not tried.
    """
    for name, study in studies.items():
        strategy = strategies[name]
        tried = [_point(trial.params) for trial in _finished(study)]
        again = 0
        while len(tried) < trials:
            with _room(out):
                trial = study.ask()
                for key, space in strategy.search.items():
                    trial.suggest_float(key, space.low, space.high, log=True)
            point = _point(trial.params)
            if point in tried:  # to as many figures as are kept; nothing is tried twice
                study.tell(trial, state=TrialState.FAIL)
                if (again := again + 1) > MOST_REPEATS:
                    exhausted.add(name)
                    break
                continue
            again = 0
            tried.append(point)
            run = _run(protocol, strategy, point)
            asked[run.name] = trial
            yield Trial(run, out, _least(study, run.experiences, before_pruning=_spread_over(trials)))


def _least(study: optuna.Study, experiences: int, before_pruning: int) -> dict[int, float]:
    """In the second half of the stream, what the worst tenth of the trials that reached the end had there."""
    ended = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(ended) < before_pruning:
        return {}
    return {
        step: float(np.percentile([trial.intermediate_values[step] for trial in ended], 100 - KEPT))
        for step in range(experiences // 2 + 1, experiences)
        if all(step in trial.intermediate_values for trial in ended)
    }


def _point(params: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.{FIGURES}g}") for key, value in params.items()}


class Pruning:
    """Keeps ACC so far after each experience, and gives a hopeless trial up."""

    def __init__(self, trial: Trial):
        self.least = trial.least
        self.experiences = trial.run.experiences
        self.acc: list[float] = []

    def after_experience(self, strategy, matrix, seen):
        self.acc.append(seen_so_far(matrix)["ACC"])
        if self.acc[-1] < self.least.get(len(matrix), 0.0):
            raise optuna.TrialPruned(f"pruned after {len(matrix)} of {self.experiences} experiences")


def _try_out(trial: Trial, report: Report, stream_from_disk: bool, wandb_mode: WandBMode = "disabled") -> Outcome:
    """Tries in a process of its own, and says for W&B what came out."""
    from engrams.benchmarks.jobs.execute import journal_of, usual_device  # here, as below: the search reads no torch

    report(0)
    device = usual_device()
    if wandb_mode == "disabled":
        return _outcome_of(trial, report, device, stream_from_disk, [])
    journal = journal_of(trial.run, trial.folder, environment(device))
    outcome = _outcome_of(trial, report, device, stream_from_disk, [journal])
    if reason := outcome.pruned or outcome.diverged or outcome.broken:
        journal.ended({"status": "pruned" if outcome.pruned else "failed", "reason": without_paths(reason)}, False)
    else:
        journal.ended({"status": "complete", "final/validation_ACC": outcome.acc[-1]})
    return outcome


def _outcome_of(
    trial: Trial, report: Report, device: str, stream_from_disk: bool, watchers: Sequence[Watcher]
) -> Outcome:
    """Trains and judges on the validation stream."""
    from engrams.benchmarks.jobs.execute import TRACEBACK
    from engrams.benchmarks.judging.observer import classifier_for
    from engrams.benchmarks.training.learn import learn
    from engrams.benchmarks.training.watch import Diverged

    protocol = trial.run.protocol
    pruning = Pruning(trial)
    try:
        classifier = classifier_for(protocol, device, trial.out) if protocol.generation else None
        judge = classifier.network if classifier else None
        learn(trial.run, device, [*watchers, pruning], report, stream_from_disk, judge)
    except optuna.TrialPruned as stop:
        return Outcome(pruning.acc, pruned=str(stop))
    except Diverged as error:
        return Outcome(pruning.acc, diverged=f"diverged: {error}")
    except DataError as error:
        return Outcome(pruning.acc, broken=str(error))
    except Exception as error:  # a bug under one strategy must not cost the others their trials
        journal = _journal(trial.out, protocol.name, trial.run.strategy.name)
        path = journal.with_name(f"{trial.run.variant}-{TRACEBACK}")
        path.write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(pruning.acc, broken=f"{type(error).__name__}: {error} (see {path})")
    return Outcome(pruning.acc)


def _tell(study: optuna.Study, asked: optuna.Trial, trial: Trial, outcome: Outcome, display: Display) -> None:
    for learned, acc in enumerate(outcome.acc, start=1):
        asked.report(acc, learned)
    if outcome.broken:  # says nothing about the point, which the same command tries again
        study.tell(asked, state=TrialState.FAIL)
        display.failed(trial.run, f"failed: {outcome.broken}")
    elif reason := outcome.pruned or outcome.diverged:
        asked.set_user_attr("reason", reason)
        study.tell(asked, state=TrialState.PRUNED if outcome.pruned else TrialState.FAIL)
        display.finished(trial.run, reason)
    else:
        study.tell(asked, outcome.acc[-1])
        display.finished(trial.run, f"validation ACC {100 * outcome.acc[-1]:.2f}")


# --- what was chosen --------------------------------------------------------------------------------------------------


def _check_writable(path: Path, protocol: Protocol) -> None:
    """Before the first trial: what is chosen is written where the protocol is."""
    folder = next(folder for folder in path.parents if folder.is_dir())
    if not os.access(folder, os.W_OK):
        raise SuiteError(
            f"what is chosen is written to {path}, and {folder} cannot be written to; put extends = "
            f'"{protocol.name.partition("/")[0]}" into a file of your own and search that'
        )


def _write_choice(protocol: Protocol, strategy: Strategy, study: optuna.Study, trials: int) -> None:
    """Puts a strategy's choice beside those of others, which may be searched at the same time."""
    path = registry.chosen_path(protocol.name, protocol.file.parent)
    choice = _choice(protocol, strategy, study, trials)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            chosen = {other: kept.model_dump() for other, kept in registry.read_chosen(path).items()}
            replace_file(path, tomli_w.dumps(dict(sorted((chosen | {strategy.name: choice}).items()))))
    except OSError as error:
        raise SuiteError(f"the choice cannot be written to {path}: {error}") from error


def _choice(protocol: Protocol, strategy: Strategy, study: optuna.Study, trials: int) -> dict[str, Any]:
    finished = _finished(study)
    if not any(trial.state is TrialState.COMPLETE for trial in finished):
        reason = finished[0].user_attrs["reason"]
        raise SuiteError(f"no trial of {strategy.name} came to an end; the first one {reason}")
    return {
        "hyperparameters": _point(study.best_params),
        "fingerprint": protocol.fingerprint(strategy),
        "evidence": {
            "command": f"{searching(protocol, strategy)} --trials {trials}",
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
