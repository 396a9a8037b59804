"""The tables made of records, one list that every command walks: a page is a file here and a line in :data:`PAGES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from engrams.reports.pages import class_shares, comparison, generation
from engrams.reports.store import Record


class Page(NamedTuple):
    """How one kind of table is made of records and shown."""

    rows: Callable[[Sequence[Record]], Sequence[Any]]
    """Records -> rows; none where the page has nothing to say of them."""
    as_rich: Callable[[Sequence[Any]], list[Table]]
    as_markdown: Callable[[Sequence[Any]], str]
    legend: str


PAGES = [
    Page(module.compare, module.as_rich, module.as_markdown, module.LEGEND)
    for module in (comparison, class_shares, generation)
]


def as_markdown(records: Sequence[Record]) -> str:
    """Returns every page that has something to say, one after another."""
    return "\n".join(page.as_markdown(rows) for page in PAGES if (rows := page.rows(records)))
