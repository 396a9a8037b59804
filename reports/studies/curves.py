"""Records -> accuracy against a hyperparameter, one curve each for several ways of doing the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from engrams.reports.pages.comparison import Estimate
from engrams.reports.store import Record

LEGEND = (
    "ACC in percent, mean ± 95% confidence interval over seeds, on the test data; in bold the highest mean of each "
    "line. Nothing is chosen by these numbers."
)


@dataclass(frozen=True)
class Point:
    """ACC at one value of the hyperparameter (None: of a reference, which has none), over the complete runs."""

    x: float | None
    acc: Estimate | None
    """None where no run is complete."""
    complete: int
    failed: int
    wanted: int
    """How many seeds there are to be."""

    @classmethod
    def of(cls, x: float | None, records: Sequence[Record], wanted: int) -> Point:
        accs = [record.acc for record in records if record.complete]
        return cls(x, Estimate.of(accs) if accs else None, len(accs), len(records) - len(accs), wanted)

    def cell(self) -> str:
        parts = [] if self.acc is None else [self.acc.percent()]
        if self.failed:
            parts.append(f"({self.failed} failed)")
        if self.complete + self.failed < self.wanted:
            parts.append(f"({self.complete} of {self.wanted} seeds)")
        return " ".join(parts)


@dataclass(frozen=True)
class Curve:
    label: str
    points: list[Point]
    """By ascending x."""

    @property
    def best(self) -> Point | None:
        """The point of the highest mean."""
        return max((p for p in self.points if p.acc), key=lambda p: p.acc.mean if p.acc else 0.0, default=None)


@dataclass(frozen=True)
class Curves:
    """All that a figure shows."""

    title: str
    hyperparameter: str
    curves: list[Curve]
    references: dict[str, Point]
    """Strategies without this hyperparameter: levels to compare with."""


def as_rich(found: Curves) -> Table:
    """A row for each value of the hyperparameter and each reference, a column for each curve."""
    table = Table(title=found.title, title_justify="left")
    table.add_column(found.hyperparameter, justify="right", no_wrap=True)
    for curve in found.curves:
        table.add_column(curve.label, justify="right", no_wrap=True)
    for x in sorted({point.x for curve in found.curves for point in curve.points if point.x is not None}):
        table.add_row(f"{x:g}", *(_cell(curve, x) for curve in found.curves))
    for label, point in found.references.items():
        table.add_row(label, *[point.cell()] * len(found.curves), style="dim")
    return table


def _cell(curve: Curve, x: float) -> str:
    point = next((point for point in curve.points if point.x == x), None)
    if point is None:
        return ""
    return f"[bold]{point.cell()}[/bold]" if point is curve.best else point.cell()
