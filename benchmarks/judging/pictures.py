"""Pictures are shown, not measured: one that is missing must not cost a run its result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path


def drawn(draw: Callable[[], Path]) -> Path | None:
    """Returns what ``draw`` returns, the path of a picture; a warning and None where it cannot be drawn or written."""
    try:
        return draw()
    except Exception as error:  # a full disk, a font that is missing: whatever it is, the numbers are there
        warnings.warn(f"a picture is missing: {type(error).__name__}: {error}", stacklevel=2)
        return None
