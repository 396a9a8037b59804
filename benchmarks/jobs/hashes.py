"""Every process of a run has the same hashes of texts, and so the same order of a set.

Else a function of one's own that numbers classes by ``set(names)`` would make another stream in every command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "PYTHONHASHSEED"


def variables() -> dict[str, str]:
    """Returns what a Python has to be started with: what this one was, if anything."""
    return {NAME: os.environ.get(NAME, "0")}


@contextmanager
def the_same() -> Iterator[None]:
    """Every Python that is started in the block has them."""
    before = os.environ.get(NAME)
    os.environ.update(variables())
    try:
        yield
    finally:
        if before is None:
            del os.environ[NAME]
