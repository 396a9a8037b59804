"""Sends runs to W&B, or keeps them in W&B's offline files, in a process of its own: nothing of it is a run's time.

It follows the journals of runs that are going on, and has a page of each written (``page_writer.py``); what it was told
to do, and what became of it, are lines of JSON on its standard input and output (``sending.py`` is the other end).
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from engrams.reports.store import RECORD, Record, RecordError
from engrams.reports.wandb import FOLDER, page
from engrams.reports.wandb.journal import Reader, record_of
from engrams.reports.wandb.page_writer import INTERRUPTED, History, PageWriter, Taken, reason_of
from engrams.reports.wandb.service import Arrived, Service, ServiceError
from engrams.reports.wandb.settings import Address, kill_children

LOOKS_EVERY = 0.3
"""Seconds between two looks at a journal."""
WITHOUT_WORD = 8.0
"""Seconds that pages are still sent where the other end has gone without a word."""
AT_ONCE = 8
"""Pages of runs that have ended which are sent at once."""
IMPATIENT = {
    "init_timeout": 20.0,
    "finish_timeout": 60.0,
    "heartbeat_seconds": 10,
    "x_graphql_timeout_seconds": 10.0,
    "x_graphql_retry_max": 3,
    "x_graphql_retry_wait_min_seconds": 0.5,
    "x_graphql_retry_wait_max_seconds": 2.0,
}
"""wandb's settings: it would try each request for minutes. Rows of a run that goes on it may try for that long."""
UNLESS_SET = {
    "WANDB_X_DISABLE_META": ("x_disable_meta", True),
    "WANDB_X_SAVE_REQUIREMENTS": ("x_save_requirements", False),
    # Its own setting, x_disable_machine_info, leaves out what a system does while it runs, too.
    "WANDB_X_DISABLE_MACHINE_INFO": ("host", ""),
    "WANDB_DISABLE_GIT": ("disable_git", True),
    "WANDB_DISABLE_CODE": ("disable_code", True),
    "WANDB_SAVE_CODE": ("save_code", False),
    "WANDB_X_STATS_SAMPLING_INTERVAL": ("x_stats_sampling_interval", 60.0),
}
"""W&B's variable -> its setting, and what holds here unless the variable is set: no host, code, commit or packages;
statistics of the system once a minute."""


@dataclass(frozen=True)
class Orders:
    """What the sender is told first."""

    mode: Literal["online", "offline"]
    project: str
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    address: dict[str, str] = field(default_factory=dict)
    """Of the service, where the mode is online."""
    began: float = 0.0
    """When the command did: what a live run says of itself is later."""


@dataclass
class Job:
    """A run to be sent."""

    folder: Path
    live: bool
    """It may still be going on."""
    id: str | None = None
    """Of its page, where it is not the run's own."""
    over: threading.Event = field(default_factory=threading.Event)
    """No more lines will come."""


class Unreadable(Exception):
    """There is nothing to make a page of."""


class Sender:
    """Has pages written, each in a thread."""

    def __init__(self, orders: Orders, tell: TextIO):
        """
        Args:
            orders: where to.
            tell: what became of each run is written there.
        """
        self.orders, self.tell = orders, tell
        self.service = Service(Address(**orders.address)) if orders.address else None
        self.jobs: dict[str, Job] = {}
        self.threads: list[threading.Thread] = []
        self.telling, self.drawing = threading.Lock(), threading.Lock()
        self.of_page: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        """One run at a time has a page: folders may hold copies of one."""
        self.turn = threading.Semaphore(AT_ONCE)
        self.lost = 0
        """Runs in a row that were not sent."""
        self.late = False
        """Nothing more is waited for."""
        # With these, wandb would put every run on the one page that an agent has made.
        self.sweep, self.agent_id = (os.environ.pop(name, None) for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"))

    def obey(self, commands: TextIO) -> float:
        """Does what it is told until there is nothing more; every page that was begun is ended then.

        Returns:
            How many seconds are left.
        """
        at_most = WITHOUT_WORD
        for line in commands:
            command = json.loads(line)
            at_most = command.get("at_most", at_most)
            if folder := command.get("send"):
                job = self.jobs[folder] = Job(Path(folder), command["live"])
                thread = threading.Thread(target=self._page, args=(job,), daemon=True)
                self.threads.append(thread)
                thread.start()
            elif (folder := command.get("over")) in self.jobs:
                self.jobs[folder].over.set()
        deadline = time.monotonic() + at_most
        for job in self.jobs.values():
            job.over.set()
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.late = True
        return deadline - time.monotonic()

    def _say(self, job: Job, state: str, **more: Any) -> None:
        with self.telling:
            print(json.dumps({"folder": str(job.folder), "state": state, **more}), file=self.tell, flush=True)

    def _page(self, job: Job) -> None:
        """One run: whatever goes wrong is told, and is the end of this page alone."""
        live = job.live
        if not live:
            self.turn.acquire()
        try:
            if not live and self.lost >= AT_ONCE:
                raise ServiceError(f"the service did not take {self.lost} others either")
            self._say(job, "sent", **self._send(job))
            self.lost = 0
        except Exception as failure:  # of wandb, the network or the disk
            error = failure
            if live and not job.over.is_set():  # W&B may be there again when the run has ended
                job.over.wait()
                try:
                    self._say(job, "sent", **self._send(job))
                    return
                except Exception as again:
                    error = again
            self.lost += not isinstance(error, Unreadable | RecordError)
            if not self.late:  # else it was cut short, and what wandb says of that is no reason
                self._say(job, "unsent", reason=reason_of(error))
        finally:
            _drop_links(job.folder)
            if not live:
                self.turn.release()

    def _send(self, job: Job) -> dict[str, Any]:
        begin = next((line for line in self._lines(job) if "begin" in line), None)
        if begin is None and job.live:
            job.live = False  # it is over: what lies there is the run's, which began before this command did
            return self._send(job)
        record = None if job.live else record_of(job.folder, list(self._lines(job)))
        if record is None and not job.live and (record := record_of(job.folder)):
            begin = None  # of another try, which was cut short
        introduction = begin["begin"] if begin else page.introduction_of(record) if record else None
        if introduction is None:
            raise Unreadable("there is neither a journal nor a record")
        if self.sweep and self.agent_id:  # the agent has made its page; more runs of a trial have their own
            job.id, self.agent_id = self.agent_id, None
        if job.id:
            introduction = introduction | {"id": job.id}
        with self.of_page[introduction["id"]]:
            if not job.live and (url := self._is_there(introduction["id"], record)):
                return {"url": url, "there": True}
            return self._write_page(job, introduction, begin)

    def _write_page(self, job: Job, introduction: Mapping[str, Any], begin: dict[str, Any] | None) -> dict[str, Any]:
        """The page of a run, under another id where its own cannot be used."""
        word = None
        for run_id in _ids(introduction["id"]):
            try:
                return {**self._written(job, {**introduction, "id": run_id}, begin), "word": word}
            except Taken as taken:
                word = f"{taken}; its page has a new id"
        raise ValueError("its page was deleted, or is another run's, several times")

    def _written(self, job: Job, introduction: Mapping[str, Any], begin: dict[str, Any] | None) -> dict[str, Any]:
        """The page of an id.

        Raises:
            Taken: the run cannot have it.
        """
        arrived = self._arrived(introduction["id"])
        there = History(introduction["id"], arrived.history if arrived else [])
        lines = self._lines(job) if begin else iter(())
        held = there.compared(lines, job.folder)
        was_cut_short = there.left and not any("end" in line for line in held) and not record_of(job.folder, held)
        if was_cut_short and arrived and arrived.state != "running":  # its page has more than it has to say
            return {"url": self._url(introduction["id"]), "there": True}
        is_here = begin and job.live and begin.get("host") == platform.node()
        run = self._begun(job, introduction, begin["pid"] if begin and is_here else None, resumed=bool(there.rows))
        self._say(job, "begun", url=run.url)
        staging = None if self.service else job.folder / FOLDER / "staging"
        writing = PageWriter(run, job.folder, self.drawing, staging, there)
        try:
            for line in itertools.chain(held, lines):
                writing.write(line)
        except Taken:  # by an earlier try of its own, whose page this is
            run.finish(exit_code=INTERRUPTED)
            raise
        except BaseException:
            writing.end()
            raise
        writing.end()
        self._check(run, writing)
        return {"url": run.url, "lacks": writing.lacks}

    def _lines(self, job: Job) -> Iterator[dict[str, Any]]:
        """The lines of its journal as they come, until its end."""
        reader = Reader(job.folder)
        of_an_earlier_try = False
        while True:
            over = job.over.is_set() or not job.live
            for line in reader.lines():
                if "begin" in line:
                    of_an_earlier_try = job.live and line["time"] < self.orders.began
                if of_an_earlier_try:
                    continue
                yield line
                if "end" in line:
                    return
            if over:
                return
            time.sleep(LOOKS_EVERY)

    def _is_there(self, run_id: str, record: Record | None) -> str | None:
        """The address of the page that has all of a run; where its own is another's or was deleted, of a later one."""
        if not self.service:
            return None
        last_said = page.digest_of(record) if record else '"status"'
        before: Arrived | None = None
        for one in _ids(run_id):
            there = self._arrived(one)
            if there and there.state != "running" and last_said in there.summary and (there.records or not record):
                return self._url(one)
            if one != run_id and not there and not before:  # of two, not both were deleted
                return None
            before = there
        return None

    def _owner(self) -> str:
        assert self.service is not None
        return self.orders.entity or self.service.entity()

    def _url(self, run_id: str) -> str | None:
        return f"{self.service.web}/{self._owner()}/{self.orders.project}/runs/{run_id}" if self.service else None

    def _arrived(self, run_id: str) -> Arrived | None:
        """What there is of a page."""
        return self.service.arrived(self._owner(), self.orders.project, run_id) if self.service else None

    def _begun(self, job: Job, introduction: Mapping[str, Any], pid: int | None, resumed: bool) -> Any:
        """The run at W&B.

        Raises:
            Taken: its id cannot be used.
        """
        import wandb

        settings: dict[str, Any] = {
            name: value for variable, (name, value) in UNLESS_SET.items() if variable not in os.environ
        }
        settings |= {"x_stats_pid": pid} if pid else {"x_disable_stats": True}
        if self.service:
            settings |= IMPATIENT
        if self.sweep:
            settings |= {"sweep_id": self.sweep}
        folder = None if os.environ.get("WANDB_DIR") else str(job.folder)
        try:
            run = wandb.init(
                project=self.orders.project,
                entity=self.orders.entity,
                group=os.environ.get("WANDB_RUN_GROUP") or introduction["group"],
                job_type=introduction["job_type"],
                name=introduction["name"],
                id=introduction["id"],
                config=introduction["config"],
                tags=list(dict.fromkeys([*introduction["tags"], *self.orders.tags])),
                dir=folder,
                mode=self.orders.mode,
                resume="allow" if resumed else None,
                reinit="create_new",
                settings=wandb.Settings(
                    console="off", silent=True, program="engrams", stop_fn=lambda: self._say(job, "stop"), **settings
                ),
            )
        except Exception as error:
            # To ask makes the page where it can be made: only the service's own refusal is looked into.
            run_id = introduction["id"]
            if (
                self.service
                and "409" in str(error)
                and self.service.is_deleted(self._owner(), self.orders.project, run_id)
            ):
                raise Taken(f"its page {run_id} was deleted, which W&B does not take back") from error
            raise
        for step, names in page.STEPS.items():
            run.define_metric(step, hidden=True)
            for name in names:
                run.define_metric(name, step_metric=step, summary="none" if name in page.SO_FAR else None)
        return run

    def _check(self, run: Any, writing: PageWriter) -> None:
        """wandb ends a run without a word where it has given up on its history.

        Raises:
            Unreadable: the page was written without the record.
            ServiceError: not all has arrived.
        """
        end = writing.end_line
        if end and end["complete"] and not writing.record and (writing.folder / RECORD).exists():
            raise Unreadable("its journal ends with another record than the one that is there")
        if not self.service:
            return
        there = self.service.arrived(run.entity, run.project, run.id)
        if not there or there.rows < writing.step or there.state == "running" or (writing.record and not there.records):
            raise ServiceError("not all of it has arrived")


def _ids(run_id: str) -> list[str]:
    """The ids of a run's page: its own, and those that it gets where that one cannot be used."""
    return [run_id, *(f"{run_id}-{number}" for number in range(2, 6))]


def _drop_links(folder: Path) -> None:
    """Removes wandb's links to a log that goes with the sender: a folder that holds them could not be copied."""
    for log in (folder / FOLDER).glob("*/logs/debug-core.log"):
        if log.is_symlink():
            log.unlink(missing_ok=True)


def main() -> None:
    """The process: orders on the first line of standard input, then one command a line."""
    # wandb prints; what is told goes to the standard output that the other end reads, and nothing else does.
    tell = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    scratch = Path(os.environ["TMPDIR"])
    orders = Orders(**json.loads(sys.stdin.readline()))
    left, status = 0.0, 0
    try:
        left = Sender(orders, tell).obey(sys.stdin)
    except Exception:
        traceback.print_exc()
        status = 1
    finally:
        _end_service(max(0.5, left))
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(status)  # whatever thread still waits for the network


def _end_service(at_most: float) -> None:
    """wandb's own process writes the end of its files, but would also go on trying to send for as long as it takes."""
    if "wandb" not in sys.modules:
        return
    import wandb

    ending = threading.Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(at_most)
    kill_children(os.getpid())


if __name__ == "__main__":
    main()
