"""What was measured while the stream was learned: anytime and prequential accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engrams.reports.anytime import Anytime, Prequential
from engrams.reports.estimates import Estimate
from engrams.reports.pages.comparison import by_protocol, complete_by_row
from engrams.reports.render import Sheet
from engrams.reports.store import Record, RecordError

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
    looked: str = ""
    """At which moments, and on what; empty where only prequential accuracy was measured."""


def compare(records: Iterable[Record]) -> list[AlongTheWay]:
    """Returns the complete records that have such measures, the highest AAA first.

    Raises:
        RecordError: as :func:`engrams.reports.pages.comparison.grouped`, or the seeds of one strategy were measured in
            different ways.
    """
    found = []
    for (protocol, strategy), group in complete_by_row(one for one in records if one.along_the_way).items():
        measures = {}
        for name in HEADINGS:
            values = [value for record in group if (value := record.along_the_way.get(name)) is not None]
            if values:
                measures[name] = Estimate.of(values)
        looked = _one_way(protocol, strategy, {one.seed: one.anytime for one in group})
        _one_way(protocol, strategy, {one.seed: one.prequential for one in group})
        found.append(AlongTheWay(protocol, strategy, len(group), measures, looked))
    return sorted(found, key=lambda row: (row.protocol, -row.measures["AAA"].mean if "AAA" in row.measures else 0))


def _one_way(protocol: str, strategy: str, by_seed: Mapping[int, Anytime | Prequential | None]) -> str:
    """Returns how the seeds that have a measure were measured, in words; raises a RecordError if in several ways."""
    ways: dict[str, int] = {}
    for seed, measured in by_seed.items():
        if measured:
            ways.setdefault(_way(measured), seed)
    if len(ways) > 1:
        first, other = [f"seed {seed} {way}" for way, seed in ways.items()][:2]
        raise RecordError(
            f"{protocol} {strategy}: its seeds were measured in different ways ({first}; {other}); run them again into "
            f"one folder"
        )
    return next(iter(ways), "")


def _way(measured: Anytime | Prequential) -> str:
    if isinstance(measured, Prequential):
        return f"in windows of {measured.window} samples"
    on = f"the same {measured.samples} test samples of each experience"
    return f"every {measured.every} steps, on {on if measured.samples else 'all test samples'}"


def _cells(row: AlongTheWay, names: Iterable[str]) -> dict[str, str]:
    shown = {HEADINGS[name]: row.measures[name].percent() if name in row.measures else "" for name in names}
    return {"strategy": row.strategy, **shown, "seeds": str(row.seeds)}


def sheets(rows: Iterable[AlongTheWay]) -> list[Sheet]:
    """Returns one table a protocol, with a column for each measure that it has; none where nothing was measured."""
    found = []
    for protocol, group in by_protocol(rows).items():
        names = [name for name in HEADINGS if any(name in row.measures for row in group)]
        cells = [_cells(row, names) for row in group]
        ways: dict[str, list[str]] = {}
        for row in group:
            if row.looked:
                ways.setdefault(row.looked, []).append(row.strategy)
        whose = (f"{', '.join(rows)}: measured {way}" for way, rows in ways.items())
        note = "; ".join(whose) if len(ways) > 1 else "".join(f"Measured {way}" for way in ways)
        found.append(Sheet(f"{protocol}: along the way", cells, spare=("seeds", "gap", "min-ACC"), note=note))
    return found
