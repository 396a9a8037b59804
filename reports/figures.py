"""Pictures of records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's: told apart by colour-blind readers too; lines have markers besides."""
MARKERS = "osD^vPX"


def accuracy_matrix_figure(accuracy_matrix: Sequence[Sequence[float]], title: str) -> Figure:
    """The accuracy matrix as a heat map, a percentage in every cell.

    Args:
        accuracy_matrix: R, fractions in [0, 1]; rows are trained experiences, columns are the ones judged on.
        title: above the picture.
    """
    rows, columns = len(accuracy_matrix), len(accuracy_matrix[0])
    width, height = 1.8 + 0.5 * columns, 1.4 + 0.42 * rows
    figure = Figure(figsize=(width, height), dpi=110)  # every run has one: a layout engine would draw it twice
    bottom, up = 0.6 / height, (height - 1.0) / height
    axes = figure.add_axes((0.7 / width, bottom, (width - 1.5) / width, up))
    picture = draw_accuracy_matrix(axes, accuracy_matrix)
    axes.set_title(title, fontsize="medium")
    figure.colorbar(
        picture,
        cax=figure.add_axes((1 - 0.7 / width, bottom, 0.15 / width, up)),
        ticks=[0, 0.5, 1],
        format=lambda value, _: f"{100 * value:.0f}",
    )
    return figure


def draw_accuracy_matrix(axes: Axes, accuracy_matrix: Sequence[Sequence[float]] | NDArray[np.floating]) -> AxesImage:
    """Draws the heat map into axes, a percentage in every cell; returns the image, for a bar of its colours.

    What is NaN is left blank.
    """
    rows, columns = np.shape(accuracy_matrix)
    picture = axes.imshow(accuracy_matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for i, row in enumerate(accuracy_matrix):
        for j, accuracy in enumerate(row):
            shown = "" if np.isnan(accuracy) else f"{100 * accuracy:.0f}"
            axes.text(j, i, shown, ha="center", va="center", color="white" if accuracy < 0.6 else "black")
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows), [str(i) for i in range(rows)] if rows > 1 else ["all"])
    axes.set_xlabel("accuracy (%) on experience")
    axes.set_ylabel("after training on")
    return picture


def sheet_figure(images: NDArray[np.floating], title: str, row: str, names: Sequence[str] | None = None) -> Figure:
    """Images in rows.

    Args:
        images: in [0, 1] (what lies outside is cut, NaN left blank), [rows, images, channels, height, width].
        title: above the picture.
        row: what a row is.
        names: of the rows; None to number them.
    """
    rows, columns, channels, height, width = images.shape
    # [rows, height, columns, width, channels]: the images side by side, a pixel of white between them.
    framed = np.pad(
        np.nan_to_num(images, nan=1.0).clip(0, 1), [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1)], constant_values=1.0
    )
    sheet = framed.transpose(0, 3, 1, 4, 2).reshape(rows * (height + 2), columns * (width + 2), channels)
    figure = Figure(figsize=(1.2 + 0.42 * columns, 0.6 + 0.42 * rows), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * (height + 2) for row in range(rows)], names or [str(row) for row in range(rows)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(row)
    axes.set_title(title, fontsize="medium")
    return figure
