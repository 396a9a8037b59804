"""Records, doubted: each against its protocol, and some of them done again on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engrams.benchmarks.jobs.processes import Here
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import run_all
from engrams.benchmarks.names import strategy_called
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.dotted import flattened
from engrams.benchmarks.protocols.protocol import Protocol
from engrams.benchmarks.runs import Run
from engrams.reports.errors import UserError
from engrams.reports.provenance import DECIDING
from engrams.reports.settings import differing, first_difference
from engrams.reports.store import Record
from engrams.reports.wandb.settings import DISABLED
from engrams.strategies.contract import NoHyperparameters, Strategy

ELSEWHERE = 0.02
"""By how much ACC may differ where the machine or a library does."""


class Unrepeatable(UserError):
    """A record's run cannot be done here; the message says why."""


class Verdict(NamedTuple):
    """What came of doing a record's run again."""

    record: Record
    holds: bool
    said: str


def run_of_record(record: Record) -> Run:
    """Returns the run that a record is of.

    Raises:
        Unrepeatable: its protocol or strategy is not known here, or no longer has what the record says.
    """
    try:
        return _run_of(record)
    except (UserError, ValueError) as error:
        raise Unrepeatable(str(error).partition("\n")[0]) from error


def _run_of(record: Record) -> Run:
    decided = record.hyperparameters
    strategy = strategy_called(record.strategy)
    hyperparameters = strategy.hyperparameters.model_validate(decided["strategy"])
    # How it was judged while it learned decides nothing of the result, and is not among the hyperparameters.
    protocol = _protocol(record.protocol, strategy, {**decided, "judging": _judging(record)})
    first = decided.get("first_experiences")
    run = Run(protocol, strategy, record.seed, hyperparameters, decided["judge"], record.variant, first)
    if differing(decided, run.deciding()):
        raise Unrepeatable(f"it was made with other settings: {first_difference(decided, run.deciding())}")
    return run


def _judging(record: Record) -> dict[str, Any]:
    """What has to be asked for so that what a record has of the time while it learned is measured again."""
    asked: dict[str, Any] = {}
    if record.anytime:
        asked |= {"every": record.anytime.every, "samples": record.anytime.samples}
    if record.prequential:
        asked |= {"prequential": True, "window": record.prequential.window}
    return asked


def _protocol(name: str, strategy: Strategy, decided: dict[str, Any]) -> Protocol:
    """The protocol with the values that a record has; one of one's own is looked for in the current folder."""
    file, slash, scenario = name.partition("/")
    reference = f"{file}.toml{slash}{scenario}" if Path(f"{file}.toml").is_file() else name
    protocol = registry.get(reference)
    judging = protocol.judging.model_dump() if protocol.judging else {}
    present = {**protocol.deciding(strategy), "judging": judging}
    now, then = (registry.of_protocol(flattened(one)) for one in (present, decided))
    changed = {key: value for key, value in then.items() if now.get(key) != value}
    return registry.get(reference, changed) if changed else protocol


def wrong_size(record: Record) -> str | None:
    """Returns what is wrong with the size of a complete record's matrix for its protocol; None if nothing is.

    A protocol that is not known here, or whose data are not here, says nothing.
    """
    if not record.complete:
        return None
    rest = {key: value for key, value in record.hyperparameters.items() if key != "strategy"}
    shape = _shape(record.protocol, record.strategy, json.dumps(rest, sort_keys=True))
    found = len(record.accuracy_matrix), len(record.accuracy_matrix[0])
    if shape in (None, found):
        return None
    return f"its accuracy matrix is {found[0]} x {found[1]}, and {record.protocol}'s {shape[0]} x {shape[1]}"


@cache
def _shape(protocol: str, strategy: str, decided: str) -> tuple[int, int] | None:
    try:
        entry, first = strategy_called(strategy), json.loads(decided).get("first_experiences")
        found = _protocol(protocol, entry, json.loads(decided))
        size = Run(found, entry, 0, NoHyperparameters(), first=first).experiences
    except UserError:
        return None
    return 1 if entry.whole_stream_at_once else size, size


def repeat(records: Sequence[Record], workers: int | None, display: Display) -> list[Verdict]:
    """Does the runs of some records again and compares what comes out, to the bit where the machine is the same.

    Args:
        records: complete ones.
        workers: runs at once; None for one a core.
        display: told what is going on.
    """
    runs: dict[int, Run] = {}
    verdicts: dict[int, Verdict] = {}
    for index, record in enumerate(records):
        try:
            runs[index] = run_of_record(record)
        except Unrepeatable as error:
            verdicts[index] = Verdict(record, False, f"cannot be done again here: {error}")
    with tempfile.TemporaryDirectory(prefix="engrams-verify-") as out:
        again = run_all(list(runs.values()), Path(out), DISABLED, Here(workers), display)
        for index, record in zip(runs, again, strict=True):
            verdicts[index] = compared(records[index], record)
    return [verdicts[index] for index in range(len(records))]


def compared(then: Record, now: Record) -> Verdict:
    """Returns what is to be said of a record and of that of the same run, done again."""
    if not now.complete:
        return Verdict(then, False, f"failed: {now.reason}")
    figures = ("accuracy_matrix", "accuracy_at_initialisation")
    differences = [name for name in figures if getattr(then, name) != getattr(now, name)]
    # An older record has less of a generator; what it has must be the same.
    made_then, made_now = (one.generated.model_dump() if one.generated else {} for one in (then, now))
    differences += [f"generated.{name}" for name, value in made_then.items() if made_now.get(name) != value]
    along_the_way = {"anytime": (then.anytime, now.anytime), "prequential": (then.prequential, now.prequential)}
    differences += [name for name, (before, after) in along_the_way.items() if before and before != after]
    if not differences:
        return Verdict(then, True, "equal to the bit")
    said = f"ACC {100 * then.acc:.2f} in the record, {100 * now.acc:.2f} here; {', '.join(differences)} differ"
    machines = other_machine(then.environment, now.environment)
    if not machines:
        return Verdict(then, False, f"{said}, on the same kind of machine")
    within = abs(then.acc - now.acc) <= ELSEWHERE
    judged = f"within the {100 * ELSEWHERE:g} points" if within else f"more than the {100 * ELSEWHERE:g} points"
    return Verdict(then, within, f"{said}; {judged} that other circumstances may make: {machines}")


def other_machine(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns what differs between two environments that may decide a last bit; empty if nothing does."""
    kept = [(key, then.get(key), now.get(key)) for key in ("platform", "cpu", "device", "threads")]
    versions = then.get("versions", {}), now.get("versions", {})
    kept += [(name, *(found.get(name) for found in versions)) for name in DECIDING]
    return ", ".join(f"{key} {old or 'not recorded'} there, {new} here" for key, old, new in kept if old != new)
