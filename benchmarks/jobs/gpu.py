"""One GPU for several runs: each begins when there is room for what runs like it have taken."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

CONTEXT = 600 * 2**20
"""Bytes that CUDA itself takes of a GPU for a process, about."""
MARGIN = 1.1
"""The allocator takes memory in blocks, which leave gaps."""
WAITS = 2.0
"""Seconds between two looks at a GPU that has no room."""


@contextmanager
def room(device: str, measured: Callable[[], int | None]) -> Iterator[None]:
    """Waits until a GPU has room for a run, and takes it for as long as the block lasts; on a CPU it does nothing.

    What PyTorch has taken of a GPU once it keeps for its process, so that the run finds it and others see it gone. Only
    one process at a time looks and takes. A run that could never have what it needs begins when it comes.

    Args:
        device: torch's name of it.
        measured: returns the most bytes that a run like it has held there, asked anew at every look; None where none
            has been measured yet, for which half of the GPU is taken, so that a second one fits beside it. Not called
            for a CPU.
    """
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.empty_cache()  # of an earlier run of this process
    while not _may_begin(device, measured()):
        time.sleep(WAITS)
    try:
        yield
    finally:
        torch.cuda.empty_cache()


def _may_begin(device: str, peak: int | None) -> bool:
    with FileLock(_lock(device)):
        free, whole = torch.cuda.mem_get_info(device)
        wanted = int(MARGIN * peak) if peak else whole // 2 - CONTEXT
        if free >= wanted + CONTEXT:
            torch.empty(max(wanted, 0), dtype=torch.uint8, device=device)
            return True
        return wanted + CONTEXT > whole


def _lock(device: str) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"engrams-{user}-{device.replace(':', '-')}.lock"
