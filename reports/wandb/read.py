"""W&B -> records: those of a project, from the artifact that each run leaves; and those in W&B's offline files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import requests
from pydantic import ValidationError

from engrams.reports.files import found_below
from engrams.reports.store import RECORD, NewerRecord, Record, RecordError, record_of
from engrams.reports.wandb import page
from engrams.reports.wandb.service import PATIENCE, Service, ServiceError
from engrams.reports.wandb.settings import NO_KEY, resolve

SOURCE = "wandb:"
PAGES_AT_ONCE = 50
_RUNS = """query Records($entity: String, $project: String!, $first: Int!, $after: String) {
  project(name: $project, entityName: $entity) {
    runs(first: $first, after: $after, order: "+created_at") {
      pageInfo { hasNextPage endCursor }
      edges { node { name outputArtifacts(first: 100) { edges { node {
        state versionIndex artifactType { name } files(first: 10) { edges { node { name directUrl } } }
      } } } } }
    }
  }
}"""


def records_of_project(source: str, damaged: list[RecordError] | None = None) -> list[Record]:
    """Returns the record of every run of a project that has one, the newest where it has several, or several pages.

    Args:
        source: ``wandb:ENTITY/PROJECT``, or ``wandb:PROJECT`` of the key's own entity.
        damaged: gets why a record is left out; None raises it.

    Raises:
        RecordError: the service cannot be used, there is no such project, or what it has is no record.
    """
    entity, _, project = source.removeprefix(SOURCE).rpartition("/")
    if not project:
        raise RecordError(f"{source}: write {SOURCE}ENTITY/PROJECT")
    settings = resolve("online")
    if (address := settings.address) is None:
        raise RecordError(f"{source}: {settings.word.partition(': ')[2] or NO_KEY}")
    service = Service(address)
    found: dict[str, Record] = {}
    try:
        for url in _addresses(service, entity or service.entity(), project):
            try:
                record = _downloaded(service, source, url)
            except RecordError as error:
                if damaged is None:
                    raise
                damaged.append(error)
                continue
            found[page.introduction_of(record)["id"]] = record
    except (ServiceError, requests.RequestException) as error:
        raise RecordError(f"{source}: {error}") from error
    return list(found.values())


def _addresses(service: Service, entity: str, project: str) -> Iterator[str]:
    """Where the record of each page lies, the oldest page first."""
    after = None
    while True:
        asked = {"entity": entity, "project": project, "first": PAGES_AT_ONCE, "after": after}
        found = service.ask(_RUNS, asked)["project"]
        if found is None:
            raise ServiceError(f"there is no project {entity}/{project}")
        for run in _nodes(found["runs"]):
            versions = [
                artifact
                for artifact in _nodes(run["outputArtifacts"])
                if artifact["artifactType"]["name"] == "record" and artifact["state"] == "COMMITTED"
            ]
            if versions:
                newest = max(versions, key=lambda artifact: artifact["versionIndex"] or 0)
                yield from (file["directUrl"] for file in _nodes(newest["files"]) if file["name"] == RECORD)
        if not found["runs"]["pageInfo"]["hasNextPage"]:
            return
        after = found["runs"]["pageInfo"]["endCursor"]


def _nodes(connection: dict[str, Any]) -> list[dict[str, Any]]:
    return [edge["node"] for edge in connection["edges"]]


def _downloaded(service: Service, source: str, url: str) -> Record:
    mine = url.startswith(
        f"{service.url.rstrip('/')}/"
    )  # an address elsewhere is signed, and must not be shown the key
    response = requests.get(url, auth=("api", service.key) if mine else None, timeout=PATIENCE)
    response.raise_for_status()
    try:
        return record_of(response.json())
    except NewerRecord as error:
        raise NewerRecord(f"{source}: {url} {error}") from None
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise RecordError(f"{source}: {url} is no record ({reason})") from error


def records_of_files(folder: Path) -> list[Record]:
    """Returns the records of the runs that W&B's offline files below a folder hold; each run once, the newest.

    A file that is cut short, and one of a run that has not ended or leaves no record, is passed over.
    """
    found: dict[str, Record] = {}
    for path in sorted(found_below(folder, "*.wandb"), key=lambda path: path.stat().st_mtime):
        config: dict[str, Any] = {}
        summary: dict[str, Any] = {}
        history: list[dict[str, Any]] = []
        for message in messages(path):
            if message.HasField("run"):
                config |= _items(message.run.config.update)
            elif message.HasField("config"):
                config |= _items(message.config.update)
            elif message.HasField("summary"):
                summary |= _items(message.summary.update)
            elif message.HasField("history"):
                history.append(_items(message.history.item))
        try:
            record = page.record_of(config, history, summary)
        except (KeyError, ValidationError):  # a trial of a search, or one of a study of subsets: they leave no record
            continue
        if record is not None:
            found[path.stem] = record
    return list(found.values())


def messages(path: Path) -> Iterator[Any]:
    """Yields the messages of a .wandb file, wandb's own protocol buffers, up to where it is cut short.

    They are framed as LevelDB's logs are, after a header of 7 bytes: blocks of 32 KiB hold chunks of a checksum (4
    bytes), a length (2), a type (1: whole, 2: first, 3: middle, 4: last) and data.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, []
    if content[:4] != b":W&B":
        return
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + 7 + length > len(content) or kind not in (1, 2, 3, 4):
            return
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            message = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            try:
                message.ParseFromString(b"".join(parts))
            except DecodeError:
                return
            parts = []
            yield message


def _items(entries: Iterable[Any]) -> dict[str, Any]:
    return {"/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}
