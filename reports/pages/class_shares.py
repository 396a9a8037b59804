"""What generators remember: the share of each class among their images at the end of the stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engrams.reports.generators import Unevenness, unevenness
from engrams.reports.pages.comparison import by_protocol, complete_by_row
from engrams.reports.render import Sheet
from engrams.reports.store import Record

LEGEND = (
    "Percentages of a generator's images at the end of the stream that a classifier trained on real data takes for "
    "each class, mean over seeds. 'least': the share of the class that is remembered least, mean over seeds. How "
    "uneven they are: 'KL', their divergence from equal shares, in nats, and 'uneven', half the L1 distance: the "
    "percentage of images that would have to show another class; both means over seeds. "
    "'classifier': its accuracy on real test images. 'spread', of vectors: the variance of what is made, relative to "
    "that of the real ones of the same classes; 1 where nothing fades."
)
MOST_CLASSES = 20
"""Of more, a table has no share of each."""


@dataclass(frozen=True)
class ClassShares:
    """One strategy under one protocol; fractions in [0, 1]."""

    protocol: str
    strategy: str
    seeds: int
    shares: tuple[float, ...]
    least: float
    unevenness: Unevenness
    """Mean over seeds."""
    classifier_accuracy: float
    spread: float | None
    """Of vectors, at the end, mean over seeds."""


def compare(records: Iterable[Record]) -> list[ClassShares]:
    """Returns the complete records of strategies with a generator, best remembered first."""
    found = []
    with_shares = (one for one in records if one.generated and one.generated.class_shares)
    for (protocol, strategy), group in complete_by_row(with_shares).items():
        generated = [record.generated for record in group if record.generated]
        last = np.array([one.class_shares[-1] for one in generated])
        found.append(
            ClassShares(
                protocol,
                strategy,
                len(group),
                tuple(last.mean(axis=0).tolist()),
                float(last.min(axis=1).mean()),
                Unevenness(*np.mean([unevenness(shares) for shares in last.tolist()], axis=0).tolist()),
                float(np.mean([one.classifier_accuracy for one in generated])),
                float(np.mean([one.spread[-1] for one in generated])) if all(one.spread for one in generated) else None,
            )
        )
    return sorted(found, key=lambda one: (one.protocol, -one.least))


def _cells(row: ClassShares) -> dict[str, str]:
    return {
        "strategy": row.strategy,
        **{
            str(label): f"{100 * share:.0f}"
            for label, share in enumerate(row.shares)
            if len(row.shares) <= MOST_CLASSES
        },
        "least": f"{100 * row.least:.1f}",
        "KL": f"{row.unevenness.divergence:.3f}",
        "uneven": f"{100 * row.unevenness.distance:.1f}",
        **({"spread": f"{row.spread:.2f}"} if row.spread is not None else {}),
        "classifier": f"{100 * row.classifier_accuracy:.1f}",
        "seeds": str(row.seeds),
    }


def sheets(rows: Iterable[ClassShares]) -> list[Sheet]:
    """Returns one table a protocol; none if no strategy has a generator."""
    return [
        Sheet(
            f"{protocol}: what the generators remember",
            [_cells(row) for row in group],
            # The share that is remembered least stands for what has no room.
            spare=("seeds", "classifier", "KL", "spread", *map(str, reversed(range(len(group[0].shares))))),
        )
        for protocol, group in by_protocol(rows).items()
    ]
