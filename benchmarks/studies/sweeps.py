"""Studies: a question each, asked by many runs and answered by one figure; ``studies.toml`` lists them.

A *sweep* shows a strategy's accuracy against one of its hyperparameters, one line each for several ways of doing it.
What runs under which protocol and how it is recorded is that of any run; only where the records lie differs: below
the strategy, each point of the figure has a folder named by its hyperparameters, so that two studies that share a
folder can only meet where they ask for the same run, if those of one protocol are all judged on the same data. (A
study of *subsets* is in ``adaptive.py``.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from engrams.benchmarks.errors import UnknownName
from engrams.benchmarks.jobs.place import Place
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import finished, run_all
from engrams.benchmarks.names import strategy_called
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.problems import ProtocolError, problem_of
from engrams.benchmarks.protocols.registry import read_toml
from engrams.benchmarks.protocols.schema import Judge, Positive, Table
from engrams.benchmarks.runs import Run
from engrams.benchmarks.studies import listing
from engrams.reports import store
from engrams.reports.errors import UserError
from engrams.reports.settings import differing
from engrams.reports.store import Record, RecordError
from engrams.reports.studies.curves import Curve, Curves, Point
from engrams.reports.wandb.settings import WandBSettings


class StudyError(UserError):
    """A study cannot be done as it is written; the message is one line that names the study and the key."""


def _ascending(grid: list[float]) -> list[float]:
    if any(low >= high for low, high in pairwise(grid)):
        raise ValueError("the values must ascend")
    return grid


Grid = Annotated[
    list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=2), AfterValidator(_ascending)
]


class Line(Table):
    """One line of a figure: a way of doing what the strategy does. ``grid``: where it is not the sweep's."""

    label: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    grid: Grid | None = None


class Sweep(Table):
    """A strategy's ACC against one of its hyperparameters.

    ``references``: strategies shown as levels. ``judge``: on ``validation`` data nothing is learned of the test data,
    and where a stream has experiences for choosing alone, these are what is learned.
    """

    kind: Literal["sweep"]
    title: str
    protocol: str
    strategy: str
    seeds: Positive
    hyperparameter: str
    grid: Grid
    lines: Annotated[list[Line], Field(min_length=1)]
    judge: Judge = "test"
    references: list[str] = Field(default_factory=list)
    source: str
    finding: str = ""
    """What the committed results say, for the page that shows them."""

    @field_validator("lines")
    @classmethod
    def _labels_differ(cls, lines: list[Line]) -> list[Line]:
        if len({line.label for line in lines}) < len(lines):
            raise ValueError("two lines have the same label")
        return lines


class Subsets(Table):
    """Importance measured on two subsets of the first experience's classes; see ``adaptive.py``."""

    kind: Literal["subsets"]
    title: str
    protocol: str
    classes_per_experience: Annotated[int, Field(ge=2)]
    mas_lambda: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    subsets: Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=2, max_length=2)]
    seeds: Positive
    source: str
    finding: str = ""
    """As a sweep's."""

    @model_validator(mode="after")
    def _disjoint(self) -> Subsets:
        classes = [index for subset in self.subsets for index in subset]
        if len(set(classes)) < len(classes) or not all(0 <= i < self.classes_per_experience for i in classes):
            raise ValueError(f"subsets must be disjoint and of 0 ... {self.classes_per_experience - 1}")
        return self


Study = Annotated[Sweep | Subsets, Field(discriminator="kind")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]  # figures and results are files of this name


def read(path: Path) -> dict[str, Sweep | Subsets]:
    """Returns every study of a file, by name.

    Raises:
        ProtocolError: it is no TOML.
        StudyError: it has an unknown key, or a value of the wrong type or out of range.
    """
    try:
        return TypeAdapter(dict[Name, Study]).validate_python(read_toml(path))
    except ValidationError as error:
        raise StudyError(f"{path}: {problem_of(error, ('sweep', 'subsets'))}") from error


def get(name: str) -> Sweep | Subsets:
    """Returns a study by name.

    Raises:
        UnknownName: there is no such study; a near name is suggested.
        ProtocolError, StudyError: as :func:`read`.
    """
    listing.check(name)
    return read(listing.FILE)[name]


# --- sweeps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One point of the figure, or a reference (``x`` is None), and the runs that it is the mean of."""

    label: str
    x: float | None
    runs: list[Run]


def points_of(name: str, sweep: Sweep, seeds: int | None = None) -> list[Asked]:
    """Returns every point of a sweep's figure, line by line, then the references.

    Args:
        name: of the study, for messages.
        sweep: the study.
        seeds: how many; None for the study's own number.

    Raises:
        StudyError: a protocol or strategy does not exist, or a hyperparameter does not or is out of range.
    """
    try:
        protocol = registry.get(sweep.protocol)
        strategies = {name: strategy_called(name) for name in (sweep.strategy, *sweep.references)}
    except UnknownName as error:
        raise StudyError(f"{listing.FILE}: {name}: {error}") from error

    def asked(label: str, strategy: str, x: float | None, values: dict[str, Any]) -> Asked:
        try:
            hyperparameters = protocol.hyperparameters_of(strategies[strategy], values)
        except ProtocolError as error:
            raise StudyError(f"{listing.FILE}: {name}: {label}: {error}") from error
        variant = ",".join(f"{key}={value}" for key, value in values.items())
        runs = [
            Run(protocol, strategies[strategy], s, hyperparameters, sweep.judge, variant)
            for s in range(seeds or sweep.seeds)
        ]
        return Asked(label, x, runs)

    points = [
        asked(line.label, sweep.strategy, x, {**line.hyperparameters, sweep.hyperparameter: float(x)})
        for line in sweep.lines
        for x in line.grid or sweep.grid
    ]
    return points + [asked(strategy, strategy, None, {}) for strategy in sweep.references]


def run_sweep(
    points: Sequence[Asked], out: Path, wandb: WandBSettings, place: Place, display: Display
) -> dict[Run, Record]:
    """Does the runs that have no complete record yet, all points of one seed before the next seed.

    Raises:
        As :func:`engrams.benchmarks.jobs.suite.run_all`.
    """
    runs = sorted((run for point in points for run in point.runs), key=lambda run: run.seed)
    return dict(zip(runs, run_all(runs, out, wandb, place, display), strict=True))


def recorded(points: Sequence[Asked], out: Path, damaged: list[RecordError]) -> dict[Run, Record]:
    """Returns the records that are there, of failed runs too; ``damaged`` gets why one is left out.

    Raises:
        SuiteError: one is of other settings.
    """
    found = {}
    for run in (run for point in points for run in point.runs):
        try:
            record = finished(run, out) or _failed(run, out)
        except RecordError as error:
            damaged.append(error)
            continue
        if record is not None:
            found[run] = record
    return found


def _failed(run: Run, out: Path) -> Record | None:
    path = run.folder(out) / store.RECORD
    record = store.read(path) if path.exists() else None
    return None if record is None or differing(record.hyperparameters, run.deciding()) else record


def curves_of(sweep: Sweep, points: Sequence[Asked], records: dict[Run, Record]) -> Curves:
    """Returns what the records say, as the figure shows it."""

    def point(asked: Asked) -> Point:
        return Point.of(asked.x, [records[run] for run in asked.runs if run in records], len(asked.runs))

    lines: dict[str, list[Point]] = {}
    for asked in points:
        if asked.x is not None:
            lines.setdefault(asked.label, []).append(point(asked))
    return Curves(
        title=sweep.title,
        hyperparameter=sweep.hyperparameter,
        curves=[Curve(label, found) for label, found in lines.items()],
        references={asked.label: point(asked) for asked in points if asked.x is None},
        judged_on=sweep.judge,
    )
