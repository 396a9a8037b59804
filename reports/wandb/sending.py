"""The sender's other end: begins it beside a suite's runs, tells it of them, and says what became of each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from engrams.reports.errors import UserError
from engrams.reports.files import found_below
from engrams.reports.store import paths_below
from engrams.reports.wandb.journal import FILE, FOLDER, Reader
from engrams.reports.wandb.service import Service, ServiceError
from engrams.reports.wandb.settings import NO_KEY, WandBMode, WandBSettings, environment, kill_children, scratch

AT_MOST = 28.0
"""Seconds that what is still to be sent is waited for after the last run; with what it takes to end, 30."""
WHEN_INTERRUPTED = 8.0
UPLOAD_AT_MOST, UPLOAD_AT_LEAST = 30.0, 180.0
"""Seconds that an upload may take: a run, on the average, and all of it; a slow service needs as long for one run."""
LATER = "'engrams upload {out}' sends {what} later"

R = TypeVar("R")
Say = Callable[[str], None]


class NoService(UserError):
    """Nothing can be sent; the message is one line that says why."""


class Sending:
    """Runs on their way to W&B. Safe to be told of runs from several threads."""

    def __init__(self, settings: WandBSettings, outs: Sequence[Path], say: Say, service: Service | None):
        """
        Args:
            settings: where to; not disabled.
            outs: folders of the records, for messages.
            say: prints a line.
            service: the one that is there, where the mode is online.
        """
        self.settings, self.outs, self.say, self.service = settings, outs, say, service
        self.began = time.time()
        self.states: dict[str, dict[str, Any]] = {}
        self.stopped = False
        self._ended = threading.Condition()
        self._closing = contextlib.ExitStack()
        self.scratch = self._closing.enter_context(scratch())
        self.errors = (self.scratch / "errors.txt").open("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engrams.reports.wandb.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(self.scratch) | self._login(),
            start_new_session=True,  # an interrupt is this process's to answer
            text=True,
        )
        self._tell(self._orders())
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _login(self) -> dict[str, str]:
        if self.service is None:
            return {}
        return {"WANDB_API_KEY": self.service.key, "WANDB_BASE_URL": self.service.url}

    def _orders(self) -> dict[str, Any]:
        return {
            "mode": self.settings.mode,
            "project": self.settings.project,
            "entity": self.settings.entity,
            "tags": list(self.settings.tags),
            "address": asdict(self.service.address) if self.service else {},
            "began": self.began,
        }

    def _tell(self, command: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has died: what it had not sent is named in the end
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def send(self, folder: Path, live: bool) -> None:
        """Sends a run: one that begins now, if ``live``, or one that has ended."""
        name = str(folder.resolve())
        with self._ended:
            if name in self.states:
                return
            self.states[name] = {"state": "waiting", "folder": name}
            self._tell({"send": name, "live": live})

    def over(self, folder: Path) -> None:
        """A run has ended, one way or another."""
        self._tell({"over": str(folder.resolve())})

    def wait(self, folder: Path) -> bool:
        """Waits until a run has been sent or has not, and returns which."""
        name = str(folder.resolve())
        with self._ended:
            self._ended.wait_for(lambda: name not in self._left() or not self._listener.is_alive())
        return self.states[name]["state"] == "sent"

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            news = json.loads(line)
            if news["state"] == "stop":
                if not self.stopped:
                    self.stopped = True
                    self.say(f"stopped on its page: {self._name(news['folder'])}")
                    os.kill(os.getpid(), signal.SIGINT)
                continue
            with self._ended:
                self.states[news["folder"]] = self.states.get(news["folder"], {}) | news
                self._ended.notify_all()
        with self._ended:
            self._ended.notify_all()

    def _left(self) -> list[str]:
        return [name for name, found in self.states.items() if found["state"] not in ("sent", "unsent")]

    def finish(
        self, at_most: float | None = None, progress: Callable[[int], None] = lambda left: None
    ) -> tuple[bool, list[str]]:
        """Waits for what is still on its way, and ends the sender.

        Args:
            at_most: seconds; None for :data:`AT_MOST`.
            progress: told every second how many runs are left.

        Returns:
            Whether everything has arrived, and lines that say what was sent and what was not.
        """
        at_most = AT_MOST if at_most is None else at_most
        deadline = time.monotonic() + at_most
        self._tell({"at_most": at_most})
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        with self._ended:
            while (left := self._left()) and self._listener.is_alive() and time.monotonic() < deadline:
                progress(len(left))
                self._ended.wait(min(1.0, max(0.05, deadline - time.monotonic())))
        word = "the service did not take it in time" if self.service else "it was not written in time"
        try:
            word = self._death(self.process.wait(max(2.0, deadline - time.monotonic()))) or word
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGSTOP)  # so that it begins no other meanwhile
            kill_children(self.process.pid)
            self.process.kill()
            self.process.wait()
        self._listener.join(1.0)
        self.errors.close()
        self._closing.close()
        return self._report(word)

    def _death(self, status: int) -> str:
        """How the process that sends died, by its exit status; empty if it did not."""
        if status == 0:
            return ""
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self.errors.seek(0)
        last = next((line.strip() for line in reversed(self.errors.readlines()) if line.strip()), "")
        return f"the process that sends died ({how})" + (f": {last}" if last else "")

    def _report(self, otherwise: str) -> tuple[bool, list[str]]:
        """What became of the runs; ``otherwise`` is why those did not arrive of which nothing was heard."""
        lines: list[str] = []
        out = " ".join(map(str, self.outs))
        sent = [found for found in self.states.values() if found["state"] == "sent"]
        unsent = {name: found for name, found in self.states.items() if found["state"] != "sent"}
        online = self.settings.mode == "online"
        there = sum(bool(found.get("there")) for found in sent)
        if sent and online:
            project = sent[0]["url"].partition("/runs/")[0]
            place = project if len(sent) > 1 else sent[0]["url"]
            parts = [f"{_runs(new)} sent"] if (new := len(sent) - there) else []
            parts += [f"{_runs(there)} there already"] if there else []
            lines.append(f"W&B: {', '.join(parts)}: {place}")
        elif sent:
            lines.append(
                f"W&B (offline): {_runs(len(sent))} kept below {os.environ.get('WANDB_DIR') or out}; "
                + LATER.format(out=out, what="them" if len(sent) > 1 else "it")
            )
        for found in sent:
            if found.get("word"):
                lines.append(f"W&B: {self._name(found['folder'])}: {found['word']}")
            if found.get("lacks"):
                lines.append(f"W&B: {self._name(found['folder'])} is not whole there: {found['lacks']}")
        for name, found in unsent.items():
            lines.append(f"W&B: not sent: {self._name(name)}: {found.get('reason', otherwise)}")
        if unsent:
            lines.append("W&B: " + LATER.format(out=out, what="what was not sent"))
        return not unsent, lines

    def _name(self, folder: str) -> str:
        path = Path(folder)
        for out in self.outs:
            if path != out.resolve() and path.is_relative_to(out.resolve()):
                return str(path.relative_to(out.resolve()))
        return next((str(out) for out in self.outs if path == out.resolve()), folder)


class Screen(Protocol):
    """What is told of the sending."""

    def say(self, text: str) -> None: ...

    def remember(self, text: str) -> None: ...

    def left_to_send(self, runs: int) -> None: ...


class Runs(Generic[R]):
    """The runs of a suite, told of as they begin and end; without a sender, they are shown and no more."""

    def __init__(self, folder_of: Callable[[R], Path], shown: Callable[[R, int], None], sender: Sending | None):
        self._folder_of, self._shown, self._sender = folder_of, shown, sender

    def advanced(self, run: R, epochs: int) -> None:
        """A run has begun (0 epochs) or has done so many."""
        if self._sender and epochs == 0:
            self._sender.send(self._folder_of(run), live=True)
        self._shown(run, epochs)

    def over(self, run: R) -> None:
        """A run has ended, one way or another."""
        if self._sender:
            self._sender.send(self._folder_of(run), live=True)  # if its beginning was not told in time
            self._sender.over(self._folder_of(run))


@contextlib.contextmanager
def sending(
    settings: WandBSettings,
    out: Path,
    screen: Screen,
    folder_of: Callable[[R], Path],
    shown: Callable[[R, int], None],
    anything: bool = True,
) -> Iterator[tuple[WandBMode, Runs[R]]]:
    """Sends the runs of the block, beside them.

    Whether the service can be reached is found out here, once; if it cannot, one line says why, and the runs are kept
    offline.

    Args:
        settings: where to.
        out: folder of the records.
        screen: told what is sent, and what is not.
        folder_of: a run -> its folder.
        shown: told of a run and the epochs that it has done.
        anything: whether there is anything to be run.

    Yields:
        The mode that holds, and what is to be told of the runs.
    """
    if settings.mode == "disabled" or not anything:
        if settings.mode != "disabled":
            screen.remember(f"W&B: nothing new; 'engrams upload {out}' sends what is complete already")
        yield settings.mode, Runs(folder_of, shown, None)
        return
    service = None
    if settings.mode == "online":
        try:
            service = _reached(settings)
        except ServiceError as error:
            screen.say(f"W&B: {error}. Runs are kept offline; {LATER.format(out=out, what='them')}")
            settings, service = replace(settings, mode="offline"), None
    try:
        sender = Sending(settings, [out], screen.say, service)
    except OSError as error:  # no room for another process or its files
        screen.say(f"W&B is off: its sender cannot be started ({error}); {LATER.format(out=out, what='the runs')}")
        yield "disabled", Runs(folder_of, shown, None)
        return
    try:
        yield settings.mode, Runs(folder_of, shown, sender)
    except BaseException:
        for line in sender.finish(WHEN_INTERRUPTED)[1]:
            screen.say(line)
        raise
    try:
        lines = sender.finish(progress=screen.left_to_send)[1]
    except BaseException:  # nobody waits any longer
        for line in sender.finish(0.0)[1]:
            screen.say(line)
        raise
    for line in lines:
        screen.remember(line)


def upload(settings: WandBSettings, runs: Sequence[Path], screen: Screen) -> bool:
    """Sends finished runs from their records and, where there is one, from their journals; once each.

    Trials of a search and runs of a study of subsets leave no record: theirs are the journals that came to their end.

    Args:
        settings: where to.
        runs: folders of records, of any depth.
        screen: told what is sent, and what is not.

    Returns:
        Whether everything has arrived; a record that cannot be read has not.

    Raises:
        NoService: the service cannot be used, or there are no records.
    """
    for root in runs:
        if not root.is_dir():
            raise NoService(f"there is no folder {root}; 'engrams run' makes one")
    recorded = {path.parent for root in runs for path in paths_below(root)}
    journals = (path for root in runs for path in found_below(root, FILE) if path.parent.name == FOLDER)
    told = {path.parent.parent for path in journals} - recorded
    folders = sorted(recorded | {folder for folder in told if any("end" in line for line in Reader(folder).lines())})
    if not folders:
        raise NoService(f"there are no records in {', '.join(map(str, runs))}")
    try:
        service = _reached(settings)
    except ServiceError as error:
        raise NoService(f"W&B: {error}") from error
    sender = Sending(replace(settings, mode="online"), runs, screen.say, service)
    for folder in folders:
        sender.send(folder, live=False)
    try:
        whole, lines = sender.finish(max(UPLOAD_AT_LEAST, UPLOAD_AT_MOST * len(folders)), screen.left_to_send)
    except BaseException:
        for line in sender.finish(0.0)[1]:
            screen.say(line)
        raise
    for line in lines:
        screen.say(line)
    return whole


def dashboards(settings: WandBSettings, parity: str = "") -> list[str]:
    """Saves the view and the report of the project and returns lines: their addresses, and what could not be made.

    Args:
        settings: where to.
        parity: the parity board in Markdown, if it is to be in the report.

    Raises:
        NoService: the service cannot be used.
        NoDashboards: there is no such project, or wandb-workspaces is not installed.
    """
    from engrams.reports.wandb.dashboards import save

    try:
        service = _reached(settings)
        return save(service, settings.entity or service.entity(), settings.project, parity)
    except ServiceError as error:
        raise NoService(f"W&B: {error}") from error


def _reached(settings: WandBSettings) -> Service:
    """The service, which has said that it is there and knows the key.

    Raises:
        ServiceError: it is not, or does not.
    """
    if settings.address is None:
        raise ServiceError(settings.word.partition(": ")[2] or NO_KEY)
    service = Service(settings.address)
    service.entity()
    return service


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"
