"""Accuracy matrices side by side: the mean over seeds of each row of a comparison table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engrams.reports.errors import near_or
from engrams.reports.figures import draw_accuracy_matrix
from engrams.reports.pages.comparison import complete_by_row
from engrams.reports.store import RecordError, Records

COLUMNS = 4


class MeanMatrix(NamedTuple):
    """The mean accuracy matrix of a row; fractions in [0, 1], [trained, judged]."""

    protocol: str
    strategy: str
    seeds: int
    matrix: NDArray[np.float64]


def of(records: Records, protocols: Sequence[str] = (), strategies: Sequence[str] = ()) -> list[MeanMatrix]:
    """Returns the mean matrix of every row, by protocol.

    Args:
        records: of any number of rows; failed runs are left out.
        protocols: only these, in this order; none for all.
        strategies: only these rows, as tables name them, in this order; none for all.

    Raises:
        RecordError: no complete record is left, or the seeds of a row were run under different settings.
    """
    there = complete_by_row(
        one
        for one in records
        if (not protocols or one.protocol in protocols) and (not strategies or one.row in strategies)
    )
    if not there:
        complete = [one for one in records if one.complete and one.on_test_data]
        for what, wanted, known in (
            ("protocol", protocols, {one.protocol for one in complete}),
            ("strategy", strategies, {one.row for one in complete}),
        ):
            if absent := next((name for name in wanted if name not in known), None):
                hint = near_or(f"there are {', '.join(sorted(known)) or 'none'}", absent, known)
                raise RecordError(f"there is no complete record of the {what} {absent!r}; {hint}")
        raise RecordError("there is no complete record of what is asked for")

    def order(row: tuple[str, str]) -> tuple[int, int]:
        protocol, strategy = row
        return (protocols.index(protocol) if protocols else 0, strategies.index(strategy) if strategies else 0)

    found = []
    for protocol, strategy in sorted(there, key=order):
        matrices = np.array([one.accuracy_matrix for one in there[protocol, strategy]])
        found.append(MeanMatrix(protocol, strategy, len(matrices), matrices.mean(axis=0)))
    return found


def figure(matrices: Sequence[MeanMatrix]) -> Figure:
    """Returns the matrices as heat maps in one range of colours, protocol by protocol, at most four in a line."""
    groups: dict[str, list[MeanMatrix]] = {}
    for one in matrices:
        groups.setdefault(one.protocol, []).append(one)
    columns = min(COLUMNS, max(map(len, groups.values())))
    lines = [-(-len(group) // columns) for group in groups.values()]
    side = 0.7 + 0.3 * max(5, *(one.matrix.shape[1] for one in matrices))
    size = (side * columns + 0.4, (side + 0.2) * sum(lines) + 0.3 * len(lines))
    picture = Figure(figsize=size, dpi=130, layout="constrained")
    parts = picture.subfigures(len(groups), height_ratios=lines, squeeze=False)
    for part, count, (protocol, group) in zip(parts.flat, lines, groups.items(), strict=True):
        part.suptitle(protocol, fontsize="medium", fontweight="bold")
        grid = part.subplots(count, columns, squeeze=False)
        for axes in grid.flat[len(group) :]:
            axes.set_visible(False)
        for index, (axes, one) in enumerate(zip(grid.flat, group, strict=False)):
            draw_accuracy_matrix(axes, one.matrix)
            seeds = f"{one.seeds} seed" + ("s" if one.seeds > 1 else "")
            axes.set_title(f"{one.strategy}: {100 * one.matrix[-1].mean():.1f} % ({seeds})", fontsize="small")
            if index % columns:
                axes.set_ylabel("")
            if index + columns < len(group):
                axes.set_xlabel("")
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
