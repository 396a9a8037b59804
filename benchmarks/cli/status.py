"""``status``: how far the runs of a folder are, whoever does them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import Wide
from engrams.benchmarks.cli.shown import remark, say, show, stop_if_damaged

if TYPE_CHECKING:
    from engrams.reports.store import RecordError


@app.command()
def status(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of the records.")] = Path("runs"),
    wide: Wide = False,
) -> None:
    """Show which runs are done, running, waiting in a queue, failed, or stopped with a checkpoint to go on from."""
    from engrams.benchmarks.jobs import status
    from engrams.reports.render import Sheet

    damaged: list[RecordError] = []
    seen, unseen = status.look(runs, damaged)
    counts: dict[str, Counter[str]] = {}
    for run in seen:
        counts.setdefault(run.folder.parent.as_posix(), Counter())[run.state] += 1
    rows = [
        {"runs": row, **{state: str(count[state] or "") for state in status.STATES}} for row, count in counts.items()
    ]
    if rows:
        show([Sheet(str(runs), rows, left=("runs",))], wide=wide)
    for run in seen:
        if run.said:
            say(f"{run.state}: {run.folder.as_posix()}: {run.said}", style="red" if run.state == "failed" else None)
    total = Counter(run.state for run in seen)
    say(", ".join(f"{total[state]} {state}" for state in status.STATES if total[state]) or f"{runs} has no runs yet")
    remark([f"what is in a queue is not seen: {unseen}"] if unseen else [])
    stop_if_damaged(damaged)
