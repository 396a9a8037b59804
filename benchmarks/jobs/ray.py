"""A Ray cluster: one task a run, wherever there is room for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrams.benchmarks.jobs import hashes
from engrams.benchmarks.jobs.elsewhere import Errand, epochs_told
from engrams.benchmarks.jobs.place import PlaceError, ProcessError, Report

if TYPE_CHECKING:
    from engrams.benchmarks.runs import Run

RETRIES = 5
"""How often a run is begun again, or goes on from its checkpoint, whose node or process was lost."""
LOOKS_EVERY = 1.0
"""Seconds."""
OWN = {"cpus": "num_cpus", "gpus": "num_gpus", "num_cpus": "num_cpus", "memory": "memory"}
"""What a task asks for by a name of Ray's own; the rest are a cluster's own resources."""


def check() -> None:
    """Says what a cluster needs that is not here.

    Raises:
        PlaceError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise PlaceError("--on ray needs Ray: pip install 'engrams[ray]'")


def resources(gpus: float | None, ask: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a task asks for, as Ray has it.

    Args:
        gpus: of a run; a part of one is shared with others.
        ask: ``cpus``, ``memory`` in bytes, or resources of the cluster's own.

    Raises:
        PlaceError: one is no number.
    """
    asked: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus or 0}
    for key, value in ask.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise PlaceError(f"--ask {key}={value}: Ray has numbers of everything; memory in bytes")
        if key in ("CPU", "GPU"):
            raise PlaceError(f"--ask {key}={value}: write {'cpus' if key == 'CPU' else '--gpus'} for it")
        if key in OWN:
            asked[OWN[key]] = value
        else:
            asked.setdefault("resources", {})[key] = value
    return asked


@dataclass(frozen=True)
class Ray:
    """A cluster whose machines share the folder of the records and see this one's code and data."""

    out: Path
    say: Callable[[str], None]
    """Prints a line."""
    address: str | None = None
    """``ray://host:port``; None for RAY_ADDRESS, the cluster of this machine, or one that is started here."""
    workers: int | None = None
    """Runs at once; None for as many as there is room for."""
    asked: Mapping[str, Any] = field(default_factory=lambda: resources(None, {}))
    """What a run asks for; see :func:`resources`."""
    outlives = False

    def do(
        self, jobs: Iterable[Run], work: Callable[[Run, Report], Any], advanced: Callable[[Run, int], None]
    ) -> Generator[tuple[Run, Any], None, None]:
        import ray

        owed = iter(jobs)
        first = next(owed, None)
        if first is None:
            return
        self._join()
        try:
            self._say_what_is_there()
            task = ray.remote(max_retries=RETRIES, **self.asked)(_do)
            waiting: dict[Any, Run] = {}
            told: dict[Any, int] = {}

            def begin(run: Run) -> None:
                errand = Errand(work, run, run.folder(self.out).absolute())
                waiting[task.options(name=run.name).remote(errand)] = run

            begin(first)
            while waiting:
                room = None if self.workers is None else self.workers - len(waiting)
                for run in islice(owed, room):
                    begin(run)
                ended, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOKS_EVERY)
                for reference, run in waiting.items():
                    if (epochs := epochs_told(run.folder(self.out))) is not None and epochs != told.get(reference):
                        if reference not in told:
                            advanced(run, 0)
                        told[reference] = epochs
                        advanced(run, epochs)
                for reference in ended:
                    run = waiting.pop(reference)
                    if reference not in told:
                        advanced(run, 0)
                    yield run, _outcome(reference)
        finally:
            ray.shutdown()

    def _join(self) -> None:
        import ray

        try:
            ray.init(
                address=self.address,
                runtime_env={"env_vars": hashes.variables()},
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
            )
        except Exception as error:  # whatever its network layer comes up with
            where = self.address or "the cluster of this machine"
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise PlaceError(f"--on ray: {where} cannot be joined: {reason}") from error

    def _say_what_is_there(self) -> None:
        import ray

        asked = {"CPU": self.asked["num_cpus"], "GPU": self.asked["num_gpus"], **self.asked.get("resources", {})}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        self.say(f"Ray: {len(nodes)} node{'s' * (len(nodes) != 1)}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs")
        if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            needed = ", ".join(f"{name} {amount:g}" for name, amount in asked.items() if amount)
            self.say(f"Ray: no node has what a run asks for ({needed}); waiting for one")


def _do(errand: Errand) -> Any:
    return errand()


def _outcome(reference: Any) -> Any:
    """What a task returned, or that its process was lost too often; a bug in it is raised here."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        return ProcessError(f"Ray lost its process {RETRIES + 1} times: {reason or type(error).__name__}")
