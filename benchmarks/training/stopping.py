"""A process that is told to end finishes the step that it is in and keeps a checkpoint, if that does not take long."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 20
"""Seconds after which a process ends, whatever it is doing: queues kill what was warned after 30 or more."""
STATUS = 128 + signal.SIGTERM

_heeds = _asked = False


def on_sigterm() -> None:
    """Has SIGTERM end this process at once, or, where :func:`heeded`, soon."""
    signal.signal(signal.SIGTERM, _told)


def _told(*_: object) -> None:
    global _asked
    if not _heeds:
        stop()
    if not _asked:  # the queue's word and the command's may both come
        _asked = True
        if hasattr(signal, "alarm"):
            signal.alarm(PATIENCE)  # which nobody handles


@contextmanager
def heeded() -> Iterator[None]:
    """Within, whoever works asks now and then whether it is to end."""
    global _heeds
    _heeds = True
    try:
        yield
    finally:
        _heeds = False


def asked() -> bool:
    """Returns whether this process is to end."""
    return _asked


def stop() -> None:
    """Ends this process."""
    sys.exit(STATUS)
