"""Of which code and which libraries records are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from engrams.reports.store import Record

DECIDING = ("torch", "torchvision", "avalanche-lib", "numpy", "scikit-learn")
"""Packages another version of which may give another result."""


def remarks(records: Iterable[Record], revisions: Mapping[str, int]) -> list[str]:
    """Returns lines that say which complete records are of other code than the present, and which rows mix libraries.

    Args:
        records: of any rows.
        revisions: part of the code -> its present revision.
    """
    complete = [record for record in records if record.complete]
    others: Counter[tuple[str, int, int]] = Counter()
    for record in complete:
        for part, now in revisions.items():
            concerned = part in record.revisions or part in record.strategy.split("+")
            if concerned and (then := record.revisions.get(part, 1)) != now:
                others[part, then, now] += 1
    lines = [
        f"{_runs(count)} of revision {then} of {part}, which is at {now}: the same command ends in another result now"
        for (part, then, now), count in sorted(others.items())
    ]
    rows: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in complete:
        rows[record.protocol, record.row].append(record)
    mixed: Counter[str] = Counter()
    for row in rows.values():
        for package in DECIDING:
            found = {version for one in row if (version := one.environment.get("versions", {}).get(package))}
            if len(found) > 1:
                mixed[f"{package} ({', '.join(sorted(found))})"] += 1
    return lines + [
        f"{count} row{'s' if count > 1 else ''} of records made with several versions of {what}"
        for what, count in mixed.items()
    ]


def _runs(count: int) -> str:
    return f"{count} record is" if count == 1 else f"{count} records are"
