"""``table``, ``parity`` and ``matrix``: records, seen."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.shown import console, draw, show, show_pages


class Format(str, Enum):
    text = "text"
    md = "md"
    csv = "csv"
    tex = "tex"


class BoardFormat(str, Enum):
    text = "text"
    md = "md"
    csv = "csv"


Folders = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of records.")]


@app.command()
def table(
    runs: Folders,
    format: Annotated[Format, typer.Option(help="How to show it.")] = Format.text,
    into: Annotated[
        Path | None, typer.Option(help="Put the Markdown tables into this file, between its two marks.")
    ] = None,
) -> None:
    """Show the comparison tables of the records below some folders."""
    from engrams.reports import marks, pages, store
    from engrams.reports.pages import comparison

    records = store.read_records(*runs)
    if into is not None:
        marks.replace_between(into, "tables", pages.as_markdown(records))
    elif format is Format.text:
        show_pages(records)
    elif format is Format.md:
        typer.echo(pages.as_markdown(records), nl=False)
    else:
        written = {Format.csv: comparison.as_csv, Format.tex: comparison.as_latex}[format]
        typer.echo(written(comparison.compare(records)), nl=False)


@app.command()
def parity(
    runs: Folders,
    format: Annotated[BoardFormat, typer.Option(help="How to show it.")] = BoardFormat.text,
    into: Annotated[
        Path | None, typer.Option(help="Put the Markdown board into this file, between its two marks.")
    ] = None,
) -> None:
    """Show published figures, and Avalanche's strategies, beside ours in the records of some folders, with verdicts."""
    from engrams.reports import marks, store
    from engrams.reports.parity import board, tables
    from engrams.strategies.catalogue import CATALOGUE

    records = store.read_records(*runs)
    boards = board.compare(board.read(board.PUBLISHED), records)
    counterparts = {name: listed.counterpart for name, listed in CATALOGUE.items() if listed.counterpart}
    duels = board.against_avalanche(records, counterparts)
    if into is not None:
        marks.replace_between(into, "parity", tables.as_markdown(boards, duels))
    elif format is BoardFormat.text:
        show(tables.as_rich(boards), tables.LEGEND)
        if duels:
            show([tables.duels_as_rich(duels)], tables.DUEL_LEGEND)
        console.print(tables.summary(boards), highlight=False)
    elif format is BoardFormat.md:
        typer.echo(tables.as_markdown(boards, duels), nl=False)
    else:
        typer.echo(tables.as_csv(boards), nl=False)


@app.command()
def matrix(
    runs: Folders,
    protocol: Annotated[str | None, typer.Option(help="Only of this protocol.")] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="Only of this row; can be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="The picture; the same name with .csv has the numbers.")] = Path(
        "matrices.png"
    ),
) -> None:
    """Draw the accuracy matrices of records side by side, the mean over seeds, and write them as CSV."""
    from engrams.reports import matrices, store

    found = matrices.of(store.read_records(*runs), protocol, strategy)
    draw(matrices.figure(found), out)
    matrices.write_csv(found, out.with_suffix(".csv"))
    console.print(f"numbers: {out.with_suffix('.csv')}", highlight=False, soft_wrap=True)
