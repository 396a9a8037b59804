"""Accuracy matrices side by side: the mean over seeds of each row of a comparison table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engrams.reports.figures import draw_accuracy_matrix
from engrams.reports.store import RecordError, Records

COLUMNS = 4


class MeanMatrix(NamedTuple):
    """The mean accuracy matrix of a row; fractions in [0, 1], [trained, judged]."""

    protocol: str
    strategy: str
    seeds: int
    matrix: NDArray[np.float64]


def of(records: Records, protocol: str | None = None, strategies: Sequence[str] | None = None) -> list[MeanMatrix]:
    """Returns the mean matrix of every row, in the order of ``strategies`` or else of the records.

    Args:
        records: of any number of rows; failed runs are left out.
        protocol: only of this one; None for all.
        strategies: only these rows, as tables name them; None for all.

    Raises:
        RecordError: no complete record is left.
    """
    rows = dict.fromkeys(
        (one.protocol, one.row)
        for one in records
        if one.complete and one.on_test_data and protocol in (None, one.protocol)
    )
    if strategies:
        chosen = [row for row in rows if row[1] in strategies]
        rows = dict.fromkeys(sorted(chosen, key=lambda row: (row[0], strategies.index(row[1]))))
    if not rows:
        raise RecordError("there is no complete record of what is asked for")
    found = []
    for of_protocol, strategy in rows:
        matrices = records.matrices(of_protocol, strategy)
        found.append(MeanMatrix(of_protocol, strategy, len(matrices), matrices.mean(axis=0)))
    return found


def figure(matrices: Sequence[MeanMatrix]) -> Figure:
    """Returns the matrices as heat maps, at most four in a line, in one range of colours."""
    columns = min(COLUMNS, len(matrices))
    lines = -(-len(matrices) // columns)
    side = max(2.2, 0.9 + 0.42 * max(one.matrix.shape[1] for one in matrices))
    # A matrix of one row (trained once on everything) is as flat as it is; its place is not.
    picture = Figure(figsize=(side * columns + 0.6, (side + 0.35) * lines), dpi=110, layout="constrained")
    grid = picture.subplots(lines, columns, squeeze=False)
    several = len({one.protocol for one in matrices}) > 1
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    for axes, one in zip(grid.flat, matrices, strict=False):
        image = draw_accuracy_matrix(axes, one.matrix)
        seeds = f"{one.seeds} seed" + ("s" if one.seeds > 1 else "")
        title = f"{one.protocol}\n{one.strategy}" if several else one.strategy
        axes.set_title(f"{title}: ACC {100 * one.matrix[-1].mean():.1f} ({seeds})", fontsize="medium")
    if not several:
        picture.suptitle(matrices[0].protocol)
    picture.colorbar(image, ax=grid, ticks=[0, 0.5, 1], format=lambda value, _: f"{100 * value:.0f}", shrink=0.8)
    return picture


def write_csv(matrices: Sequence[MeanMatrix], path: Path) -> None:
    """Writes one line a cell: protocol, strategy, seeds, trained, judged, accuracy in [0, 1]."""
    pd.DataFrame(
        [
            (one.protocol, one.strategy, one.seeds, trained, judged, accuracy)
            for one in matrices
            for trained, row in enumerate(one.matrix.tolist())
            for judged, accuracy in enumerate(row)
        ],
        columns=["protocol", "strategy", "seeds", "trained", "judged", "accuracy"],
    ).to_csv(path, index=False)
