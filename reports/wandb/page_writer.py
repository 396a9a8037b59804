"""One run's page in W&B: what its journal says as it comes, and what its record says at the end.

``page.py`` has what stands on a page.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engrams.reports import store
from engrams.reports.errors import without_paths
from engrams.reports.figures import heat_map_of_size
from engrams.reports.predictions import PREDICTIONS
from engrams.reports.store import RECORD, Record
from engrams.reports.wandb import FOLDER, page
from engrams.reports.wandb.journal import PICTURE, record_of

DRAWS_EVERY = 20.0
"""Seconds between two pictures of an accuracy matrix that grows."""
INTERRUPTED = 130
"""Exit status on the page of a run that was cut short."""
HEAT_MAP, TABLES = "accuracy_matrix_image", ("accuracy_matrix", "class_shares")
TRACEBACK = "traceback.txt"


class Taken(Exception):
    """The page of this id was deleted, or holds other figures; the message says which."""


class History:
    """The rows that a page has, of an earlier try or from elsewhere."""

    def __init__(self, page_id: str, rows: Sequence[Mapping[str, Any]]):
        self.page_id, self.count = page_id, len(rows)
        self.rows: dict[tuple[str, Any], dict[str, Any]] = {}
        """By what each is of."""
        for row in rows:
            self.rows.setdefault(_key(row), {}).update(row)
        self.left = set(self.rows)
        """Those that were not compared with any of the run's."""

    def found(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the page's own row of the same; None if it has none.

        Raises:
            Taken: it has other figures.
        """
        there = self.rows.get(_key(row))
        if there and any(row[name] != there[name] for name in row if name in there and _is_compared(name)):
            raise Taken(f"its page {self.page_id} has other figures")
        return there

    def compared(self, lines: Iterator[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
        """Returns the lines of a journal that came until each row was compared with the run's, or until the end.

        Whoever begins the page of an id that is there writes over its configuration: all that can tell another's page
        from the run's own is looked at before. Meanwhile a run has nothing to say that is not on its page.

        Raises:
            Taken: a row has other figures.
        """
        held = []
        while self.left and (line := next(lines, None)) is not None:
            held.append(line)
            if row := line.get("row"):
                self.found(row)
                self.left.discard(_key(row))
        if self.left and (record := record_of(folder, held)) and record.complete:
            for row in page.rows_of(record):
                self.found(row)
        return held


class PageWriter:
    """Writes a run's page: rows as they come, and the rest from the record.

    W&B adds to the page of an id that it has. A row that is there already is therefore not sent again, so that the page
    has each row once.
    """

    def __init__(self, run: Any, folder: Path, lock: threading.Lock, staging: Path | None, there: History):
        """
        Args:
            run: wandb's.
            folder: the run's.
            lock: held while something is drawn, or depends on W&B's variables.
            staging: of artifacts; None for the usual place.
            there: what the page has already.
        """
        self.run, self.folder, self.lock, self.staging = run, folder, lock, staging
        self.there, self.step = there, there.count
        self.rows: list[dict[str, Any]] = []
        self.held: dict[str, Any] | None = None
        """The row of the last experience, which gets what only the whole run has."""
        self.added: dict[str, Any] = {}
        """What a row that is there lacks."""
        self.closing: dict[str, Any] = {}
        self.bounds: list[Mapping[str, Any]] = []
        """The lines that begin and end the journal."""
        self.record: Record | None = None
        self.drawn = time.monotonic()
        self.lacks = ""
        """The first thing that could not be logged."""

    @property
    def end_line(self) -> dict[str, Any] | None:
        """How the journal says that the run ended, if it does."""
        return next((line["end"] for line in self.bounds if "end" in line), None)

    def _try(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """One thing that cannot be logged does not keep the others from it."""
        try:
            return step(*arguments)
        except Taken:
            raise
        except Exception as error:
            print(f"{self.folder}: {error!r}", file=sys.stderr)
            self.lacks = self.lacks or reason_of(error)

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes a line of a journal."""
        if "begin" in line:  # once more, where the run's process died and it is tried again
            self.bounds, self.rows, self.held, self.closing = [line], [], None, {}
        elif "row" in line:
            self._try(self._row, line["row"])
        elif "animation" in line:
            self.closing["generated_animation"] = {PICTURE: line["animation"]}
        elif "end" in line:
            self.bounds.append(line)

    def _row(self, row: dict[str, Any]) -> None:
        if page.EXPERIENCE in row:
            self.rows.append(row)
            if page.is_last(row):
                self.held = row
                return
            if _key(row) not in self.there.rows and time.monotonic() - self.drawn > DRAWS_EVERY:
                self.drawn = time.monotonic()
                row = row | {HEAT_MAP: [page.numbered(one, "accuracy/") for one in self.rows]}
        self._log(row)

    def _log(self, row: Mapping[str, Any]) -> None:
        found = self.there.found(row)
        if found is None:
            self.there.rows[_key(row)] = dict(row)
            self._send(row, self.step)
            self.step += 1
            return
        if lacking := {name: value for name, value in row.items() if name not in found}:
            step = page.EXPERIENCE if page.EXPERIENCE in row else page.EPOCH
            self.added |= lacking | {step: row[step]}

    def _send(self, row: Mapping[str, Any], step: int) -> None:
        values = {name: self._try(self._value, name, value) for name, value in row.items()}
        with self._staged():
            self.run.log({name: value for name, value in values.items() if value is not None}, step=step)

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """W&B reads where artifacts are staged whenever it makes one."""
        with self.lock:
            before = os.environ["WANDB_DATA_DIR"]
            if self.staging:
                os.environ["WANDB_DATA_DIR"] = str(self.staging)
            try:
                yield
            finally:
                os.environ["WANDB_DATA_DIR"] = before

    def _value(self, name: str, value: Any) -> Any:
        import wandb

        if name == HEAT_MAP:
            path = self.folder / FOLDER / f"accuracy_matrix-{len(value):02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.lock:
                heat_map_of_size(len(value), len(value[0])).save(value, self.run.name, path)
            return wandb.Image(str(path))
        if name in TABLES:
            columns, rows = value
            return wandb.Table(columns=columns, data=rows)
        if isinstance(value, dict) and PICTURE in value:
            path = self.folder / FOLDER / value[PICTURE]
            return wandb.Video(str(path), format="gif") if path.suffix == ".gif" else wandb.Image(str(path))
        return value

    def end(self) -> None:
        """Writes what is final and ends the run with its exit status, whatever went wrong before."""
        exit_code = INTERRUPTED
        try:
            exit_code = self._final()
        finally:
            self.run.finish(exit_code=exit_code)

    def _final(self) -> int:
        """Writes what is final; returns the exit status.

        Raises:
            RecordError: the run's record cannot be read.
        """
        exit_code = INTERRUPTED
        self.record = record_of(self.folder, self.bounds)
        if self.record is not None:
            exit_code = 0 if self.record.complete else 1
            self._try(self._final_rows, self.record)
            self._try(self._final_config, self.record)
            self._try(self._final_summary, self.record)
            self._try(self._artifact)
        else:
            if self.held:
                self._try(self._log, self.held)
            if end := self.end_line:
                exit_code = 0 if end["complete"] else 1
                self._try(self.run.summary.update, end["summary"])
        if self.added:
            self._try(self._send, self.added, self.step)
            self.step += 1
        return exit_code

    def _final_rows(self, record: Record) -> None:
        if not record.complete:
            if self.held:
                self._log(self.held)
            return
        *before, last = page.rows_of(record)
        written = {row[page.EXPERIENCE] for row in self.rows}
        for row in before:
            if row[page.EXPERIENCE] not in written:  # the journal lacks it
                self._log(row)
        pictures = {"generated": "generated.png", "generated_animation": "generated.gif"}
        kept = {name: {PICTURE: f"../{file}"} for name, file in pictures.items() if (self.folder / file).exists()}
        drawn = {HEAT_MAP: record.accuracy_matrix, **page.tables_of(record)}
        self._log(kept | last | (self.held or {}) | self.closing | drawn)

    def _final_config(self, record: Record) -> None:
        """What the run found out of its data, and of an earlier try with other libraries, is the record's."""
        config = page.introduction_of(record)["config"]
        self.run.config.update({key: config[key] for key in config if key != "about"}, allow_val_change=True)

    def _final_summary(self, record: Record) -> None:
        traceback = self.folder / TRACEBACK
        said = traceback.read_text(encoding="utf-8") if not record.complete and traceback.exists() else None
        summary = page.summary_of(record, said)
        for name in page.OF_FAILURE:  # of an earlier try
            if name not in summary and name in self.run.summary.keys():  # noqa: SIM118
                del self.run.summary[name]
        self.run.summary.update(summary)

    def _artifact(self) -> None:
        import wandb

        path = self.folder / RECORD
        if self.record and self.record.reason:  # it may name paths of this machine
            cleaned = self.record.model_copy(update={"reason": without_paths(self.record.reason)})
            path = store.write(cleaned, self.folder / FOLDER)
        with self._staged():
            artifact = wandb.Artifact(f"record-{self.run.id}", type="record")
            artifact.add_file(str(path), name=RECORD)
            if (answers := self.folder / PREDICTIONS).exists():
                artifact.add_file(str(answers), name=PREDICTIONS)
            self.run.log_artifact(artifact)


def _key(row: Mapping[str, Any]) -> tuple[str, Any]:
    """What a row is of: an experience, or an epoch."""
    step = page.EXPERIENCE if page.EXPERIENCE in row else page.EPOCH
    return step, row.get(step)


def _is_compared(name: str) -> bool:
    """A row's times and pictures differ between two tries of one run; the rest does not."""
    return name.startswith(("accuracy/", "loss/"))


def reason_of(error: BaseException) -> str:
    return f"{error}".strip().partition("\n")[0][:300] or type(error).__name__
