"""``table``, ``parity``, ``matrix`` and ``report``: records, seen."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import Wide
from engrams.benchmarks.cli.shown import draw, remark, say, show, show_pages, stop_if_damaged
from engrams.reports.errors import UserError

if TYPE_CHECKING:
    from engrams.reports.parity.board import Board, Duel
    from engrams.reports.store import Record


class Format(str, Enum):
    text = "text"
    md = "md"
    csv = "csv"
    tex = "tex"


class BoardFormat(str, Enum):
    text = "text"
    md = "md"
    csv = "csv"


Folders = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of records, or wandb:ENTITY/PROJECT.")]


@app.command()
def table(
    runs: Folders,
    format: Annotated[Format, typer.Option(help="How to show it.")] = Format.text,
    wide: Wide = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="What the runs take instead: time, memory, what is kept, operations.")
    ] = False,
) -> None:
    """Show the comparison tables of the records below some folders."""
    from engrams.benchmarks.revisions import present
    from engrams.reports import pages, provenance, store
    from engrams.reports.pages import comparison
    from engrams.reports.pages import costs as taken

    if costs and format is Format.tex:
        raise UserError("--costs is written as text, md or csv")
    damaged: list[store.RecordError] = []
    records = pages.alike(store.read_records(*runs, damaged=damaged), damaged)
    if format is Format.text:
        show_pages(records, wide, costs)
    elif format is Format.md:
        typer.echo(pages.markdown(records, [pages.COSTS] if costs else pages.PAGES), nl=False)
    else:
        written = {Format.csv: comparison.as_csv, Format.tex: comparison.as_latex}[format]
        typer.echo(taken.as_csv(records) if costs else written(comparison.compare(records)), nl=False)
    remark(provenance.remarks(records, present()))
    stop_if_damaged(damaged)


@app.command()
def parity(
    runs: Folders,
    format: Annotated[BoardFormat, typer.Option(help="How to show it.")] = BoardFormat.text,
    wide: Wide = False,
) -> None:
    """Show published figures, and Avalanche's strategies, beside ours in the records of some folders, with verdicts."""
    from engrams.reports import store
    from engrams.reports.parity import tables

    damaged: list[store.RecordError] = []
    records = store.read_records(*runs, mark=False, damaged=damaged)
    boards, duels = compared(records)
    if format is BoardFormat.text:
        show(tables.sheets(boards), tables.LEGEND, wide)
        if duels:
            show(tables.duel_sheets(duels), tables.DUEL_LEGEND, wide)
        say(tables.summary(boards))
    elif format is BoardFormat.md:
        typer.echo(tables.as_markdown(boards, duels), nl=False)
    else:
        typer.echo(tables.as_csv(boards), nl=False)
    stop_if_damaged(damaged)


def compared(records: Sequence[Record]) -> tuple[list[Board], list[Duel]]:
    """Returns published figures, and Avalanche's strategies, beside ours."""
    from engrams.reports.parity import board
    from engrams.strategies.catalogue import CATALOGUE

    counterparts = {name: listed.counterpart for name, listed in CATALOGUE.items() if listed.counterpart}
    return board.compare(board.read(board.PUBLISHED), records), board.against_avalanche(records, counterparts)


@app.command()
def matrix(
    runs: Folders,
    protocol: Annotated[
        list[str] | None, typer.Option(help="Only of this protocol; can be given several times.")
    ] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="Only of this row; can be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="The picture; the same name with .csv has the numbers.")] = Path(
        "matrices.png"
    ),
) -> None:
    """Draw the accuracy matrices of records side by side, the mean over seeds, and write them as CSV."""
    from engrams.reports import matrices, store

    damaged: list[store.RecordError] = []
    found = matrices.of(store.read_records(*runs, damaged=damaged), protocol or (), strategy or ())
    draw(matrices.figure(found), out)
    matrices.write_csv(found, out.with_suffix(".csv"))
    say(f"numbers: {out.with_suffix('.csv')}")
    stop_if_damaged(damaged)


@app.command()
def report(
    runs: Folders,
    out: Annotated[Path, typer.Option(help="Folder of the report; its page is index.html.")] = Path("report"),
) -> None:
    """Write one page with all tables, charts and runs of some records, that opens from disk."""
    from engrams.benchmarks.protocols import registry
    from engrams.benchmarks.revisions import present
    from engrams.reports import pages, provenance, store
    from engrams.reports.local import page

    damaged: list[store.RecordError] = []
    records = pages.alike(store.read_records(*runs, damaged=damaged), damaged)
    remarks = list(provenance.remarks(records, present()))
    boards: list[Board] = []
    duels: list[Duel] = []
    try:
        boards, duels = compared(records if len(runs) == 1 else store.read_records(*runs, mark=False, damaged=[]))
    except store.RecordError as error:  # folders that are compared with each other have the same runs
        remarks.append(f"without published figures: {error}")
    remark(remarks)
    written = page.write(
        records,
        out,
        titles={name: title for name, title, _ in registry.listed()},
        boards=boards,
        duels=duels,
        folders=[folder for folder in runs if folder.is_dir()],
        remarks=[*remarks, *(f"left out: {error}" for error in damaged)],
    )
    say(f"report: {written.resolve()}")
    stop_if_damaged(damaged)
