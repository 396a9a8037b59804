"""The command line: ``engrams ...``, the same as ``python -m benchmarks ...``."""

from __future__ import annotations

import signal
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from engrams.benchmarks.errors import UnknownName
from engrams.benchmarks.jobs.processes import start_server
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from engrams.benchmarks.studies.sweeps import Subsets, Sweep
    from engrams.reports.wandb.logger import WandBMode
    from matplotlib.figure import Figure

app = typer.Typer(
    help="Engrams: a benchmark suite for catastrophic forgetting, built on Avalanche.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


class WandB(str, Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


class Format(str, Enum):
    text = "text"
    md = "md"
    csv = "csv"
    tex = "tex"


class BoardFormat(str, Enum):
    text = "text"
    md = "md"
    csv = "csv"


Out = Annotated[Path, typer.Option(help="Folder of the records.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Runs at once; by default one a core.")]
StreamFromDisk = Annotated[
    bool,
    typer.Option(
        "--stream-from-disk", help="Memory is short: read images when they are needed. Slower, with the same results."
    ),
]
WandBOption = Annotated[
    WandB | None,
    typer.Option(help="Where W&B keeps the runs; by default online if WANDB_API_KEY is set, else offline."),
]


@app.command("list")
def list_() -> None:
    """Show the protocols, the strategies, the studies and which data are here."""
    from engrams.benchmarks.data import datasets
    from engrams.benchmarks.protocols import schema as protocol
    from engrams.benchmarks.studies import sweeps as studies
    from engrams.strategies.catalogue import CATALOGUE

    protocols = Table("protocol", "what it is", "data", title="Protocols", title_justify="left")
    for name in protocol.names():
        entry = protocol.get(name)
        protocols.add_row(name, f"{entry.title}; {entry.scenario}-incremental", entry.dataset)
    strategies = Table("strategy", "what it does", title="Strategies", title_justify="left")
    for name, strategy in CATALOGUE.items():
        strategies.add_row(name, strategy.summary)
    questions = Table("study", "what it asks", title="Studies", title_justify="left")
    for name, question in studies.read(studies.FILE).items():
        questions.add_row(name, question.title)
    data = Table("data", "where", title="Data", title_justify="left")
    data.add_row("digits", "comes with scikit-learn")
    for name in datasets.SOURCES:
        root = datasets.find(name)
        data.add_row(name, str(root) if root else "not here; looked for in ENGRAMS_DATA, downloaded when first used")
    for table in (protocols, strategies, questions, data):
        console.print(table)


@app.command()
def run(
    protocol: Annotated[str, typer.Argument(help="Its name, as 'list' shows it.")],
    strategies: Annotated[list[str], typer.Argument(metavar="STRATEGY...", help="One or more names.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ...")] = 3,
    out: Out = Path("runs"),
    wandb: WandBOption = None,
    workers: Workers = None,
    stream_from_disk: StreamFromDisk = False,
) -> None:
    """Run strategies under a protocol; runs that have a complete record already are not run again."""
    start_server()
    wanted = [(protocol, strategy, seed) for strategy in strategies for seed in range(seeds)]
    _do(wanted, out, wandb, workers, stream_from_disk)


@app.command()
def suite(
    name: Annotated[str, typer.Argument(help="A suite of benchmarks/suites.toml: digits or mnist.")],
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds; by default the suite's own numbers.")
    ] = None,
    out: Out = Path("runs"),
    wandb: WandBOption = None,
    workers: Workers = None,
    stream_from_disk: StreamFromDisk = False,
) -> None:
    """Run a whole suite and show its tables."""
    start_server()  # before the imports that take seconds
    from engrams.benchmarks.jobs import suites

    _do(suites.runs_of(name, seeds), out, wandb, workers, stream_from_disk)


@app.command()
def search(
    protocol: Annotated[str, typer.Argument(help="Its name, as 'list' shows it.")],
    strategies: Annotated[list[str], typer.Argument(metavar="STRATEGY...", help="One or more names.")],
    trials: Annotated[int, typer.Option(min=1, help="How many for each strategy.")] = 12,
    out: Annotated[
        Path, typer.Option(help="Folder of Optuna's journals; a search goes on where it was stopped.")
    ] = Path("runs-search"),
    workers: Workers = None,
    stream_from_disk: StreamFromDisk = False,
) -> None:
    """Choose strategies' hyperparameters on the validation stream and write them beside the protocol."""
    start_server()
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.protocols import schema as protocols
    from engrams.benchmarks.studies.search import search as choose

    entry = protocols.get(protocol)
    for strategy in strategies:
        _check_strategy(strategy)
    path = choose(entry, strategies, trials, out, workers, Display(console), stream_from_disk)
    console.print(path.read_text(encoding="utf-8"), highlight=False, markup=False)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="A study of benchmarks/studies.toml, as 'list' shows it.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; by default the study's own number.")] = None,
    out: Out = Path("runs-studies"),
    wandb: WandBOption = None,
    workers: Workers = None,
    only_draw: Annotated[bool, typer.Option("--only-draw", help="Run nothing: draw what is recorded.")] = False,
) -> None:
    """Run a study, show its table and draw its figure; what is recorded already is not run again."""
    if not only_draw:
        start_server()
    from engrams.benchmarks.studies import sweeps as studies

    entry = studies.get(name)
    if isinstance(entry, studies.Sweep):
        _sweep(name, entry, seeds, out, wandb, workers, only_draw)
    else:
        _subsets(name, entry, seeds, out, workers, only_draw)


@app.command()
def table(
    runs: Annotated[Path, typer.Argument(help="Folder of the records.")],
    format: Annotated[Format, typer.Option(help="How to show it.")] = Format.text,
    into: Annotated[
        Path | None, typer.Option(help="Put the Markdown tables into this file, between its two marks.")
    ] = None,
) -> None:
    """Show the comparison tables of the records below a folder."""
    from engrams.reports import marks, store
    from engrams.reports.pages import comparison as tables

    records = store.read_all(runs)
    if not records:
        raise store.RecordError(f"there are no records in {runs}")
    if into is not None:
        marks.replace_between(into, "tables", _compared_in_markdown(records))
    elif format is Format.text:
        _show_compared(records)
    elif format is Format.md:
        typer.echo(_compared_in_markdown(records), nl=False)
    else:
        typer.echo({Format.csv: tables.as_csv, Format.tex: tables.as_latex}[format](_compared(records)), nl=False)


@app.command()
def parity(
    runs: Annotated[Path, typer.Argument(help="Folder of the records.")],
    format: Annotated[BoardFormat, typer.Option(help="How to show it.")] = BoardFormat.text,
    into: Annotated[
        Path | None, typer.Option(help="Put the Markdown board into this file, between its two marks.")
    ] = None,
) -> None:
    """Show published figures, and Avalanche's strategies, beside ours in the records below a folder, with verdicts."""
    from engrams.reports import marks, store
    from engrams.reports.parity import board as parity
    from engrams.reports.parity import tables as parity_tables
    from engrams.strategies.catalogue import CATALOGUE

    records = store.read_all(runs)
    if not records:
        raise store.RecordError(f"there are no records in {runs}")
    boards = parity.compare(parity.read(parity.PUBLISHED), records)
    counterparts = {name: strategy.counterpart for name, strategy in CATALOGUE.items() if strategy.counterpart}
    duels = parity.against_avalanche(records, counterparts)
    if into is not None:
        marks.replace_between(into, "parity", parity_tables.as_markdown(boards, duels))
    elif format is BoardFormat.text:
        _show(parity_tables.as_rich(boards), parity_tables.LEGEND)
        if duels:
            _show([parity_tables.duels_as_rich(duels)], parity_tables.DUEL_LEGEND)
        console.print(parity_tables.summary(boards), highlight=False)
    elif format is BoardFormat.md:
        typer.echo(parity_tables.as_markdown(boards, duels), nl=False)
    else:
        typer.echo(parity_tables.as_csv(boards), nl=False)


@app.command()
def speed() -> None:
    """Measure, as ratios, what loading, penalties, importances, generative replay and a GAN cost. Needs MNIST."""
    from engrams.benchmarks.speed import measure

    measure(console)


def _do(
    wanted: list[tuple[str, str, int]], out: Path, wandb: WandB | None, workers: int | None, stream_from_disk: bool
) -> None:
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.jobs.suite import run_all
    from engrams.benchmarks.protocols import schema as protocol
    from engrams.benchmarks.training.run import Run

    runs = []
    for name, strategy, seed in dict.fromkeys(wanted):
        entry = protocol.get(name)
        _check_strategy(strategy)
        runs.append(Run(entry, strategy, seed, entry.hyperparameters_of(strategy)))
    mode = _wandb_mode(wandb)
    records = run_all(runs, out, mode, workers, Display(console), stream_from_disk)
    _show_compared(records)
    console.print(f"records: {out}/PROTOCOL/STRATEGY/SEED/record.json", highlight=False, soft_wrap=True)
    if mode != "disabled":
        console.print(
            f"W&B ({mode}): {out}/PROTOCOL/STRATEGY/SEED/wandb"
            + ("; 'wandb sync' one to see it on the web" if mode == "offline" else ""),
            highlight=False,
            soft_wrap=True,
        )
    _stop_if_failed(records)


def _wandb_mode(wandb: WandB | None) -> WandBMode:
    from engrams.reports.wandb.logger import default_mode, usable_mode

    return usable_mode(wandb.value if wandb else default_mode())


def _stop_if_failed(records) -> None:
    failed = [record for record in records if not record.complete]
    for record in failed:
        console.print(
            f"failed: {record.protocol} {record.strategy} seed {record.seed}: {record.reason}",
            style="red",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if failed:
        raise typer.Exit(1)


def _sweep(
    name: str,
    sweep: Sweep,
    seeds: int | None,
    out: Path,
    wandb: WandB | None,
    workers: int | None,
    only_draw: bool,
) -> None:
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.studies import sweeps as studies
    from engrams.reports.studies import curves
    from engrams.reports.studies.figures import curves_figure

    points = studies.points_of(name, sweep, seeds)
    if only_draw:
        records = studies.recorded(points, out)
    else:
        records = studies.run_sweep(points, out, _wandb_mode(wandb), workers, Display(console))
    found = studies.curves_of(sweep, points, records)
    _show([curves.as_rich(found)], curves.LEGEND)
    if any(record.complete for record in records.values()):
        _draw(curves_figure(found), out / f"{name}.png")
    _stop_if_failed(records.values())


def _subsets(name: str, entry: Subsets, seeds: int | None, out: Path, workers: int | None, only_draw: bool) -> None:
    from engrams.benchmarks.jobs.progress import Display
    from engrams.benchmarks.studies import adaptive
    from engrams.reports.store import RecordError
    from engrams.reports.studies import adaptive as results
    from engrams.reports.studies.figures import adaptive_figure

    if only_draw:
        recorded = adaptive.recorded(name, entry, out)
        if recorded is None:
            raise RecordError(f"there are no results of this study in {out}; leave out --only-draw to run it")
        found = recorded
    else:
        found = adaptive.run_subsets(name, entry, seeds, out, workers, Display(console))
    _show(results.as_rich(found), results.LEGEND)
    _draw(adaptive_figure(found), out / f"{name}.png")
    console.print(f"results: {adaptive.results_path(name, out)}", highlight=False, soft_wrap=True)


def _draw(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    console.print(f"figure: {path}", highlight=False, soft_wrap=True)


def _check_strategy(name: str) -> None:
    from engrams.strategies.catalogue import CATALOGUE

    if name not in CATALOGUE:
        raise UnknownName("strategy", name, CATALOGUE)


def _compared(records):
    from engrams.reports.pages import comparison as tables
    from engrams.strategies.catalogue import CATALOGUE

    return tables.compare(records, [name for name, strategy in CATALOGUE.items() if strategy.upper_bound])


def _compared_in_markdown(records) -> str:
    from engrams.reports.pages import class_shares, generation
    from engrams.reports.pages import comparison as tables

    parts = [
        tables.as_markdown(_compared(records)),
        class_shares.as_markdown(class_shares.compare(records)),
        generation.as_markdown(generation.compare(records)),
    ]
    return "\n".join(part for part in parts if part)


def _show_compared(records) -> None:
    from engrams.reports.pages import class_shares, generation
    from engrams.reports.pages import comparison as tables

    _show(tables.as_rich(_compared(records)), tables.LEGEND)
    if of_generators := class_shares.compare(records):
        _show(class_shares.as_rich(of_generators), class_shares.LEGEND)
    if generated := generation.compare(records):
        _show(generation.as_rich(generated), generation.LEGEND)


def _show(tables: list[Table], legend: str) -> None:
    # A table that is piped or logged is as wide as it needs to be.
    shown = console if console.is_terminal else Console(width=160)
    for one in tables:
        shown.print(one)
    shown.print(legend, style="dim", highlight=False)


def main() -> None:
    """Run the command line; what the user can mend ends in one line and exit status 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt: workers are ended, not orphaned
    try:
        app()
    except Exception as error:
        if not isinstance(error, _expected_errors()):
            raise
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


def _expected_errors() -> tuple[type[Exception], ...]:
    from engrams.benchmarks.data.datasets import DataError
    from engrams.benchmarks.jobs.processes import ProcessError
    from engrams.benchmarks.jobs.suite import SuiteError
    from engrams.benchmarks.protocols.schema import ProtocolError
    from engrams.benchmarks.studies.sweeps import StudyError
    from engrams.reports.marks import MarkError
    from engrams.reports.parity.board import PublishedError
    from engrams.reports.store import RecordError

    return (
        UnknownName,
        DataError,
        ProtocolError,
        ProcessError,
        StudyError,
        SuiteError,
        MarkError,
        PublishedError,
        RecordError,
    )


if __name__ == "__main__":
    main()
