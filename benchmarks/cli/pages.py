"""``pages``: the committed pages of results, written from records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.shown import say, stop_if_damaged
from engrams.reports.files import found_below

if TYPE_CHECKING:
    from engrams.reports.publish import Described, StudyPage
    from engrams.reports.store import RecordError

SHOWN = ("split-mnist/task", "split-mnist/domain", "split-mnist/class", "agem2019-split-cifar100")
"""The protocols of the README's table."""
ROWS = (
    *("naive", "l2", "ewc", "avalanche-ewc", "mas", "avalanche-mas", "si", "avalanche-si", "avalanche-rwalk"),
    *("avalanche-lwf", "replay", "er", "dgr-vae", "joint"),
)
PICTURED = {
    "split-mnist/task": ("naive", "ewc", "mas", "dgr-vae"),
    "split-mnist/class": ("naive", "ewc", "mas", "dgr"),
}
"""The protocols of the README's picture, and the strategies under each."""


@app.command()
def pages(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of records.")],
    out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("pages"),
    studies: Annotated[Path | None, typer.Option(help="Folder of the studies' records, if there is one.")] = None,
    readme: Annotated[
        Path | None, typer.Option(help="A Markdown file with the marks <!-- overview --> and <!-- end of overview -->.")
    ] = None,
    methods: Annotated[
        Path | None, typer.Option(help="Folder of the methods' pages, whose tables are written anew.")
    ] = None,
) -> None:
    """Write the results as pages: one a protocol, the parity board, the studies, a list of them."""
    from engrams.benchmarks.cli.tables import compared
    from engrams.reports import marks, matrices, over_experiences, publish, render, store
    from engrams.reports.methods import fill
    from engrams.reports.pages.comparison import by_protocol

    damaged: list[store.RecordError] = []
    records = store.read_records(runs, damaged=damaged)
    described = _described()
    made, streams, listed = {}, {}, []
    for name, group in sorted(by_protocol(one for one in records if one.on_test_data).items()):
        pictures = {
            f"{' '.join(path.relative_to(runs / name).parts[:-2])}, seed {path.parent.name}": publish.linked(path, out)
            for path in sorted(found_below(runs / name, "generated.png"))
        }
        picture = over_experiences.of(group)
        stream = Path(publish.page_of(name)).with_suffix(".png") if len(picture.lines) > 1 else None
        made[publish.page_of(name)] = publish.protocol_page(name, described.get(name), group, stream, pictures)
        if stream:
            streams[stream] = picture
        listed.append((name, described[name].title if name in described else "a protocol of somebody's own"))
    boards, duels = compared(records)
    made["parity.md"] = publish.parity_page(boards, duels)
    others = [("parity", "published figures beside ours, and Avalanche's strategies beside ours")]
    if studies is not None:
        made["studies.md"] = publish.studies_page(_studies(studies, damaged), out)
        others.append(("studies", "questions that many runs answer with one figure"))
    made["README.md"] = publish.index(listed, others)
    publish.write(out, made)
    for stream, picture in streams.items():
        over_experiences.figure(picture).savefig(out / stream, metadata={"Software": None})
    if readme is not None:
        marks.replace_between(readme, "overview", render.as_markdown([publish.overview(records, SHOWN, ROWS)], ""))
        found = [one for protocol, rows in PICTURED.items() for one in matrices.of(records, [protocol], rows)]
        matrices.figure(found).savefig(out / "matrices.png", metadata={"Software": None})
    for path in sorted(methods.glob("*.md")) if methods else ():
        fill(path, records, boards)
    say(f"pages: {out / 'README.md'}")
    stop_if_damaged(damaged)


def _described() -> dict[str, Described]:
    from engrams.benchmarks.protocols import registry
    from engrams.reports.publish import Described

    return {name: Described(title, registry.as_toml(registry.get(name))) for name, title, _ in registry.listed()}


def _studies(folder: Path, damaged: list[RecordError]) -> Iterator[StudyPage]:
    """Every study that has results in the folder; its figure is drawn beside them."""
    from engrams.benchmarks.studies import adaptive, listing, sweeps
    from engrams.reports.publish import StudyPage
    from engrams.reports.studies import adaptive as results
    from engrams.reports.studies import curves
    from engrams.reports.studies.figures import adaptive_figure, curves_figure

    for name, study in sweeps.read(listing.FILE).items():
        figure = folder / f"{name}.png"
        if isinstance(study, sweeps.Sweep):
            points = sweeps.points_of(name, study)
            if not (records := sweeps.recorded(points, folder, damaged)):
                continue
            found = sweeps.curves_of(study, points, records)
            curves_figure(found).savefig(figure, metadata={"Software": None})
            yield StudyPage(name, [curves.sheet(found)], found.legend, figure, study.source, study.finding)
        elif outcomes := adaptive.recorded(name, study, folder):
            adaptive_figure(outcomes).savefig(figure, metadata={"Software": None})
            yield StudyPage(name, results.sheets(outcomes), results.LEGEND, figure, study.source, study.finding)
