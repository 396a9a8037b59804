"""What commands print, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from engrams.reports.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from engrams.reports.render import Sheet
    from engrams.reports.store import Record, RecordError

console = Console(emoji=False)  # wandb:x: is no emoji


def show(sheets: Sequence[Sheet], legend: str = "", wide: bool = False) -> None:
    """Prints tables and what their columns mean.

    On a terminal columns are left out where they do not fit, and a line says which; piped, or if ``wide``, a table is
    as wide as it needs to be.
    """
    fit = console.is_terminal and not wide
    width = console.width if fit else max([console.width, *(sheet.needs(console) for sheet in sheets)])
    shown = console if fit else Console(width=width, emoji=False)
    left_out: dict[str, None] = {}
    for sheet in sheets:
        table, missing = sheet.fitted(shown, width)
        left_out |= dict.fromkeys(missing)
        shown.print(table)
        shown.print()
    if left_out:
        shown.print(f"left out for want of room: {'; '.join(left_out)}. --wide shows all", style="dim", highlight=False)
    if legend:
        shown.print(legend, style="dim", highlight=False, markup=False)
        shown.print()


def show_pages(records: list[Record], wide: bool = False, costs: bool = False) -> None:
    """Prints every table that records make, or that of what they took."""
    from engrams.reports.pages import COSTS, PAGES

    for page in [COSTS] if costs else PAGES:
        if sheets := page.sheets(records):
            show(sheets, page.legend, wide)


def say(text: str, style: str | None = None) -> None:
    """Prints a line as it is, however long."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def draw(figure: Figure, path: Path) -> None:
    """Writes a picture and says where."""
    try:
        if not path.suffix:
            path = path.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:  # the disk's; matplotlib's of a kind of file that it does not know
        raise UserError(f"the picture cannot be written to {path}: {error}") from error
    say(f"figure: {path}")


def remark(lines: Iterable[str]) -> None:
    """Prints lines beside what a command shows, so that what is piped on is the same with and without them."""
    for line in lines:
        Console(stderr=True, emoji=False).print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)


def stop_if_damaged(damaged: Iterable[RecordError]) -> None:
    """Names the records that were left out, and ends the command with status 1 if there are any."""
    lines = [f"left out: {error}" for error in damaged]
    remark(lines)
    if lines:
        raise typer.Exit(1)


def stop_if_failed(records: Iterable[Record]) -> None:
    """Names the runs that failed, and ends the command with status 1 if there are any."""
    failed = [record for record in records if not record.complete]
    for record in failed:
        say(f"failed: {record.protocol} {record.row} seed {record.seed}: {record.reason}", style="red")
    if failed:
        raise typer.Exit(1)
