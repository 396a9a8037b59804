"""How good what a generator makes is, besides the accuracy of what it was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engrams.reports.estimates import Estimate
from engrams.reports.generators import over_the_stream
from engrams.reports.pages.comparison import by_protocol, grouped
from engrams.reports.render import Sheet
from engrams.reports.store import Generated, Record

LEGEND = (
    "At the end of the stream, mean ± 95% confidence interval over seeds. 'accuracy': of a classifier trained on real "
    "data on what was asked for (the ACC above). 'reverse': the other way round, of a classifier trained on what was "
    "generated, on real test images. 'Frechet': distance to the real test images in the first classifier's features; "
    "less is better; it can be compared within a protocol only. 'AFQ', 'AIQ', 'FR': of the distances of each class, "
    "the mean in the end, the mean over the stream, and by how much they grew since a class was learned (Zhang et al. "
    "2024). 'precision', 'recall': how many images are real enough, and how much of what is real is made "
    "(Kynkäänniemi et al. 2019). '-' where records are older than the measure. 'classifier': the first classifier's "
    "accuracy on real test images."
)
CLOG = ("AFQ", "AIQ", "FR")


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
    over_the_stream: dict[str, float]
    """AFQ, AIQ and FR, means over the seeds that have them."""
    precision: float | None
    recall: float | None


def compare(records: Iterable[Record]) -> list[Generation]:
    """Returns the complete records of generators that were judged themselves, nearest to real images first.

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
                        _over_the_stream(generated),
                        _last([one.precision for one in generated]),
                        _last([one.recall for one in generated]),
                    )
                )
    return sorted(found, key=lambda row: (row.protocol, row.frechet.mean))


def _over_the_stream(generated: Sequence[Generated]) -> dict[str, float]:
    found = [over_the_stream(one.frechet_by_class) for one in generated if one.frechet_by_class]
    columns = {
        "AFQ": [one.final for one in found],
        "AIQ": [one.incremental for one in found],
        "FR": [one.forgetting for one in found if one.forgetting is not None],
    }
    return {name: float(np.mean(values)) for name, values in columns.items() if values}


def _last(runs: Sequence[Sequence[float | None]]) -> float | None:
    """The mean over seeds of what there was in the end."""
    values = [run[-1] for run in runs if run and run[-1] is not None]
    return float(np.mean(values)) if values else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cells(row: Generation) -> dict[str, str]:
    spread = "" if row.frechet.half_width is None else f" ± {row.frechet.half_width:.2f}"
    return {
        "strategy": row.strategy,
        "accuracy": row.accuracy.percent(),
        "reverse": row.reverse.percent(),
        "Frechet": f"{row.frechet.mean:.2f}{spread}",
        **{name: f"{found:.2f}" if (found := row.over_the_stream.get(name)) is not None else "-" for name in CLOG},
        "precision": _percent(row.precision),
        "recall": _percent(row.recall),
        "classifier": f"{100 * row.classifier_accuracy:.1f}",
        "seeds": str(row.seeds),
    }


def sheets(rows: Iterable[Generation]) -> list[Sheet]:
    """Returns one table a protocol; none if no generator was judged."""
    return [
        Sheet(
            f"{protocol}: what is generated",
            [_cells(row) for row in group],
            spare=("classifier", "seeds", "AIQ", "AFQ", "FR", "recall", "precision", "Frechet", "reverse"),
        )
        for protocol, group in by_protocol(rows).items()
    ]
