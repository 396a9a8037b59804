"""What runs take: time, memory, what a strategy keeps, operations. Shown where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from engrams.reports.costs import Costs
from engrams.reports.pages.comparison import are_on_several, by_protocol, complete_by_row, devices_of
from engrams.reports.render import Sheet
from engrams.reports.store import Record

LEGEND = (
    "Means over seeds of one run; '-' where records are older than the measure. 's' and 'processor s': training and "
    "evaluation, on the clock and on all processors. 'peak MB': the most memory that the process took with all its "
    "libraries and data, or of a GPU what tensors took. 'model MB', 'kept MB': the network, and what the strategy "
    "keeps besides and besides the optimiser's state (importances, anchors, a buffer, previous models, generators). "
    "'GFLOP': floating-point operations of training, matrix products, convolutions and attention alone, then those of "
    "each kind of step; what Avalanche's plugins do outside of a training step is not counted. Seconds and memory of "
    "different devices do not compare."
)


def _costs(read: Callable[[Costs], float | None]) -> Callable[[Record], float | None]:
    return lambda record: read(record.costs) if record.costs else None


MEASURES: dict[str, Callable[[Record], float | None]] = {
    "seconds": lambda record: record.seconds,
    "processor seconds": _costs(lambda costs: costs.processor_seconds),
    "peak memory (MB)": _costs(lambda costs: None if costs.peak_memory is None else costs.peak_memory / 1e6),
    "model (MB)": _costs(lambda costs: costs.bytes.get("model", 0) / 1e6),
    "kept besides (MB)": _costs(lambda costs: costs.kept / 1e6),
    "operations (GFLOP)": _costs(lambda costs: costs.all_operations / 1e9),
}
"""Name -> what a complete record says of it; None where it does not."""
HEADINGS = dict(zip(MEASURES, ("s", "processor s", "peak MB", "model MB", "kept MB", "GFLOP"), strict=True))


@dataclass(frozen=True)
class Taken:
    """What the runs of one strategy under one protocol take, means over those that say it."""

    protocol: str
    strategy: str
    seeds: int
    measures: dict[str, float]
    operations: dict[str, float]
    """GFLOP by kind of step."""
    devices: tuple[str, ...]
    """As of a :class:`engrams.reports.pages.comparison.Row`."""


def values_of(measure: str, records: Iterable[Record]) -> list[float]:
    """Returns what those complete records say of a measure that say it."""
    found = (MEASURES[measure](record) for record in records if record.complete)
    return [value for value in found if value is not None]


def compare(records: Iterable[Record]) -> list[Taken]:
    """Returns the complete records' rows, the quickest first."""
    rows = []
    for (protocol, strategy), group in complete_by_row(records).items():
        found = {name: values for name in MEASURES if (values := values_of(name, group))}
        costs = [record.costs for record in group if record.costs]
        kinds = sorted({kind for one in costs for kind in one.operations})
        operations = {kind: float(np.mean([one.operations.get(kind, 0) for one in costs])) / 1e9 for kind in kinds}
        means = {name: float(np.mean(values)) for name, values in found.items()}
        rows.append(Taken(protocol, strategy, len(group), means, operations, devices_of(group)))
    return sorted(rows, key=lambda row: (row.protocol, row.measures["seconds"]))


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def sheets(rows: Iterable[Taken]) -> list[Sheet]:
    """Returns one table a protocol."""
    found = []
    for protocol, group in by_protocol(rows).items():
        kinds = sorted({kind for row in group for kind in row.operations})
        with_device = are_on_several(group)
        cells = [
            {"strategy": row.strategy}
            | {heading: _written(row.measures.get(name)) for name, heading in HEADINGS.items()}
            | {kind: _written(row.operations.get(kind)) for kind in kinds}
            | {"seeds": str(row.seeds)}
            | ({"device": ", ".join(row.devices)} if with_device else {})
            for row in group
        ]
        found.append(Sheet(f"{protocol}: what a run takes", cells, spare=("seeds", *kinds, "model MB", "processor s")))
    return found


def as_csv(records: Iterable[Record]) -> str:
    """One line a complete run: every measure, the bytes of every part and the operations of every kind of step."""
    import pandas as pd  # here: a table in the terminal does without, and comes sooner

    lines = []
    for record in records:
        if not (record.complete and record.on_test_data):
            continue
        line: dict[str, object] = {
            "protocol": record.protocol,
            "strategy": record.row,
            "seed": record.seed,
            "device": record.device,
        }
        line |= {name: measure(record) for name, measure in MEASURES.items()}
        if record.costs:
            line |= {f"bytes of {part}": size for part, size in record.costs.bytes.items()}
            line |= {f"operations of {kind}": number for kind, number in record.costs.operations.items()}
        lines.append(line)
    return pd.DataFrame(lines).to_csv(index=False)
