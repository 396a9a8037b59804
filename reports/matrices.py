"""Accuracy matrices side by side: the mean over seeds of each row of a comparison table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
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
CHARACTER, LINE = 0.07, 0.14
"""Inches that a title's character is wide, and its line high."""
UNBROKEN = "\N{NO-BREAK SPACE}"


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
    side = 0.7 + 0.3 * max(5, *(one.matrix.shape[1] for one in matrices))
    titles = {name: [_title(one, side) for one in group] for name, group in groups.items()}
    heights = [0.3 + sum(side + 0.2 + more for more in _more_lines(own, columns)) for own in titles.values()]
    picture = Figure(figsize=(side * columns + 0.4, sum(heights)), dpi=130, layout="constrained")
    parts = picture.subfigures(len(groups), height_ratios=heights, squeeze=False)
    for part, (protocol, group) in zip(parts.flat, groups.items(), strict=True):
        part.suptitle(protocol, fontsize="medium", fontweight="bold")
        grid = part.subplots(-(-len(group) // columns), columns, squeeze=False)
        for axes in grid.flat[len(group) :]:
            axes.set_visible(False)
        for index, (axes, one) in enumerate(zip(grid.flat, group, strict=False)):
            draw_accuracy_matrix(axes, one.matrix)
            axes.set_title(titles[protocol][index], fontsize="small")
            if index % columns:
                axes.set_ylabel("")
            if index + columns < len(group):
                axes.set_xlabel("")
    return picture


def _title(one: MeanMatrix, width: float) -> str:
    """What is above a matrix, in lines of at most so many inches; ACC and of how many seeds stay together."""
    seeds = f"{one.seeds} seed" + ("s" if one.seeds > 1 else "")
    acc = f"{100 * one.matrix[-1].mean():.1f} % ({seeds})".replace(" ", UNBROKEN)
    return fill(f"{one.strategy}: {acc}", int(width / CHARACTER)).replace(UNBROKEN, " ")


def _more_lines(titles: Sequence[str], columns: int) -> list[float]:
    """The inches that the titles of each line of matrices take beyond a line of text."""
    lines = [titles[first : first + columns] for first in range(0, len(titles), columns)]
    return [LINE * max(title.count("\n") for title in line) for line in lines]


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
