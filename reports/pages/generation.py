"""How good what a generator makes is, besides the accuracy of what it was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from engrams.reports.pages.comparison import Estimate, grouped, markdown_tables, rich_tables
from engrams.reports.store import Record

TITLE = ": what is generated"
LEGEND = (
    "At the end of the stream, mean ± 95% confidence interval over seeds. 'accuracy': of a classifier trained on real "
    "data on what was asked for (the ACC above). 'reverse': the other way round, of a classifier trained on what was "
    "generated, on real test images. 'Frechet': distance to the real test images in the first classifier's features; "
    "less is better; it can be compared within a protocol only. 'classifier': the first classifier's accuracy on real "
    "test images."
)


@dataclass(frozen=True)
class Generation:
    """One strategy under one protocol; fractions in [0, 1], and a distance."""

    protocol: str
    strategy: str
    seeds: int
    accuracy: Estimate
    reverse: Estimate
    frechet: Estimate
    classifier_accuracy: float


def compare(records: Iterable[Record]) -> list[Generation]:
    """The complete records of generators that were judged themselves, nearest to real images first.

    Raises:
        RecordError: as :func:`engrams.reports.pages.comparison.grouped`.
    """
    found = []
    for protocol, by_strategy in grouped(records).items():
        for strategy, group in by_strategy.items():
            pairs = [(one.acc, one.generated) for one in group if one.complete and one.generated]
            generated = [one for _, one in pairs if one.reverse_accuracy is not None]
            if generated:
                found.append(
                    Generation(
                        protocol,
                        strategy,
                        len(generated),
                        Estimate.of([acc for acc, _ in pairs]),
                        Estimate.of([one.reverse_accuracy for one in generated if one.reverse_accuracy is not None]),
                        Estimate.of([one.frechet_distance[-1] for one in generated]),
                        generated[0].classifier_accuracy,
                    )
                )
    return sorted(found, key=lambda row: (row.protocol, row.frechet.mean))


def _cells(row: Generation) -> dict[str, str]:
    spread = "" if row.frechet.half_width is None else f" ± {row.frechet.half_width:.2f}"
    return {
        "strategy": row.strategy,
        "accuracy": row.accuracy.percent(),
        "reverse": row.reverse.percent(),
        "Frechet": f"{row.frechet.mean:.2f}{spread}",
        "classifier": f"{100 * row.classifier_accuracy:.1f}",
        "seeds": str(row.seeds),
    }


def as_rich(rows: Iterable[Generation]) -> list[Table]:
    """One table a protocol, for a terminal."""
    return rich_tables(rows, _cells, TITLE)


def as_markdown(rows: Iterable[Generation]) -> str:
    """One table a protocol, with the legend below; empty if no generator was judged."""
    return markdown_tables(rows, _cells, LEGEND, TITLE)
