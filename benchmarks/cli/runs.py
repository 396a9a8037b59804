"""``run``, ``suite``, ``search``, ``study`` and ``speed``: what takes time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import (
    Ask,
    DryRun,
    Entity,
    GPUs,
    On,
    OptionError,
    Out,
    Partition,
    Project,
    ProtocolName,
    Seeds,
    Set,
    StrategyNames,
    StreamFromDisk,
    Tags,
    Time,
    WandBOption,
    Wide,
    Workers,
    place_of,
    seeds_of,
    settings_of,
    wandb_of,
)
from engrams.benchmarks.cli.shown import console, draw, say, show, show_pages, stop_if_damaged, stop_if_failed
from engrams.reports.wandb.settings import DISABLED

if TYPE_CHECKING:
    from engrams.benchmarks.jobs.place import Place
    from engrams.benchmarks.runs import Run
    from engrams.benchmarks.studies.sweeps import Subsets, Sweep
    from engrams.reports.wandb.settings import WandBSettings


@app.command()
def run(
    protocol: ProtocolName,
    strategies: StrategyNames,
    seeds: Seeds = "3",
    set: Set = None,
    experiences: Annotated[
        int | None, typer.Option(min=1, help="Learn and judge the first ones only: a smoke test.")
    ] = None,
    out: Out = Path("runs"),
    wandb: WandBOption = None,
    project: Project = None,
    entity: Entity = None,
    tags: Tags = None,
    workers: Workers = None,
    on: On = "local",
    partition: Partition = None,
    time: Time = None,
    gpus: GPUs = None,
    ask: Ask = None,
    stream_from_disk: StreamFromDisk = False,
    dry_run: DryRun = False,
    wide: Wide = False,
) -> None:
    """Run strategies under a protocol; runs that have a complete record already are not run again."""
    from engrams.benchmarks.names import check_strategy_name
    from engrams.benchmarks.protocols import registry

    settings, wanted = settings_of(set), seeds_of(seeds)
    for strategy in strategies:  # a misspelt name is answered before anything is read
        check_strategy_name(strategy)
    registry.get(protocol, registry.of_protocol(settings))
    place = None if dry_run else place_of(on, workers, partition, time, gpus, ask, out)
    from engrams.benchmarks.jobs.plan import plan

    runs = plan(protocol, strategies, wanted, settings, experiences)
    logged = DISABLED if dry_run else wandb_of(wandb, project, entity, tags)  # which takes a second or two
    _do(runs, out, logged, place, stream_from_disk, wide, workers, settings)


@app.command()
def suite(
    name: Annotated[str, typer.Argument(help="A suite, as 'list' shows it: digits or mnist.")],
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds; by default the suite's own numbers.")
    ] = None,
    out: Out = Path("runs"),
    wandb: WandBOption = None,
    project: Project = None,
    entity: Entity = None,
    tags: Tags = None,
    workers: Workers = None,
    on: On = "local",
    partition: Partition = None,
    time: Time = None,
    gpus: GPUs = None,
    ask: Ask = None,
    stream_from_disk: StreamFromDisk = False,
    dry_run: DryRun = False,
    wide: Wide = False,
) -> None:
    """Run a whole suite and show its tables."""
    from engrams.benchmarks.jobs import suites

    wanted = list(dict.fromkeys(suites.runs_of(name, seeds)))
    place = None if dry_run else place_of(on, workers, partition, time, gpus, ask, out)
    from engrams.benchmarks.jobs.plan import plan
    from engrams.benchmarks.protocols import registry

    protocols = {name: registry.get(name) for name in dict.fromkeys(protocol for protocol, *_ in wanted)}
    runs = [one for protocol, strategy, seed in wanted for one in plan(protocols[protocol], [strategy], [seed])]
    logged = DISABLED if dry_run else wandb_of(wandb, project, entity, tags)  # which takes a second or two
    _do(runs, out, logged, place, stream_from_disk, wide, workers)


@app.command()
def search(
    protocol: ProtocolName,
    strategies: StrategyNames,
    trials: Annotated[int, typer.Option(min=1, help="How many for each strategy.")] = 12,
    out: Annotated[
        Path, typer.Option(help="Folder of Optuna's journals; a search goes on where it was stopped.")
    ] = Path("runs-search"),
    wandb: WandBOption = None,
    project: Project = None,
    entity: Entity = None,
    tags: Tags = None,
    workers: Workers = None,
    stream_from_disk: StreamFromDisk = False,
) -> None:
    """Choose strategies' hyperparameters on the validation stream and write them beside the protocol's file."""
    from engrams.benchmarks.names import check_strategy_name, strategy_called
    from engrams.benchmarks.protocols import registry

    for strategy in strategies:
        check_strategy_name(strategy)
    entry = registry.get(protocol)
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.studies.search import search as choose

    chosen = [strategy_called(strategy) for strategy in strategies]
    display = Display(console)
    settings = wandb_of(wandb, project, entity, tags)
    path = choose(entry, chosen, trials, out, workers, display, stream_from_disk, settings)
    say(path.read_text(encoding="utf-8"))
    say(f"written to {path}")
    found = registry.read_chosen(path)
    for one in chosen:
        for key, value in found[one.name].hyperparameters.items():
            if end := found[one.name].end_of_range(key):
                say(f"{one.name}: {key} {value:g} is at the {end} end of what was tried; a better one may lie beyond")
    display.say_afterwards()


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="A study, as 'list' shows it.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; by default the study's own number.")] = None,
    out: Out = Path("runs-studies"),
    wandb: WandBOption = None,
    project: Project = None,
    entity: Entity = None,
    tags: Tags = None,
    workers: Workers = None,
    on: On = "local",
    partition: Partition = None,
    time: Time = None,
    gpus: GPUs = None,
    ask: Ask = None,
    only_draw: Annotated[bool, typer.Option("--only-draw", help="Run nothing: draw what is recorded.")] = False,
    wide: Wide = False,
) -> None:
    """Run a study, show its table and draw its figure; what is recorded already is not run again."""
    from engrams.benchmarks.studies import listing

    listing.check(name)
    place = None if only_draw else place_of(on, workers, partition, time, gpus, ask, out)
    from engrams.benchmarks.studies import sweeps

    entry = sweeps.get(name)
    settings = DISABLED if only_draw else wandb_of(wandb, project, entity, tags)
    if isinstance(entry, sweeps.Sweep):
        _sweep(name, entry, seeds, out, settings, place, wide)
    elif on != "local":
        raise OptionError(f"--on {on}: the runs of {name} leave no records; it goes on here only")
    else:
        _subsets(name, entry, seeds, out, settings, workers, only_draw, wide)


@app.command()
def speed() -> None:
    """Measure, as ratios, what loading, penalties, importances, logging, replay and a GAN cost. Needs MNIST."""
    from engrams.benchmarks.speed import measure

    measure(show)


def _do(
    runs: list[Run],
    out: Path,
    wandb: WandBSettings,
    place: Place | None,
    stream_from_disk: bool,
    wide: bool,
    workers: int | None,
    by_hand: Mapping[str, Any] | None = None,
) -> None:
    from engrams.benchmarks.jobs.plan import what_is_stale
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.jobs.suite import check_each, run_all

    for line in what_is_stale(runs, by_hand or {}):
        say(line, style="yellow")
    if place is None:
        check_each(runs, stream_from_disk)
        _show_plan(runs, out, workers, wide)
        return
    display = Display(console)
    records = run_all(runs, out, wandb, place, display, stream_from_disk)
    show_pages(records, wide)
    say(f"records: {out}/PROTOCOL/STRATEGY/SEED/record.json")
    display.say_afterwards()
    stop_if_failed(records)


def _show_plan(runs: list[Run], out: Path, workers: int | None, wide: bool) -> None:
    from engrams.benchmarks.jobs.limits import forecast
    from engrams.benchmarks.jobs.suite import finished
    from engrams.reports.render import Sheet
    from engrams.reports.store import NewerRecord, RecordError

    def there(run: Run) -> str:
        try:
            return "complete" if finished(run, out) is not None else "to be run"
        except NewerRecord:
            raise
        except RecordError:
            return "damaged, to be run again"

    found = [there(run) for run in runs]
    rows = [
        {
            "run": run.name,
            "epochs": str(run.upper_limit_of_epochs),
            "what is there": what,
        }
        for run, what in zip(runs, found, strict=True)
    ]
    show(
        [Sheet(f"{len(runs)} run{'s' * (len(runs) != 1)}", rows, left=("run", "what is there"), spare=("epochs",))],
        wide=wide,
    )
    say(f"{len(runs) - found.count('complete')} of {len(runs)} to be run; records go to {out}")
    if owed := [run for run, what in zip(runs, found, strict=True) if what != "complete"]:
        expected = forecast(owed, out, workers)
        for line in (expected.line(), *expected.too_much(out)):
            say(line)


def _sweep(
    name: str,
    sweep: Sweep,
    seeds: int | None,
    out: Path,
    wandb: WandBSettings,
    place: Place | None,
    wide: bool,
) -> None:
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.studies import sweeps
    from engrams.reports.store import RecordError
    from engrams.reports.studies import curves
    from engrams.reports.studies.figures import curves_figure

    points = sweeps.points_of(name, sweep, seeds)
    display = Display(console)
    damaged: list[RecordError] = []
    if place is not None:
        records = sweeps.run_sweep(points, out, wandb, place, display)
    elif not (records := sweeps.recorded(points, out, damaged)):
        raise RecordError(f"there are no records of this study in {out}; leave out --only-draw to run it")
    found = sweeps.curves_of(sweep, points, records)
    show([curves.sheet(found)], found.legend, wide)
    if any(record.complete for record in records.values()):
        draw(curves_figure(found), out / f"{name}.png")
    display.say_afterwards()
    stop_if_failed(records.values())
    stop_if_damaged(damaged)


def _subsets(
    name: str,
    entry: Subsets,
    seeds: int | None,
    out: Path,
    wandb: WandBSettings,
    workers: int | None,
    only_draw: bool,
    wide: bool,
) -> None:
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.studies import adaptive
    from engrams.reports.store import RecordError
    from engrams.reports.studies import adaptive as results
    from engrams.reports.studies.figures import adaptive_figure

    display = Display(console)
    if only_draw:
        recorded = adaptive.recorded(name, entry, out)
        if recorded is None:
            raise RecordError(f"there are no results of this study in {out}; leave out --only-draw to run it")
        found = recorded
    else:
        found = adaptive.run_subsets(name, entry, seeds, out, workers, display, wandb)
    show(results.sheets(found), results.LEGEND, wide)
    draw(adaptive_figure(found), out / f"{name}.png")
    say(f"results: {adaptive.results_path(name, out)}")
    display.say_afterwards()
