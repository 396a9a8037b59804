"""The tables made of records, one list that every command walks: a page is a file here and a line in :data:`PAGES`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from engrams.reports.pages import anytime, class_shares, comparison, costs, generation, privacy
from engrams.reports.render import Sheet, as_markdown
from engrams.reports.store import Record, RecordError


class Page(NamedTuple):
    """One kind of table."""

    compare: Callable[[Iterable[Record]], Sequence[Any]]
    """Records -> rows; none where the page has nothing to say of them."""
    shown: Callable[[Sequence[Any]], list[Sheet]]
    """Rows -> tables, one a protocol."""
    legend: str

    def sheets(self, records: Sequence[Record]) -> list[Sheet]:
        """Returns the tables that some records make."""
        return self.shown(self.compare(records))


PAGES = [
    Page(module.compare, module.sheets, module.LEGEND)
    for module in (comparison, anytime, class_shares, generation, privacy)
]
COSTS = Page(costs.compare, costs.sheets, costs.LEGEND)
"""Shown where it is asked for."""


def alike(records: Iterable[Record], left_out: list[RecordError]) -> list[Record]:
    """Returns the records of those rows that every page can show by themselves.

    Args:
        records: of any number of rows.
        left_out: gets why another row cannot be: its seeds were run or measured in different ways.
    """
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        rows.setdefault((record.protocol, record.row), []).append(record)
    found: list[Record] = []
    for group in rows.values():
        try:
            for page in (*PAGES, COSTS):
                page.compare(group)
        except RecordError as error:
            left_out.append(error)
        else:
            found += group
    return found


def markdown(records: Sequence[Record], chosen: Sequence[Page] = PAGES) -> str:
    """Returns every table that some records make, one page after another."""
    parts = (as_markdown(page.sheets(records), page.legend) for page in chosen)
    return "\n".join(part for part in parts if part)
