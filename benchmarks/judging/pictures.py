"""Pictures are shown, not measured: one that is missing must not cost a run its result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from engrams.benchmarks.data.streams import brightness
from engrams.benchmarks.judging.privacy import Nearest
from engrams.benchmarks.protocols.schema import Images
from engrams.reports.figures import sheet_figure

NEAREST = "nearest.png"


def drawn(draw: Callable[[], Path]) -> Path | None:
    """Returns what ``draw`` returns, the path of a picture; a warning and None where it cannot be drawn or written."""
    try:
        return draw()
    except Exception as error:  # a full disk, a font that is missing: whatever it is, the numbers are there
        warnings.warn(f"a picture is missing: {type(error).__name__}: {error}", stacklevel=2)
        return None


def draw_nearest(nearest: Nearest, images: Images, title: str, folder: Path) -> Path:
    """Writes the generated images that are nearest to a training image, above what is nearest to each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = torch.stack([brightness(x, images) for x in nearest]).numpy()
    sheet_figure(rows, title, "", ["generated", "training", "test"]).savefig(folder / NEAREST)
    return folder / NEAREST
