"""Published figures beside ours: ``published.toml`` read and checked, and a verdict on each from both spreads."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engrams.reports.errors import UserError, without_paths
from engrams.reports.estimates import Estimate, quantile
from engrams.reports.pages.comparison import grouped
from engrams.reports.store import Record

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

PUBLISHED = Path(__file__).parent / "published.toml"
Percent = Annotated[float, Field(ge=0, le=100)]


class PublishedError(UserError):
    """The file of published figures says something that cannot be; the message is one line naming the key."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Source(_Table):
    """A paper or project.

    ``checked``: someone has read its numbers there. ``runs``: how many runs its figures are means of, as it says.
    ``ddof``: 0 where its standard deviations are divided by the number of runs (``np.std``), 1 where by one less.
    """

    title: str
    where: str
    checked: bool
    metric: Literal["ACC", "generated ACC"]
    runs: Annotated[int, Field(ge=2)] | None = None
    ddof: Literal[0, 1] = 1


class FigureRow(_Table):
    """What the source reports for one method, in percent, a number a column; ``strategy`` is our name for it."""

    method: str
    strategy: str
    mean: list[Percent]
    sd: list[Percent] | None = None
    setting: list[str] = []


class Figure(_Table):
    """One table of a source.

    ``protocols``: ours for each column. ``after``: how many experiences it is taken after, if not at the end; over
    these alone.
    """

    source: str
    protocols: Annotated[list[str], Field(min_length=1)]
    after: list[Annotated[int, Field(ge=1)]] = []
    note: str = ""
    findings: list[str] = []
    """What is known of rows where ours is short, for the page that shows the committed records."""
    setting: dict[str, str] = {}
    rows: Annotated[list[FigureRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_number_a_column(self) -> Figure:
        columns = len(self.protocols)
        if self.after and len(self.after) != columns:
            raise ValueError(f"after: {len(self.after)} for {columns} protocols")
        for index, row in enumerate(self.rows):
            for key, values in (("mean", row.mean), ("sd", row.sd)):
                if values is not None and len(values) != columns:
                    raise ValueError(f"rows.{index}.{key}: {len(values)} numbers for {columns} protocols")
            if len(row.setting) not in (0, 1, columns):
                raise ValueError(f"rows.{index}.setting: {len(row.setting)} texts for {columns} protocols")
        return self


class Published(_Table):
    """The whole file."""

    sources: dict[str, Source]
    figures: list[Figure]

    @model_validator(mode="after")
    def _sources_are_there(self) -> Published:
        for index, figure in enumerate(self.figures):
            if figure.source not in self.sources:
                raise ValueError(f"figures.{index}.source: no source is called {figure.source!r}")
            if self.sources[figure.source].runs is None and any(row.sd is not None for row in figure.rows):
                raise ValueError(
                    f"sources.{figure.source}.runs: missing; figures.{index} reports sd, over how many runs?"
                )
        return self


def read(path: Path) -> Published:
    """Returns the published figures.

    Raises:
        PublishedError: the file cannot be read, is no TOML, or has a key or a value that cannot be.
    """
    try:
        return Published.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PublishedError(f"{path}: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise PublishedError(f"{path}: {key}: {message}" if key else f"{path}: {message}") from error


class Verdict(str, Enum):
    reproduced = "reproduced"
    above = "above"
    short = "short"
    undecided = "undecided"
    failed = "failed"
    not_run = "not run"


MARGIN = 0.01
"""A difference that is smaller is small: a percentage point."""
MOST_SEEDS = 1000
"""More seeds of ours than these are not reckoned with."""


@dataclass(frozen=True)
class Reported:
    """One published number, a fraction; ``sd`` and ``runs`` are None where the source does not give them."""

    mean: float
    sd: float | None = None
    runs: int | None = None
    digits: int = 2
    """After the point, of the percentage, as the source has them."""
    ddof: int = 1
    """0 where ``sd`` is the root of the mean square, as NumPy has it."""

    @property
    def variance(self) -> float | None:
        """Of a single run, estimated without bias; None where the source gives no spread."""
        if self.sd is None or self.runs is None:
            return None
        return self.sd**2 * self.runs / (self.runs - 1) if self.ddof == 0 else self.sd**2

    @property
    def known_runs(self) -> int:
        """How many runs it is a mean of, as far as is known."""
        return self.runs or 1

    @property
    def rounding(self) -> float:
        """By how much the number may differ from what was measured."""
        return 0.5 * 10.0 ** -(self.digits + 2)


@dataclass(frozen=True)
class Difference(Estimate):
    """Ours minus published, a fraction."""

    narrow: float | None = None
    """Half-width of its 90% interval: within the margin, two one-sided tests at 5% show the difference to be small."""


@dataclass(frozen=True)
class Comparison:
    """One published number beside ours; fractions. ``difference`` is ours minus published."""

    method: str
    strategy: str
    protocol: str
    reported: Reported
    ours: Estimate | None
    seeds: int
    failed: int
    difference: Difference | None
    verdict: Verdict
    to_decide: str
    """Where it is undecided, what would show that there is no difference: so many seeds of ours, or what of the source
    prevents it."""
    published_setting: str
    our_setting: str
    """It ends with what went wrong where no run came to an end."""


@dataclass(frozen=True)
class Board:
    """A figure compared. ``settings``: what holds for all its rows, as (name, the source's, ours)."""

    source_name: str
    source: Source
    note: str
    rows: list[Comparison]
    settings: list[tuple[str, str, str]]
    findings: list[str]


def compare(published: Published, records: Iterable[Record]) -> list[Board]:
    """Returns every published figure beside ours, in the file's order.

    Args:
        published: the figures.
        records: of any number of protocols, strategies and seeds; failed ones are counted, not averaged, and trials of
            a search, which are judged on validation data, are left out.

    Raises:
        RecordError: the seeds of one strategy were run with different hyperparameters, or a seed is there twice.
    """
    groups = grouped(records)
    return [_board(figure, published.sources[figure.source], groups) for figure in published.figures]


def difference(ours: Sequence[float], reported: Reported) -> Difference:
    """Ours minus published, with the half-widths of its 95% and 90% confidence intervals.

    Welch's, where both have a spread. Where one side has none, its runs are taken to spread as the other's do: the
    difference of means of n and m runs with one variance s^2 has the variance s^2 (1/n + 1/m), and Student's t has the
    degrees of freedom of the side that s^2 was estimated on (with m = 1, the prediction interval of one new run). That
    is so of a published number without a spread (of one run, if the source does not say of how many) and of a single
    seed of ours. With neither spread there is no interval.

    Args:
        ours: one value a seed, fractions.
        reported: the published number.
    """
    mean = float(np.mean(ours)) - reported.mean
    own, theirs = _variance(ours), reported.variance
    if own is None and theirs is None:
        return Difference(mean, None)
    error, freedom = _welch(own, len(ours), theirs, reported.known_runs)
    return Difference(mean, quantile(freedom) * error, quantile(freedom, 0.9) * error)


def _variance(ours: Sequence[float]) -> float | None:
    return float(np.var(ours, ddof=1)) if len(ours) > 1 else None


def _welch(own: float | None, seeds: int, theirs: float | None, runs: int) -> tuple[float, float]:
    """The standard error of the difference and its degrees of freedom.

    They are Welch and Satterthwaite's, or the lender's where one variance serves both.
    """
    if own is None or theirs is None:
        variance, freedom = (theirs, float(runs - 1)) if own is None else (own, float(seeds - 1))
        assert variance is not None
        return float(np.sqrt(variance * (1 / seeds + 1 / runs))), freedom
    ours_part, theirs_part = own / seeds, theirs / runs
    within = ours_part**2 / (seeds - 1) + theirs_part**2 / (runs - 1)
    # Without any variance the interval is a point, whatever the degrees of freedom are.
    freedom = (ours_part + theirs_part) ** 2 / within if within else 1.0
    return float(np.sqrt(ours_part + theirs_part)), freedom


def judge(difference: Difference, rounding: float, seeds: int) -> Verdict:
    """Returns the verdict on a difference (fractions; higher is better).

    ``reproduced`` where it is shown to be small: its 90% interval lies within the margin (two one-sided tests), even
    if the published number was rounded to our side. Else ``above`` or ``short`` where its 95% interval lies beyond 0,
    and beyond what the published number was rounded by; and ``undecided`` where neither is shown.

    A single seed of ours is always ``undecided``. The source's spread need not be ours, and a single value cannot
    contradict it; a second seed measures our own. The spread of a source that gives none cannot be measured here, and
    so ours is taken for it.
    """
    size = abs(difference.mean)
    if seeds < 2 or difference.narrow is None or difference.half_width is None:
        return Verdict.undecided
    if size + difference.narrow + rounding <= MARGIN:
        return Verdict.reproduced
    if size - difference.half_width <= rounding:
        return Verdict.undecided
    return Verdict.above if difference.mean > 0 else Verdict.short


def to_decide(ours: Sequence[float], reported: Reported) -> str:
    """Returns what would show that there is no difference, if there is none and our runs go on to spread as they do.

    So many seeds of ours; or, where no number of them could, what of the source prevents it.

    Args:
        ours, reported: as for :func:`difference`.
    """
    own, theirs, runs = _variance(ours), reported.variance, reported.known_runs
    if own is None:
        return "more seeds"
    for seeds in range(2, MOST_SEEDS + 1):
        error, freedom = _welch(own, seeds, theirs, runs)
        if quantile(freedom, 0.9) * error + reported.rounding <= MARGIN:
            return f"{max(seeds, len(ours) + 1)} seeds"
    # The error and the degrees of freedom that are left when ours is known exactly.
    error = float(np.sqrt((own if theirs is None else theirs) / runs))
    freedom = np.inf if theirs is None else float(runs - 1)
    if quantile(freedom, 0.9) * error + reported.rounding <= MARGIN:
        return f"over {MOST_SEEDS} seeds"
    if theirs is not None:
        return "its spread"
    return "its one run" if runs == 1 else f"its {runs} runs"


@dataclass(frozen=True)
class Duel:
    """A strategy of ours beside Avalanche's of the same method; ``difference`` is ours minus theirs, a fraction."""

    protocol: str
    strategy: str
    counterpart: str
    ours: Estimate
    theirs: Estimate
    seeds: int
    difference: Estimate
    verdict: Literal["better", "level", "worse"]


def against_avalanche(records: Iterable[Record], counterparts: Mapping[str, str]) -> list[Duel]:
    """Strategies of ours beside Avalanche's under the same protocol, paired over the seeds that both have.

    ``level`` where the interval of the paired difference (Student's t) holds 0. A pair with fewer than two complete
    seeds in common is left out. So is one whose settings of the protocol differ: silently where only the learning rate
    does (some protocols have one for each strategy), with a warning otherwise.

    Args:
        records: of any number of protocols, strategies and seeds.
        counterparts: our strategy -> Avalanche's.

    Raises:
        RecordError: as :func:`compare`.
    """
    duels = []
    for protocol, by_strategy in grouped(records).items():
        for strategy, counterpart in counterparts.items():
            ours, theirs = by_strategy.get(strategy, []), by_strategy.get(counterpart, [])
            acc, their_acc = ({r.seed: r.acc for r in group if r.complete} for group in (ours, theirs))
            seeds = sorted(acc.keys() & their_acc.keys())
            if len(seeds) < 2:
                continue
            if _of_protocol(ours[0]) != _of_protocol(theirs[0]):
                if _of_protocol(ours[0], rate=False) != _of_protocol(theirs[0], rate=False):
                    warnings.warn(
                        f"{protocol}: {strategy} and {counterpart} were run under different settings, and are not "
                        f"compared; run them again into one folder",
                        stacklevel=2,
                    )
                continue
            difference = Estimate.of([acc[seed] - their_acc[seed] for seed in seeds])
            duels.append(
                Duel(
                    protocol,
                    strategy,
                    counterpart,
                    Estimate.of([acc[seed] for seed in seeds]),
                    Estimate.of([their_acc[seed] for seed in seeds]),
                    len(seeds),
                    difference,
                    _of_duel(difference),
                )
            )
    return duels


def _of_duel(difference: Estimate) -> Literal["better", "level", "worse"]:
    if abs(difference.mean) <= (difference.half_width or 0.0):
        return "level"
    return "better" if difference.mean > 0 else "worse"


def _of_protocol(record: Record, rate: bool = True) -> dict[str, Any]:
    """Returns the protocol's settings, the learning rate only if it is asked for."""
    settings = {key: value for key, value in record.hyperparameters.items() if key != "strategy"}
    if not rate:
        settings["training"] = {**settings["training"], "learning_rate": None}
    return settings


def tally(boards: Iterable[Board]) -> dict[Verdict, int]:
    """Returns how many figures have which verdict."""
    counted = Counter(row.verdict for board in boards for row in board.rows)
    return {verdict: counted[verdict] for verdict in Verdict}


def _board(figure: Figure, source: Source, groups: Mapping[str, Mapping[str, list[Record]]]) -> Board:
    digits = max(len(repr(mean).partition(".")[2].rstrip("0")) for row in figure.rows for mean in row.mean)
    rows, hyperparameters = [], {}
    for column, protocol in enumerate(figure.protocols):
        after = figure.after[column] if figure.after else None
        for row in figure.rows:
            group = [
                record
                for record in groups.get(protocol, {}).get(row.strategy, [])
                if ("generation" in record.hyperparameters) == (source.metric == "generated ACC")
            ]
            complete = [record for record in group if record.complete]
            sd = None if row.sd is None else row.sd[column] / 100
            reported = Reported(row.mean[column] / 100, sd, source.runs, digits, source.ddof)
            values = [_acc(record, after) for record in complete]
            gap = difference(values, reported) if values else None
            verdict = (
                judge(gap, reported.rounding, len(values)) if gap else Verdict.failed if group else Verdict.not_run
            )
            if complete:
                hyperparameters[f"{row.strategy} on {protocol}"] = complete[0].hyperparameters
            rows.append(
                Comparison(
                    row.method + (f", after {after} tasks" if after else ""),
                    row.strategy,
                    protocol,
                    reported,
                    ours=Estimate.of(values) if values else None,
                    seeds=len(complete),
                    failed=len(group) - len(complete),
                    difference=gap,
                    verdict=verdict,
                    to_decide=to_decide(values, reported) if verdict is Verdict.undecided else "",
                    # one text stands for every column
                    published_setting=row.setting[column % len(row.setting)] if row.setting else "",
                    our_setting=_our_setting((complete or group)[0]) if group else "",
                )
            )
    return Board(figure.source, source, figure.note, rows, _settings(figure.setting, hyperparameters), figure.findings)


def _our_setting(record: Record) -> str:
    """Returns the strategy's hyperparameters, and why the run failed if it did."""
    settings = _words(record.hyperparameters.get("strategy", {}))
    if record.complete:
        return settings
    reason, *_ = without_paths(record.reason or "no reason is recorded").splitlines()
    return f"{settings}: {reason}" if settings else reason


def _acc(record: Record, after: int | None) -> float:
    """At the end, or after some experiences; what is trained on all at once is judged on as many in the end."""
    if after is None:
        return record.acc
    row = record.accuracy_matrix[min(after, len(record.accuracy_matrix)) - 1]
    return float(np.mean(row[:after]))


def _settings(published: Mapping[str, str], ours: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    # The scenario is in the protocol's name, a strategy's own hyperparameters are in its row, 'judge' is always test.
    recorded = [key for values in ours.values() for key in values if key not in ("scenario", "strategy", "judge")]
    return [
        (key, published.get(key, ""), _shared({run: _words(values.get(key, "")) for run, values in ours.items()}))
        for key in dict.fromkeys([*published, *recorded])
    ]


def _shared(texts: Mapping[str, str]) -> str:
    """What most runs have, then what others have instead, with their names."""
    by_text: dict[str, list[str]] = {}
    for run, text in texts.items():
        by_text.setdefault(text, []).append(run)
    usual, *others = sorted(by_text, key=lambda text: -len(by_text[text])) or [""]
    if not others:
        return usual
    return "; ".join([usual or "none", *(f"{text or 'none'} ({', '.join(by_text[text])})" for text in others)])


def _words(value: Any) -> str:
    """A recorded value as a reader has it: ``hidden size 400, hidden layers 2``."""
    if isinstance(value, dict):
        # Runs that are judged on test data train on everything: nothing is held out for validation.
        shown = {key: inner for key, inner in value.items() if inner is not None and key != "validation_fraction"}
        return ", ".join(f"{key.replace('_', ' ')} {_words(inner)}" for key, inner in shown.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
