"""What was measured while the stream was learned: anytime and prequential accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engrams.reports.estimates import Estimate
from engrams.reports.pages.comparison import by_protocol, complete_by_row
from engrams.reports.render import Sheet
from engrams.reports.store import Record

LEGEND = (
    "Percentages, mean ± 95% confidence interval over seeds. AAA: the accuracy on all experiences met so far, averaged "
    "over moments along the stream. min-ACC: the lowest that the accuracy on an earlier experience falls to later, "
    "WC-ACC that and the accuracy on the last one, each experience alike (De Lange et al. 2023). 'gap': what is lost "
    "while an experience is learned and has come back at its end. 'prequential': each sample is predicted before it is "
    "learned from."
)
HEADINGS = {
    "AAA": "AAA",
    "min_ACC": "min-ACC",
    "WC_ACC": "WC-ACC",
    "stability_gap": "gap",
    "prequential": "prequential",
}


@dataclass(frozen=True)
class AlongTheWay:
    """One strategy under one protocol; fractions in [0, 1]."""

    protocol: str
    strategy: str
    seeds: int
    measures: dict[str, Estimate]
    looked: frozenset[tuple[int, int | None]] = frozenset()
    """Steps between two moments, and test samples of each experience; None for all."""


def compare(records: Iterable[Record]) -> list[AlongTheWay]:
    """Returns the complete records that have such measures, the highest AAA first."""
    found = []
    for (protocol, strategy), group in complete_by_row(one for one in records if one.along_the_way).items():
        measures = {}
        for name in HEADINGS:
            values = [value for record in group if (value := record.along_the_way.get(name)) is not None]
            if values:
                measures[name] = Estimate.of(values)
        looked = frozenset((one.anytime.every, one.anytime.samples) for one in group if one.anytime)
        found.append(AlongTheWay(protocol, strategy, len(group), measures, looked))
    return sorted(found, key=lambda row: (row.protocol, -row.measures["AAA"].mean if "AAA" in row.measures else 0))


def _cells(row: AlongTheWay, names: Iterable[str]) -> dict[str, str]:
    shown = {HEADINGS[name]: row.measures[name].percent() if name in row.measures else "" for name in names}
    return {"strategy": row.strategy, **shown, "seeds": str(row.seeds)}


def sheets(rows: Iterable[AlongTheWay]) -> list[Sheet]:
    """Returns one table a protocol, with a column for each measure that it has; none where nothing was measured."""
    found = []
    for protocol, group in by_protocol(rows).items():
        names = [name for name in HEADINGS if any(name in row.measures for row in group)]
        cells = [_cells(row, names) for row in group]
        ways = sorted(set().union(*(row.looked for row in group)), key=str)
        note = "; ".join(
            f"Measured every {every} steps, on "
            + (f"{samples} test samples of each experience, the same in every run" if samples else "all test samples")
            for every, samples in ways
        )
        found.append(Sheet(f"{protocol}: along the way", cells, spare=("seeds", "gap", "min-ACC"), note=note))
    return found
