"""The sender's other end: begins it beside a suite's runs, tells it of them, and says what became of each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any


from engrams.reports.wandb.service import Service, ServiceError
from engrams.reports.wandb.settings import WandBSettings

AT_MOST = 28.0
"""Seconds that what is still to be sent is waited for after the last run; with what it takes to end, 30."""
WHEN_INTERRUPTED = 8.0
SCRATCH = "engrams-wandb-"
LATER = "'engrams upload {out}' sends {what} later"

Say = Callable[[str], None]


class Sending:
    """Runs on their way to W&B. Safe to be told of runs from several threads."""

    def __init__(self, settings: WandBSettings, out: Path, say: Say, service: Service | None):
        """
        Args:
            settings: where to; not disabled.
            out: folder of the records, for messages.
            say: prints a line.
            service: the one that is there, where the mode is online.
        """
        self.settings, self.out, self.say, self.service = settings, out, say, service
        self.states: dict[str, dict[str, Any]] = {}
        self.stopped = False
        self._ended = threading.Condition()
        _remove_stale()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
        self.errors = (self.scratch / "errors.txt").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engrams.reports.wandb.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=self._environment(),
            start_new_session=True,  # an interrupt is this process's to answer
            text=True,
        )
        self._tell(self._orders())
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _environment(self) -> dict[str, str]:
        scratch = str(self.scratch)
        ours = {
            "TMPDIR": scratch,
            "WANDB_CACHE_DIR": scratch,
            "WANDB_DATA_DIR": scratch,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "WANDB_SILENT": "true",
        }
        if self.service:
            ours |= {"WANDB_API_KEY": self.service.key, "WANDB_BASE_URL": self.service.url}
        # WANDB_SERVICE would join the process of somebody's own run; the mode and the rest are in the orders.
        theirs = {key: value for key, value in os.environ.items() if key not in ("WANDB_SERVICE", "WANDB_RESUME")}
        return theirs | ours

    def _orders(self) -> dict[str, Any]:
        orders = {
            "mode": self.settings.mode,
            "project": self.settings.project,
            "entity": self.settings.entity,
            "tags": list(self.settings.tags),
        }
        if self.service:
            orders |= {"url": self.service.url, "key": self.service.key, "web": self.service.web}
        return orders

    def _tell(self, command: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has died: what it had not sent is named in the end
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def send(self, folder: Path, live: bool) -> None:
        """Send a run: one that begins now, if ``live``, or one that has ended."""
        name = str(folder.resolve())
        if name not in self.states:
            self.states[name] = {"state": "waiting"}
            self._tell({"send": name, "live": live})

    def over(self, folder: Path) -> None:
        """A run has ended, one way or another."""
        self._tell({"over": str(folder.resolve())})

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

    def finish(self, at_most: float = AT_MOST, progress: Callable[[int], None] = lambda left: None) -> bool:
        """Wait for what is still on its way, end the sender, and say what was sent and what was not.

        Args:
            at_most: seconds.
            progress: told every second how many runs are left.

        Returns:
            Whether everything has arrived.
        """
        deadline = time.monotonic() + at_most
        self._tell({"at_most": at_most})
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        with self._ended:
            while (left := self._left()) and self._listener.is_alive() and time.monotonic() < deadline:
                progress(len(left))
                self._ended.wait(min(1.0, max(0.05, deadline - time.monotonic())))
        try:
            self.process.wait(max(2.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._listener.join(1.0)
        self.errors.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self._report()

    def _report(self) -> bool:
        sent = [found for found in self.states.values() if found["state"] == "sent"]
        unsent = {name: found for name, found in self.states.items() if found["state"] != "sent"}
        online = self.settings.mode == "online"
        there = sum(bool(found.get("there")) for found in sent)
        if sent and online:
            project = sent[0]["url"].partition("/runs/")[0]
            already = f", {there} of which were there already" if there else ""
            self.say(f"W&B: {_runs(len(sent))} sent{already}: {project if len(sent) > 1 else sent[0]['url']}")
        elif sent:
            self.say(
                f"W&B (offline): {_runs(len(sent))} kept below {os.environ.get('WANDB_DIR') or self.out}; "
                + LATER.format(out=self.out, what="them" if len(sent) > 1 else "it")
            )
        for found in sent:
            if found.get("word"):
                self.say(f"W&B: {self._name(found['folder'])}: {found['word']}")
        for name, found in unsent.items():
            self.say(f"W&B: not sent: {self._name(name)}: {found.get('reason', 'the service did not take it in time')}")
        if unsent:
            self.say("W&B: " + LATER.format(out=self.out, what="what was not sent"))
        return not unsent

    def _name(self, folder: str) -> str:
        path = Path(folder)
        return str(path.relative_to(self.out.resolve())) if path.is_relative_to(self.out.resolve()) else folder


@contextlib.contextmanager
def sending(
    settings: WandBSettings, out: Path, say: Say, progress: Callable[[int], None] = lambda left: None
) -> Iterator[tuple[WandBSettings, Sending | None]]:
    """Sends the runs of the block beside them.

    Whether the service can be reached is found out here, once; if it cannot, one line says why, and the runs are kept
    offline.

    Args:
        settings: where to.
        out: folder of the records.
        say: prints a line.
        progress: told every second how many runs are left, after the last one.

    Yields:
        The settings that hold, and what is to be told of the runs; None where W&B is off.
    """
    if settings.mode == "disabled":
        yield settings, None
        return
    service = None
    if settings.mode == "online":
        try:
            service = Service.of_settings()
            service.entity()
        except ServiceError as error:
            say(f"W&B: {error}. Runs are kept offline; {LATER.format(out=out, what='them')}")
            settings, service = replace(settings, mode="offline"), None
    sender = Sending(settings, out, say, service)
    try:
        yield settings, sender
    except BaseException:
        sender.finish(WHEN_INTERRUPTED)
        raise
    sender.finish(progress=progress)


def _remove_stale() -> None:
    """Removes what a suite that was killed has left in the temporary directory."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if not (pid.isdigit() and _is_alive(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"
