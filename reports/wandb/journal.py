"""What a run says of itself while it runs, on its own disk: lines that whoever sends it to W&B reads as they come.

A run waits for nobody, and nothing of W&B is imported where it trains. ``FOLDER/wandb/journal.jsonl`` has one line for
its beginning, one for each row of the history and one for its end; pictures lie beside it. What is final is in the
record.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from engrams.reports.store import Record
from engrams.reports.wandb import FOLDER, page

FILE = "journal.jsonl"
PICTURE = "picture"
"""Key of a value that is a picture, or an animation: the name of a file beside the journal."""


def _never_raises(method: Callable) -> Callable:
    """What cannot be written must not fail a run; it is warned of once, and the next is tried all the same."""

    @wraps(method)
    def guarded(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever the disk comes up with, or a value that is no JSON
            if not self.warned:
                self.warned = True
                warnings.warn(f"W&B lacks something of a run: {type(error).__name__}: {error}", stacklevel=2)
            return None

    return guarded


class Journal:
    """Watches a run; each call appends a line."""

    def __init__(
        self,
        folder: Path,
        introduction: Mapping[str, Any],
        whole_stream_at_once: bool = False,
        lines: int = 0,
    ):
        """
        Args:
            folder: the run's; what W&B has in there of an earlier try is removed.
            introduction: of :func:`page.introduction`.
            whole_stream_at_once: there is one experience, of everything.
            lines: of the earlier try that are kept, since the run goes on from there; none if there are not so many.
        """
        self.folder = folder / FOLDER
        self.whole_stream_at_once = whole_stream_at_once
        self.warned = False
        self.pictures = self.lines = 0
        self._begin(introduction, lines)

    @_never_raises
    def _begin(self, introduction: Mapping[str, Any], lines: int) -> None:
        earlier = self._earlier(lines)
        if not earlier:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        else:
            (self.folder / FILE).unlink()
        self._write({"begin": introduction, "pid": os.getpid(), "host": platform.node()})
        if earlier:  # from the second on: the first was the beginning
            with (self.folder / FILE).open("a", encoding="utf-8") as file:
                file.writelines(earlier[1:])
            self.lines = lines
            self.pictures = sum(PICTURE in line for line in earlier)

    def _earlier(self, lines: int) -> list[str]:
        """The first lines of an earlier try, if there are so many."""
        try:
            found = (self.folder / FILE).read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, ValueError):
            return []
        return found[:lines] if lines and len(found) >= lines and found[lines - 1].endswith("\n") else []

    def state_dict(self) -> dict[str, Any]:
        """Returns what a run that goes on from here makes its journal with."""
        return {"lines": self.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing: it was made with the state."""

    @_never_raises
    def after_experience(self, strategy, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Writes the row of an experience.

        Args:
            strategy: not looked at.
            matrix: the accuracy matrix so far.
            seen: what others saw in this experience: ``seconds``, ``class_shares``, ``frechet_distance`` and
                ``generated``, a picture's path.
        """
        row = page.row(matrix, self.whole_stream_at_once, seen.get("seconds"))
        if "frechet_distance" in seen:
            row["frechet_distance"] = seen["frechet_distance"]
        if "class_shares" in seen:
            row |= page.shares(seen["class_shares"])
        if "generated" in seen:
            row["generated"] = {PICTURE: self._kept(seen["generated"])}
        self._write({"row": row})

    @_never_raises
    def after_epoch(self, epoch: int, losses: Mapping[str, float]) -> None:
        """Writes the losses of an epoch; epochs are counted from 1 on, a generator's among them."""
        row = {page.EPOCH: epoch, **{f"loss/{name}": loss for name, loss in losses.items()}}
        self._write({"row": row})

    @_never_raises
    def animation(self, path: Path) -> None:
        """Keeps what a generator made after every experience, as a GIF."""
        self._write({"animation": self._kept(path)})

    @_never_raises
    def ended(
        self, summary: Mapping[str, Any] | None = None, complete: bool = True, record: Record | None = None
    ) -> None:
        """Writes that the run is over; what came out is in its record, if it has one, or else in ``summary``."""
        which = {"record": page.digest_of(record)} if record else {}
        self._write({"end": {"complete": complete, "summary": dict(summary or {}), **which}})

    def _kept(self, picture: Path) -> str:
        name = f"{picture.stem}-{self.pictures:02d}{picture.suffix}"
        self.pictures += 1
        shutil.copyfile(picture, self.folder / name)
        return name

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps({**line, "time": time.time()}, allow_nan=False)
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        self.lines += 1


class Reader:
    """Reads a journal while it grows."""

    def __init__(self, folder: Path):
        """
        Args:
            folder: the run's.
        """
        self.folder = folder / FOLDER
        self.first = b""
        self.read = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields the lines that are whole and were not read yet; one that is no JSON is passed over.

        A journal in its place, of a run that was begun again, is read from its beginning.
        """
        try:
            with (self.folder / FILE).open("rb") as file:
                if (first := file.readline()) != self.first:
                    self.first, self.read = first, 0
                file.seek(self.read)
                content = file.read()
        except OSError:
            return
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            self.read += len(line)
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found


def record_of(folder: Path, lines: Iterable[Mapping[str, Any]] = ()) -> Record | None:
    """Returns the record in a run's folder; None if there is none, or it is of another try than its journal.

    The end of a journal says which record is the run's. That of an older Engrams does not, but came after its record.
    Where there is no end yet, the clocks decide.

    Args:
        folder: the run's.
        lines: of its journal; none if any record will do.

    Raises:
        RecordError: it cannot be read, or is not to be believed.
    """
    from engrams.reports import store

    path = folder / store.RECORD
    began = max((line["time"] for line in lines if "begin" in line), default=0.0)
    end = next((line["end"] for line in lines if "end" in line), None)
    if not path.exists() or (end is None and path.stat().st_mtime < began):
        return None
    record = store.read(path)
    return record if end is None or end.get("record") in (None, page.digest_of(record)) else None
