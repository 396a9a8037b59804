"""Who does a run: one process at a time, of whatever command, on one machine or on several that share the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there two commands on one folder do each run twice, to the same end
    fcntl = None  # type: ignore[assignment]

CLAIM = ".claim"
"""In the folder of a run that is being done. What claims it is a lock, which ends with its process."""


class Claimed(Exception):
    """Another process does this run."""


@contextmanager
def claim(folder: Path, wait: bool = False) -> Iterator[None]:
    """Claims a run's folder while the block lasts.

    Args:
        folder: of the run; made if it is not there.
        wait: until whoever has it is done.

    Raises:
        Claimed: another process has it.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    path = folder / CLAIM
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _locked(file, wait) and _is_still(path, file):
                break
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    try:
        yield
    finally:
        with suppress(OSError):  # in a folder that cannot be written any more it stays, and claims nothing
            path.unlink()  # while it is ours: nobody else's is removed
        os.close(file)


def is_claimed(folder: Path) -> bool:
    """Returns whether a process has a run's folder."""
    try:
        file = os.open(folder / CLAIM, os.O_RDONLY)
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return True
    finally:
        os.close(file)
    return False


def _locked(file: int, wait: bool) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise Claimed from error
    except OSError:  # a file system without locks: then as if nobody else were there
        pass
    return True


def _is_still(path: Path, file: int) -> bool:
    """Whether the name is that of the file that is locked: whoever had it before has removed it in the end."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
