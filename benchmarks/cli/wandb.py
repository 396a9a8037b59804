"""``upload``, ``dashboards`` and ``sweep``: what concerns W&B alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import Entity, Project, Tags, WandB, wandb_of
from engrams.benchmarks.cli.shown import console


@app.command()
def upload(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of records.")],
    project: Project = None,
    entity: Entity = None,
    tags: Tags = None,
) -> None:
    """Send finished runs to W&B, once each: offline ones, those of other machines, and what did not arrive."""
    from engrams.benchmarks.jobs.progress import Display
    from engrams.reports.wandb.sending import upload as send

    if not send(wandb_of(WandB.online, project, entity, tags), runs, Display(console)):
        raise typer.Exit(1)
