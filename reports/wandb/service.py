"""W&B's service, asked directly: whether it is there, and what of a run has arrived.

wandb's own client is patient: it asks a service that does not answer for minutes. What is asked here is asked once.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import requests

from engrams.reports.wandb.settings import Address

PATIENCE = 15.0
"""Seconds after which a service that has not said that it is there is taken for absent."""


class ServiceError(Exception):
    """The service cannot be used; the message is a part of a line, and says why."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status
        """Of HTTP, if it answered with one."""


class Service:
    """One at an address."""

    def __init__(self, address: Address):
        self.address = address
        self.url, self.web, self.key = address.url, address.web, address.key

    def ask(self, query: str, variables: dict[str, Any] | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Returns the ``data`` of the answer to a GraphQL query.

        Raises:
            ServiceError: it is not there, does not answer in time, or refuses.
        """
        timeout = PATIENCE if timeout is None else timeout
        answer: list[requests.Response | Exception] = []

        def post() -> None:
            try:
                answer.append(
                    requests.post(
                        f"{self.url}/graphql",
                        json={"query": query, "variables": variables or {}},
                        auth=("api", self.key),
                        timeout=timeout,
                    )
                )
            except requests.RequestException as error:
                answer.append(error)

        # A timeout of requests is one between two bytes: the whole has one here.
        thread = threading.Thread(target=post, daemon=True)
        thread.start()
        thread.join(timeout)
        if not answer or isinstance(answer[0], requests.Timeout):
            raise ServiceError(f"{self.url} does not answer within {timeout:.0f} s")
        response = answer[0]
        if isinstance(response, Exception):
            raise ServiceError(f"{self.url} cannot be reached ({_cause(response)})")
        if response.status_code in (401, 403):
            raise ServiceError(
                f"{self.url} refuses the API key (status {response.status_code}); get one at {self.web}/authorize"
            )
        try:
            content = response.json()
        except ValueError:
            content = {}
        said = content["errors"][0].get("message") if isinstance(content, dict) and content.get("errors") else None
        if response.status_code != 200:
            why = f" ({said})" if said else ""
            raise ServiceError(f"{self.url} answers with status {response.status_code}{why}", response.status_code)
        if said:
            raise ServiceError(f"{self.url} says: {said}")
        if not isinstance(content, dict) or "data" not in content:
            raise ServiceError(f"{self.url} is no W&B service")
        return content["data"]

    def entity(self) -> str:
        """Returns whose runs they are where nothing else is said; proves that the service is there and knows the key.

        Raises:
            ServiceError: as :meth:`ask`.
        """
        viewer = self.ask("query Viewer { viewer { id entity username } }")["viewer"]
        if not viewer:
            raise ServiceError(f"{self.url} does not know the API key; get one at {self.web}/authorize")
        return viewer["entity"]

    def is_deleted(self, entity: str, project: str, run: str) -> bool:
        """Returns whether a page of this id was deleted: W&B then refuses to make one.

        Raises:
            ServiceError: as :meth:`ask`.
        """
        try:
            self.ask(_UPSERT, {"entity": entity, "project": project, "name": run})
        except ServiceError as error:
            if error.status == 409:
                return True
            raise
        return False

    def arrived(self, entity: str, project: str, run: str) -> Arrived | None:
        """Returns what there is of a run; None if there is nothing.

        Raises:
            ServiceError: as :meth:`ask`.
        """
        found = (self.ask(_ARRIVED, {"entity": entity, "project": project, "run": run})["project"] or {}).get("run")
        if not found:
            return None
        artifacts = [edge["node"] for edge in found["outputArtifacts"]["edges"]]
        return Arrived(
            rows=found["historyLineCount"] or 0,
            state=found["state"],
            summary=found["summaryMetrics"] or "",
            history=[json.loads(row) for row in found["history"] or []],
            records=sum(a["artifactType"]["name"] == "record" and a["state"] == "COMMITTED" for a in artifacts),
        )


_ARRIVED = """query Arrived($entity: String, $project: String!, $run: String!) {
  project(name: $project, entityName: $entity) {
    run(name: $run) {
      historyLineCount state summaryMetrics
      history(minStep: 0, maxStep: 1000000, samples: 100000)
      outputArtifacts(first: 100) { edges { node { state artifactType { name } } } }
    }
  }
}"""


_UPSERT = """mutation UpsertBucket($entity: String, $project: String, $name: String) {
  upsertBucket(input: {entityName: $entity, modelName: $project, name: $name}) { bucket { id } }
}"""


@dataclass(frozen=True)
class Arrived:
    """What the service has of a run."""

    rows: int
    state: str
    summary: str
    """JSON."""
    history: list[dict[str, Any]]
    records: int
    """Committed artifacts of that type."""


def _cause(error: BaseException) -> str:
    """The innermost reason, in its own words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error)
