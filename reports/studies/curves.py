"""Records -> accuracy against a hyperparameter, one curve each for several ways of doing the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from engrams.reports.estimates import Estimate
from engrams.reports.render import Sheet
from engrams.reports.store import Record


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
        """Returns the point of the highest mean."""
        return max((p for p in self.points if p.acc), key=lambda p: p.acc.mean if p.acc else 0.0, default=None)


@dataclass(frozen=True)
class Curves:
    """All that a figure shows."""

    title: str
    hyperparameter: str
    curves: list[Curve]
    references: dict[str, Point]
    """Strategies without this hyperparameter: levels to compare with."""
    judged_on: Literal["test", "validation"] = "test"

    @property
    def legend(self) -> str:
        """Returns what is said below the table."""
        chosen = (
            "Nothing is chosen by these numbers."
            if self.judged_on == "test"
            else "They are for choosing by, no results."
        )
        return (
            f"ACC in percent, mean ± 95% confidence interval over seeds, on the {self.judged_on} data; in bold the "
            f"highest mean of each line. {chosen}"
        )


def sheet(found: Curves) -> Sheet:
    """Returns a row for each value of the hyperparameter and each reference, a column for each curve."""
    levels = sorted({point.x for curve in found.curves for point in curve.points if point.x is not None})
    rows: list[dict[str, str | Text]] = [
        {found.hyperparameter: f"{x:g}", **{curve.label: _cell(curve, x) for curve in found.curves}} for x in levels
    ]
    for label, point in found.references.items():
        rows.append({found.hyperparameter: label, **{curve.label: point.cell() for curve in found.curves}})
    return Sheet(
        found.title,
        rows,
        left=(),
        spare=[curve.label for curve in reversed(found.curves[1:])],
        styles=[None] * len(levels) + ["dim"] * len(found.references),
    )


def _cell(curve: Curve, x: float) -> str | Text:
    point = next((point for point in curve.points if point.x == x), None)
    if point is None:
        return ""
    return Text(point.cell(), "bold") if point is curve.best else point.cell()
