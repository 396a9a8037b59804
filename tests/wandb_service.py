"""A stand-in for W&B's service on loopback: it keeps what it is sent, and can be told to fail.

It is no more than a stand-in: it answers what wandb 0.31 asks while runs are logged, read back, swept and shown, in the
shapes that client expects, and knows nothing of what the real service does beyond that. What it does not know it writes
down in ``unknown`` and answers with an error.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

KEY = "0123456789" * 4
ENTITY = "somebody"
WHEN = "2026-01-01T00:00:00"


@dataclass
class Page:
    """One run as the service keeps it."""

    entity: str
    project: str
    name: str
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    raw_config: str = "{}"
    files: dict[str, bytes] = field(default_factory=dict)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    """The variables of every request that made or changed the run."""
    exit_code: int | None = None
    """None while it is running."""
    stopped: bool = False
    """Somebody has pressed 'Stop run'."""

    def last(self, key: str) -> Any:
        """The last value of a run's property that was sent."""
        return next((sent[key] for sent in reversed(self.upserts) if sent.get(key) is not None), None)

    @property
    def state(self) -> str:
        return "running" if self.exit_code is None else "failed" if self.exit_code else "finished"


@dataclass
class Artifact:
    """One version of an artifact."""

    id: str
    name: str
    type: str
    run: str
    project: str
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False


class Refused(Exception):
    """Answered with this status."""

    def __init__(self, status: int, text: str = ""):
        super().__init__(text)
        self.status = status


class Service:
    """The server; what arrived lies in its attributes.

    Attributes:
        refuse: (operation or path) -> a status to answer with, or None to answer as usual.
        silent: it accepts connections and never answers.
        dies_at_history: it stops listening when the first row of a history comes.
        deleted: names of runs whose pages somebody deleted.
        trials: what an agent is told to try, parameter -> value, one after another.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.charts: dict[str, dict[str, Any]] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.trials: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.unknown: list[str] = []
        self.refuse: Callable[[str], int | None] = lambda what: None
        self.silent = False
        self.dies_at_history = False
        self.deleted: set[str] = set()
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self._ids = itertools.count(1)
        service = self

        class Handler(_Handler):
            pass

        Handler.service = service
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Listen no more."""
        if not self.stopping.is_set():
            self.stopping.set()
            self.server.shutdown()
            self.server.server_close()

    # --- what the tests ask -------------------------------------------------------------------------------------------

    def page(self, contains: str = "") -> Page:
        """The one page whose display name has these words."""
        (found,) = [page for page in self.pages.values() if contains in (page.last("displayName") or "")]
        return found

    def artifacts_of(self, page: Page, type: str) -> list[Artifact]:
        return [a for a in self.artifacts.values() if a.run == page.name and a.type == type and a.committed]

    # --- requests -----------------------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, bytes]:
        what = path
        if path == "/graphql":
            request = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            what = found[1] if found else request["query"]
        with self.lock:
            self.asked.append(what)
            self.bodies.append(body)
        if self.silent:
            self.stopping.wait()
            raise ConnectionError
        if status := self.refuse(what):
            raise Refused(status)
        if path == "/graphql":
            key = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")[2]
            if key != KEY:
                raise Refused(401, json.dumps({"errors": [{"message": "user is not logged in"}]}))
            operation = getattr(self, f"_{what}", None)
            if operation is None:
                self.unknown.append(request["query"])
                return 200, json.dumps({"errors": [{"message": f"the stand-in does not know {what}"}]}).encode()
            variables = request.get("variables") or {}
            try:
                with self.lock:
                    answer = operation(variables.get("input", variables))
            except (KeyError, TypeError) as error:  # asked in another shape than expected
                self.unknown.append(f"{what}: {error!r} in {variables}")
                raise Refused(400) from error
            return 200, json.dumps({"data": answer}).encode()
        if path.startswith("/sdk/otel/"):  # the client's telemetry of itself
            return 200, b"{}"
        with self.lock:
            if method == "PUT":
                return self._put(path, body)
            if method == "POST" and path.endswith("/file_stream"):
                return self._file_stream(path, json.loads(body))
            if method == "GET":
                return self._get(path)
        self.unknown.append(f"{method} {path}")
        raise Refused(404)

    def _file_stream(self, path: str, sent: dict[str, Any]) -> tuple[int, bytes]:
        page = self.pages[path.split("/")[-2]]
        for file, chunk in sent.get("files", {}).items():
            rows = {"wandb-history.jsonl": page.history, "wandb-events.jsonl": page.events}.get(file)
            if file == "wandb-history.jsonl" and self.dies_at_history:
                threading.Thread(target=self.stop).start()
                raise ConnectionError
            if rows is not None:
                for index, line in enumerate(chunk["content"], chunk["offset"]):
                    rows[index : index + 1] = [json.loads(line)]  # a line is written over, as W&B does
            if file == "wandb-summary.json":
                page.summary = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            page.exit_code = sent.get("exitcode", 0)
        return 200, json.dumps({"exitcode": None, "limits": {}, "stopped": page.stopped}).encode()

    def _put(self, path: str, body: bytes) -> tuple[int, bytes]:
        _, kind, owner, name = path.split("/", 3)
        if kind == "files":
            self.pages[owner].files[unquote(name)] = body
        elif name == "wandb_manifest.json":
            self.artifacts[owner].manifest = json.loads(body)
        else:
            self.artifacts[owner].files[unquote(name)] = body
        return 200, b""

    def _get(self, path: str) -> tuple[int, bytes]:
        _, kind, owner, name = path.split("/", 3)
        if kind == "files":
            return 200, self.pages[owner].files[unquote(name)]
        if name == "wandb_manifest.json":
            return 200, json.dumps(self.artifacts[owner].manifest).encode()
        return 200, self.artifacts[owner].files[unquote(name)]

    def _id(self, kind: str) -> str:
        return base64.b64encode(f"{kind}:{next(self._ids)}".encode()).decode()

    # --- GraphQL: runs ------------------------------------------------------------------------------------------------

    def _Viewer(self, _) -> dict:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {
            "viewer": {
                "id": "user", "name": ENTITY, "entity": ENTITY, "username": ENTITY, "email": "", "admin": False,
                "flags": "{}", "teams": teams, "deletedAt": None, "apiKeys": {"edges": []},
            }
        }  # fmt: skip

    def _ServerFeaturesQuery(self, _) -> dict:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, asked: dict) -> dict:
        page = self.pages.get(asked["name"])
        entity = asked.get("entity") or ENTITY
        bucket = page and {
            "id": page.name, "name": page.name, "summaryMetrics": json.dumps(page.summary),
            "displayName": page.last("displayName"), "logLineCount": 0, "historyLineCount": len(page.history),
            "eventsLineCount": len(page.events), "historyTail": json.dumps([json.dumps(r) for r in page.history[-1:]]),
            "eventsTail": "[]", "config": page.raw_config, "tags": page.last("tags"), "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
        model = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": entity}, "bucket": bucket}
        return {"model": model}

    def _UpsertBucket(self, sent: dict) -> dict:
        name = sent["name"]
        if name in self.deleted:
            raise Refused(
                409,
                json.dumps({"errors": [{"message": f"run {name} was previously created and deleted; try a new id"}]}),
            )
        new = name not in self.pages
        entity, project = sent.get("entity") or ENTITY, sent.get("project") or "uncategorized"
        page = self.pages.setdefault(name, Page(entity, project, name))
        page.upserts.append(sent)
        if sent.get("config"):
            page.raw_config = sent["config"]
            page.config = {key: item["value"] for key, item in json.loads(sent["config"]).items()}
            page.exit_code = None if len(page.upserts) == 1 or page.exit_code is None else page.exit_code
        bucket = {
            "id": name, "name": name, "displayName": page.last("displayName"), "description": "",
            "config": sent.get("config"), "sweepName": page.last("sweep"), "historyLineCount": len(page.history),
            "project": {"id": project, "name": project, "entity": {"id": entity, "name": entity}},
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _CreateRunFiles(self, sent: dict) -> dict:
        files = [{"name": f, "uploadUrl": f"{self.url}/files/{sent['run']}/{f}"} for f in sent["files"]]
        return {"createRunFiles": {"runID": sent["run"], "uploadHeaders": [], "files": files}}

    def _MarkRunFilesUploaded(self, _) -> dict:
        return {"markRunFilesUploaded": {"success": True}}

    def _RunStoppedStatus(self, asked: dict) -> dict:
        page = self.pages.get(asked["runId"])
        return {"project": {"run": {"stopped": bool(page and page.stopped)}}}

    def _Arrived(self, asked: dict) -> dict:
        page = self.pages.get(asked["run"])
        made = [a for a in self.artifacts.values() if page and a.run == page.name]
        edges = [
            {"node": {"state": "COMMITTED" if a.committed else "PENDING", "artifactType": {"name": a.type}}}
            for a in made
        ]
        run = page and {
            "historyLineCount": len(page.history),
            "history": [json.dumps(row) for row in page.history],
            "state": page.state,
            "summaryMetrics": json.dumps(page.summary),
            "outputArtifacts": {"edges": edges},
        }
        return {"project": {"run": run}}

    def _Records(self, asked: dict) -> dict:
        def node(page: Page) -> dict:
            made = [a for a in self.artifacts.values() if a.run == page.name]
            return {
                "name": page.name,
                "outputArtifacts": {"edges": [{"node": artifact(a, index)} for index, a in enumerate(made)]},
            }

        def artifact(made: Artifact, index: int) -> dict:
            files = [{"name": name, "directUrl": f"{self.url}/artifacts/{made.id}/{name}"} for name in made.files]
            return {
                "state": "COMMITTED" if made.committed else "PENDING",
                "versionIndex": index,
                "artifactType": {"name": made.type},
                "files": {"edges": [{"node": file} for file in files]},
            }

        pages = [p for p in self.pages.values() if (p.entity, p.project) == (asked["entity"], asked["project"])]
        if not pages:
            return {"project": None}
        first = int(asked.get("after") or 0)
        shown = pages[first : first + asked["first"]]
        more = {"hasNextPage": first + len(shown) < len(pages), "endCursor": str(first + len(shown))}
        return {"project": {"runs": {"pageInfo": more, "edges": [{"node": node(page)} for page in shown]}}}

    # --- GraphQL: views -----------------------------------------------------------------------------------------------

    def _Views(self, asked: dict) -> dict:
        if not any((p.entity, p.project) == (asked["entity"], asked["project"]) for p in self.pages.values()):
            return {"project": None}
        found = [v for v in self.views.values() if (v["name"], v["type"]) == (asked["name"], asked["type"])]
        edges = [{"node": {"id": view["id"], "name": view["name"]}} for view in found]
        return {"project": {"allViews": {"edges": edges}}}

    def _UpsertView(self, sent: dict) -> dict:
        new = not sent.get("id")
        id = self._id("View") if new else sent["id"]
        self.views[id] = sent | {"id": id}
        return {"upsertView": {"view": {"id": id, "name": sent["name"]}, "inserted": new}}

    def _CreateCustomChart(self, sent: dict) -> dict:
        name = f"{sent['entity']}/{sent['chartName']}"
        if name in self.charts:
            raise Refused(409, json.dumps({"errors": [{"message": f"chart {name} already exists"}]}))
        self.charts[name] = sent
        return {"createCustomChart": {"chart": {"id": name}}}

    # --- GraphQL: sweeps ----------------------------------------------------------------------------------------------

    def _UpsertSweep(self, sent: dict) -> dict:
        name = sent.get("id") or f"sweep{len(self.sweeps) + 1}"
        self.sweeps[name] = self.sweeps.get(name, {}) | sent
        project = {"id": "p", "name": sent["projectName"], "entity": {"id": "e", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, asked: dict) -> dict:
        sweep = self.sweeps.get(asked["sweep"])
        found = sweep and {
            "id": asked["sweep"], "name": asked["sweep"], "method": "bayes", "state": "RUNNING", "description": "",
            "config": sweep["config"], "createdAt": WHEN, "heartbeatAt": WHEN, "updatedAt": WHEN,
            "earlyStopJobRunning": False, "bestLoss": None, "controller": None, "scheduler": None,
            "runs": {"edges": []},
        }  # fmt: skip
        return {"project": {"sweep": found}}

    def _CreateAgent(self, asked: dict) -> dict:
        return {"createAgent": {"agent": {"id": f"agent of {asked['sweep']}"}}}

    def _Heartbeat(self, asked: dict) -> dict:
        commands = []
        if not json.loads(asked["runState"]):  # nothing runs
            commands = [{"type": "exit"}]
            if self.trials:
                values = {key: {"value": value} for key, value in self.trials.pop(0).items()}
                run = f"trial{len(self.trials)}"
                commands = [{"type": "run", "run_id": run, "program": None, "args": values}]
        return {"agentHeartbeat": {"agent": {"id": asked["id"]}, "commands": json.dumps(commands)}}

    # --- GraphQL: artifacts -------------------------------------------------------------------------------------------

    def _ArtifactType(self, asked: dict) -> dict:
        name = asked["name"].partition(":")[0]
        found = [artifact for artifact in self.artifacts.values() if artifact.name == name]
        return {"project": {"artifact": {"artifactType": {"name": found[0].type}} if found else None}}

    def _CreateArtifact(self, sent: dict) -> dict:
        id = self._id("Artifact")
        name = sent["artifactCollectionName"]
        self.artifacts[id] = Artifact(id, name, sent["artifactTypeName"], sent["runName"], sent["projectName"])
        return {
            "createArtifact": {"artifact": {"id": id, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}}
        }

    def _CreateArtifactManifest(self, sent: dict) -> dict:
        url = f"{self.url}/artifacts/{sent['artifactID']}/wandb_manifest.json"
        file = {"id": self._id("File"), "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": self._id("Manifest"), "file": file}}}

    def _UpdateArtifactManifest(self, sent: dict) -> dict:
        self.unknown.append("UpdateArtifactManifest")
        return {}

    def _CreateArtifactFiles(self, sent: dict) -> dict:
        edges = [
            {
                "node": {
                    "storagePath": f"{f['artifactID']}/{f['name']}",
                    "uploadUrl": f"{self.url}/artifacts/{f['artifactID']}/{f['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": f["artifactID"]},
                }
            }
            for f in sent["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, sent: dict) -> dict:
        self.artifacts[sent["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": hashlib.md5(b"").hexdigest()}}}


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlparse(self.path).path
        try:
            status, content = self.service.handle(self.command, path, body, self.headers.get("Authorization") or "")
        except Refused as refused:
            status, content = refused.status, str(refused).encode()
        except ConnectionError:
            self.close_connection = True
            return
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass  # whoever asked has gone

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_) -> None:
        pass


@contextmanager
def standing_in() -> Iterator[Service]:
    """A service for as long as the block lasts."""
    service = Service()
    try:
        yield service
    finally:
        service.stop()
