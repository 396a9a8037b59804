"""What the pictures share: colours, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

BLUE, ORANGE, RED, GREEN, PURPLE = "#0072b2", "#e69f00", "#d55e00", "#009e73", "#aa4499"
"""Okabe and Ito's, and one of Tol's: colour-blind readers can tell them apart."""
LAST = 2500
"""Milliseconds for which an animation's last frame stays."""


def write_picture(figure: Figure, path: Path) -> None:
    """Writes a PNG file."""
    figure.savefig(path, metadata={"Software": None})


def write_animation(figures: Iterable[Figure], path: Path, milliseconds: int) -> None:
    """Writes a GIF file that goes round and round; all figures have one size.

    Args:
        figures: the frames.
        path: of the file.
        milliseconds: for which a frame stays; the last stays longer.
    """
    frames = [_drawn(figure) for figure in figures]
    palette = frames[-1].quantize(128)  # one for all, so that nothing flickers
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [milliseconds] * len(others) + [LAST]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def _drawn(figure: Figure) -> Image.Image:
    file = BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")
