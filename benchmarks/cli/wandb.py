"""``upload``, ``dashboards`` and ``sweep``: what concerns W&B alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import Entity, Project, ProtocolName, Tags
from engrams.benchmarks.cli.shown import console, say, stop_if_damaged

if TYPE_CHECKING:
    from engrams.reports.store import RecordError


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
    from engrams.reports.wandb.settings import resolve

    if not send(resolve("online", project, entity, tags or ()), runs, Display(console)):
        raise typer.Exit(1)


@app.command()
def dashboards(
    records: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUNS...]", help="Records whose parity board the report shows; folders or wandb:..."),
    ] = None,
    project: Project = None,
    entity: Entity = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Save nothing: print the specification as JSON.")] = False,
) -> None:
    """Save a view and a report of the project in W&B; saved again, they are written over."""
    from engrams.reports.wandb import dashboards, sending
    from engrams.reports.wandb.settings import resolve

    damaged: list[RecordError] = []
    parity = _parity(records, damaged) if records else ""
    if dry_run:
        import json

        settings = resolve("offline", project, entity)
        made = dashboards.specification(settings.entity or "ENTITY", settings.project, parity)
        typer.echo(json.dumps(made, indent=1))
        stop_if_damaged(damaged)
        return
    for line in sending.dashboards(resolve("online", project, entity), parity):
        say(f"W&B: {line}")
    stop_if_damaged(damaged)


@app.command()
def sweep(
    protocol: ProtocolName,
    strategy: Annotated[str, typer.Argument(help="One with a range to search, as 'list' shows it.")],
) -> None:
    """Print the W&B sweep file of a strategy: 'engrams sweep ... > sweep.yaml', then 'wandb sweep sweep.yaml'."""
    import yaml

    from engrams.benchmarks.names import strategy_called
    from engrams.benchmarks.protocols import registry
    from engrams.reports.errors import UserError
    from engrams.reports.wandb.sweeps import sweep_of
    from engrams.strategies.catalogue import parts_of
    from engrams.strategies.references import absolute

    reference = registry.get(protocol).reference
    entry = strategy_called(strategy)
    if not entry.search:
        raise UserError(f"{entry.name} has no hyperparameter to search")
    ranges = {key: (space.low, space.high) for key, space in entry.search.items()}
    parts = [absolute(part, Path.cwd()) if ":" in part else part for part in parts_of(entry.reference)]
    made = sweep_of(reference, "+".join(parts), ranges)  # an agent may be started in another folder
    typer.echo(yaml.safe_dump(made, sort_keys=False), nl=False)


def _parity(records: list[str], damaged: list[RecordError]) -> str:
    from engrams.benchmarks.cli.tables import compared
    from engrams.reports import store
    from engrams.reports.parity import tables

    return tables.as_markdown(*compared(store.read_records(*records, mark=False, damaged=damaged)))
