"""What commands print, and where."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from engrams.reports.store import Record

console = Console()


def show(tables: Iterable[Table], legend: str) -> None:
    """Prints tables and what their columns mean."""
    # A table that is piped or logged is as wide as it needs to be.
    shown = console if console.is_terminal else Console(width=160)
    for one in tables:
        shown.print(one)
    shown.print(legend, style="dim", highlight=False)


def show_pages(records: list[Record]) -> None:
    """Prints every table that records make."""
    from engrams.reports.pages import PAGES

    for page in PAGES:
        if rows := page.rows(records):
            show(page.as_rich(rows), page.legend)


def say(text: str, style: str | None = None) -> None:
    """Prints a line as it is, however long."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def draw(figure: Figure, path: Path) -> None:
    """Writes a picture and says where."""
    figure.savefig(path)
    say(f"figure: {path}")


def stop_if_failed(records: Iterable[Record]) -> None:
    """Names the runs that failed, and ends the command with status 1 if there are any."""
    failed = [record for record in records if not record.complete]
    for record in failed:
        say(f"failed: {record.protocol} {record.row} seed {record.seed}: {record.reason}", style="red")
    if failed:
        raise typer.Exit(1)
