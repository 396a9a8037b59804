"""Pictures of records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's: told apart by colour-blind readers too; lines have markers besides."""
MARKERS = "osD^vPX"


class HeatMap:
    """Saves accuracy matrices of one size as heat maps, a percentage in every cell.

    Every run has one, and most runs of a suite have the same size: axes, ticks and colour bar, most of the work, are
    drawn once.
    """

    def __init__(self, rows: int, columns: int):
        width, height = 1.8 + 0.5 * columns, 1.4 + 0.42 * rows
        figure = Figure(figsize=(width, height), dpi=110)
        bottom, up = 0.6 / height, (height - 1.0) / height
        self._axes = figure.add_axes((0.7 / width, bottom, (width - 1.5) / width, up))
        # Of NaN, since Matplotlib before 3.11 draws an image with all the rest though it is animated.
        self._picture = draw_accuracy_matrix(self._axes, np.full((rows, columns), np.nan))
        self._axes.set_title(" ", fontsize="medium")
        figure.colorbar(
            self._picture,
            cax=figure.add_axes((1 - 0.7 / width, bottom, 0.15 / width, up)),
            ticks=[0, 0.5, 1],
            format=lambda value, _: f"{100 * value:.0f}",
        )
        self._differing = [self._picture, *self._axes.spines.values(), *self._axes.texts, self._axes.title]
        for artist in self._differing:
            artist.set_animated(True)  # left out where all is drawn
        self._canvas = FigureCanvasAgg(figure)
        self._canvas.draw()
        self._common = self._canvas.copy_from_bbox(figure.bbox)

    def save(self, accuracy_matrix: Sequence[Sequence[float]], title: str, path: Path) -> None:
        """Writes one as a PNG. Not safe to be called from two threads at once.

        Args:
            accuracy_matrix: R, fractions in [0, 1]; rows are trained experiences, columns are the ones judged on.
            title: above the picture.
            path: of the file.
        """
        self._picture.set_data(accuracy_matrix)
        for text, accuracy in zip(self._axes.texts, np.ravel(accuracy_matrix), strict=True):
            shown, colour = _in_cell(accuracy)
            text.set(text=shown, color=colour)
        self._axes.title.set_text(title)
        self._canvas.restore_region(self._common)
        for artist in self._differing:
            self._axes.draw_artist(artist)
        imsave(path, self._canvas.buffer_rgba())


@lru_cache(maxsize=8)
def heat_map_of_size(rows: int, columns: int) -> HeatMap:
    """Returns the one that saves matrices of this size."""
    return HeatMap(rows, columns)


def draw_accuracy_matrix(axes: Axes, accuracy_matrix: Sequence[Sequence[float]] | NDArray[np.floating]) -> AxesImage:
    """Draws the heat map into axes, a percentage in every cell; returns the image, for a bar of its colours.

    What is NaN is left blank.
    """
    rows, columns = np.shape(accuracy_matrix)
    picture = axes.imshow(accuracy_matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for i, row in enumerate(accuracy_matrix):
        for j, accuracy in enumerate(row):
            shown, colour = _in_cell(accuracy)
            axes.text(j, i, shown, ha="center", va="center", color=colour)
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows), [str(i) for i in range(rows)] if rows > 1 else ["all"])
    axes.set_xlabel("accuracy (%) on experience")
    axes.set_ylabel("after training on")
    return picture


def _in_cell(accuracy: float) -> tuple[str, str]:
    """What stands in its cell, and in what colour it can be read there."""
    shown = "" if np.isnan(accuracy) else f"{100 * accuracy:.0f}"
    return shown, "white" if accuracy < 0.6 else "black"


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
