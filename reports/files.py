"""Files: written whole or not at all, whatever happens meanwhile; and found below a folder."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import filter as matching
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp"
"""How the name ends of a file that is being written."""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    replace_file(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def replace_file(path: Path, content: str | bytes) -> None:
    """Exchanges a file's content in one step that has reached the disk when this returns.

    Raises:
        OSError: it cannot be written; nothing is left of the attempt.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write to; at the end of the block it takes the place of another in one step, as above.

    Raises:
        OSError: it cannot be written; nothing is left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")  # nobody else's, on any machine
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is the folder's content
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # not every file system knows this for folders
                os.fsync(folder)
        finally:
            os.close(folder)


def found_below(folder: Path, pattern: str) -> Iterator[Path]:
    """Yields what is called like a pattern anywhere below a folder, in folders that are links, too.

    Somebody may have moved a part of the runs to a larger disk. What several names lead to is found once, by its own
    name before that of a link.
    """
    walked: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    while waiting:
        for where, folders, files in os.walk(waiting.pop(0)):  # which lists links to folders, and does not follow them
            this = os.stat(where)  # noqa: PTH116  # of each of thousands
            if (this.st_dev, this.st_ino) in walked:
                folders.clear()
                continue
            walked.add((this.st_dev, this.st_ino))
            yield from (Path(where, name) for name in matching([*folders, *files], pattern))
            waiting += [link for name in folders if os.path.islink(link := os.path.join(where, name))]  # noqa: PTH114, PTH118


def remove_leftovers(folder: Path) -> None:
    """Removes what a process left in a run's folder that was killed while it wrote; only for who alone writes there."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Renames a file that is of no use, and returns what it is called now; nothing is overwritten."""
    kept = next(one for n in count(1) if not (one := path.with_name(f"{path.name}.aside-{n}")).exists())
    return path.rename(kept)
