"""A table of text: fitted to a terminal's width, or as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

WORDS = 20
"""The width below which a column of words is left out rather than made narrower."""
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Sheet:
    """A table of text; every row maps the same headings to cells."""

    title: str
    rows: Sequence[Mapping[str, str | Text]]
    left: Collection[str] = ("strategy",)
    """What is aligned left: names and words, which may take several lines. The others are numbers, and never do."""
    words: Collection[str] = ()
    """Those of ``left`` that are long, and take several lines before another column has to go."""
    spare: Sequence[str] = ()
    """What a terminal that is too narrow does without, the first one first; the others are always shown."""
    styles: Sequence[str | None] = ()
    """rich's, one a row; none for the usual one."""
    note: str = ""

    def as_markdown(self) -> str:
        """Returns all of it, bold cells bold; title and note are paragraphs of their own."""
        headings = list(self.rows[0])
        body = tabulate(
            [[_marked(row[heading]) for heading in headings] for row in self.rows],
            headings,
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["left" if heading in self.left else "right" for heading in headings],
        )
        return "\n\n".join(part for part in (f"**{self.title}**" if self.title else "", body, self.note) if part)

    def needs(self, console: Console) -> int:
        """Returns how many characters a line has if nothing is left out."""
        return self._measured(console, self._table(list(self.rows[0]))).maximum

    def fitted(self, console: Console, width: int) -> tuple[Table, list[str]]:
        """Returns the table with the columns that fit into ``width`` characters, and the headings of the others.

        Where even those that are always shown do not fit, names are broken; nothing is ever cut off.
        """
        shown, left_out = list(self.rows[0]), []
        for heading in self.spare:
            if self._measured(console, self._table(shown, whole=True)).minimum <= width:
                break
            if heading in shown:
                shown.remove(heading)
                left_out.append(heading)
        return self._table(shown), left_out

    @staticmethod
    def _measured(console: Console, table: Table) -> Measurement:
        return Measurement.get(console, console.options.update(width=ENDLESS), table)

    def _table(self, headings: Sequence[str], whole: bool = False) -> Table:
        """``whole``: names are measured in one piece; for measuring only, since rich then cuts what is too long."""
        table = Table(
            title=Text(self.title, style="table.title"),
            caption=Text(self.note, style="table.caption") if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for heading in headings:
            cells = [str(row[heading]) for row in self.rows]
            longest = max(map(len, [*cells, *heading.split()]))
            shortest = min(longest, WORDS) if heading in self.words else longest
            table.add_column(
                # A heading takes several lines rather than more room than its column needs.
                Text(fill(heading, longest, break_long_words=False, break_on_hyphens=False)),
                justify="left" if heading in self.left else "right",
                overflow="fold",
                no_wrap=heading not in self.left,
                min_width=shortest if whole else None,
            )
        for index, row in enumerate(self.rows):
            cells = [cell if isinstance(cell := row[heading], Text) else Text(cell) for heading in headings]
            table.add_row(*cells, style=self.styles[index] if self.styles else None)
        return table


def _marked(cell: str | Text) -> str:
    text = str(cell).replace("|", "\\|")  # it would end the cell
    return f"**{text}**" if isinstance(cell, Text) and cell.style == "bold" else text


def as_markdown(sheets: Sequence[Sheet], legend: str) -> str:
    """Returns some tables with what their columns mean below; empty if there is no row."""
    parts = [sheet.as_markdown() for sheet in sheets if sheet.rows]
    return "\n\n".join(filter(None, [*parts, legend])) + "\n" if parts else ""
