"""An accuracy matrix growing row by row: how it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engrams.reports.figures import draw_accuracy_matrix
from engrams.reports.store import read_records

PROTOCOL, STRATEGIES = "split-mnist/class", ("naive", "replay", "dgr")


def matrices(records: Path) -> dict[str, NDArray[np.float64]]:
    """Returns strategy -> the matrix of its first committed run."""
    runs = read_records(records / PROTOCOL)
    return {name: runs.matrices(PROTOCOL, name)[0] for name in STRATEGIES}


def animation(records: Path) -> Iterator[Figure]:
    """Yields a frame an experience: the rows so far, and the mean over what has been learned."""
    shown = matrices(records)
    return (frame(shown, learned) for learned in range(1, 1 + len(next(iter(shown.values())))))


def frame(shown: dict[str, NDArray[np.float64]], learned: int) -> Figure:
    """Returns the matrices after some experiences; what has not been measured yet is left blank."""
    figure = Figure(figsize=(3.0 * len(shown), 3.3), dpi=100, layout="constrained")
    figure.suptitle(f"{PROTOCOL}, after {learned} of {len(next(iter(shown.values())))} experiences", fontsize="medium")
    row = figure.subplots(1, len(shown))
    for axes, (name, matrix) in zip(row, shown.items(), strict=True):
        so_far = matrix[learned - 1, :learned].mean()
        draw_accuracy_matrix(axes, rows_so_far(matrix, learned))
        axes.set_title(f"{name}: {100 * so_far:.1f} % on what it met", fontsize="small")
        if axes is not row[0]:
            axes.set_ylabel("")
    return figure


def rows_so_far(matrix: NDArray[np.float64], learned: int) -> NDArray[np.float64]:
    """Returns the matrix with NaN in the rows that are still to come."""
    return np.where(np.arange(len(matrix))[:, None] < learned, matrix, np.nan)
