"""``verify``: what a reader does who doubts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import Workers
from engrams.benchmarks.cli.shown import console, remark, say, stop_if_damaged


@app.command()
def verify(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of records.")],
    rerun: Annotated[int, typer.Option(min=0, help="How many, drawn at random, are done again and compared.")] = 0,
    draw: Annotated[int | None, typer.Option(help="Seed of what is drawn, to draw the same again.")] = None,
    workers: Workers = None,
) -> None:
    """Check that records can be what they say, and do some again: equal to the bit, or what differs and why."""
    if rerun:
        from engrams.benchmarks.jobs.processes import start_server

        start_server()
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.jobs.verify import repeat, wrong_size
    from engrams.benchmarks.revisions import present
    from engrams.reports import provenance, store

    damaged: list[store.RecordError] = []
    records = []
    for record in store.read_records(*runs, mark=False, damaged=damaged):
        if problem := wrong_size(record):
            name = f"{record.protocol} {record.row} seed {record.seed}"
            damaged.append(store.RecordError(f"{name}: {problem}; {store.MEND}"))
        else:
            records.append(record)
    say(f"{len(records)} of {len(records) + len(damaged)} records are whole, and can be what they say")
    remark(provenance.remarks(records, present()))
    doubted = False
    if rerun:
        complete = [record for record in records if record.complete]
        seed = random.randrange(1_000_000) if draw is None else draw
        drawn = random.Random(seed).sample(complete, min(rerun, len(complete)))
        say(f"{len(drawn)} are done again, drawn with --draw {seed}; they took {sum(r.seconds for r in drawn):.0f} s")
        for record, holds, said in repeat(drawn, workers, Display(console)):
            doubted = doubted or not holds
            name = f"{record.protocol} {record.row} seed {record.seed}"
            say(f"{name}: {said}", style=None if holds else "red")
    stop_if_damaged(damaged)
    if doubted:
        raise typer.Exit(1)
