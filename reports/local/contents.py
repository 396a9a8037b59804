"""What the local report shows, as plain values: read off records, not yet drawn."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engrams.reports.estimates import Estimate
from engrams.reports.matrix import seen_so_far
from engrams.reports.pages import class_shares, comparison, costs, generation, privacy
from engrams.reports.predictions import Predictions
from engrams.reports.render import Sheet
from engrams.reports.settings import flat, recorded, set_by_hand
from engrams.reports.store import Record

AT_FIRST = 7
"""How many strategies the charts show before somebody chooses: more lines than colours cannot be told apart."""
CLASSES_EACH_TIME = 20
"""Of more classes, only the last confusion matrix is shown: each has as many numbers as classes, squared."""
DIGITS = 5
"""Of fractions, after the point: a thousandth of a percent."""
Interval = tuple[float, float | None]
"""A mean over seeds and the half-width of its 95% confidence interval; None for a single seed."""


@dataclass(frozen=True)
class Line:
    """A strategy under a protocol: what the charts draw of it. Fractions in [0, 1]."""

    strategy: str
    upper_bound: bool
    shown: bool
    """Whether the charts begin with it."""
    acc: Interval
    so_far: list[Interval]
    """ACC over the experiences trained on so far, after each of them; one value where all are learned at once."""
    forgetting: list[Interval]
    """Of each experience but the last, at the end of the stream; empty where all are learned at once."""
    learning_accuracy: Interval | None
    mean_forgetting: Interval | None
    costs: dict[str, Interval]
    """What a run takes, by name."""
    matrix: list[list[float]]
    """The mean over seeds."""


@dataclass(frozen=True)
class Section:
    """A protocol: its table, what is drawn of it, and its runs, by strategy."""

    protocol: str
    title: str
    own_file: bool
    """Whether the protocol is somebody's own."""
    rows: list[comparison.Row]
    lines: list[Line]
    sheets: list[tuple[Sheet, str]]
    """Tables of generators, each with what its columns mean."""
    runs: dict[str, list[Record]]

    @property
    def best(self) -> comparison.Row | None:
        """Returns the row that the others are compared with."""
        return next((row for row in self.rows if row.best), None)


def sections(records: Sequence[Record], titles: Mapping[str, str]) -> list[Section]:
    """Returns a section for every protocol that has records, by name.

    Args:
        records: of any number of protocols; trials of a search, which are judged on validation data, are left out.
        titles: protocol -> what it is, where that is known.

    Raises:
        RecordError: the seeds of one strategy were run with different hyperparameters, or a seed is there twice.
    """
    rows = comparison.by_protocol(comparison.compare(records))
    found = []
    for protocol, runs in sorted(comparison.grouped(records).items()):
        own = [record for group in runs.values() for record in group]
        chosen = _shown_at_first(rows[protocol])
        found.append(
            Section(
                protocol,
                titles.get(protocol, "a protocol of somebody's own"),
                protocol not in titles,
                rows[protocol],
                [
                    _line(row, [one for one in runs[row.strategy] if one.complete], row.strategy in chosen)
                    for row in rows[protocol]
                    if row.seeds
                ],
                [
                    (sheet, page.LEGEND)
                    for page in (class_shares, generation, privacy)
                    for sheet in page.sheets(page.compare(own))  # type: ignore[attr-defined]
                ],
                runs,
            )
        )
    return found


def _shown_at_first(rows: Sequence[comparison.Row]) -> set[str]:
    """The best ones, what they are measured against (naive), and one upper bound."""
    complete = [row for row in rows if row.seeds]
    ends = [row.strategy for row in complete if row.strategy == "naive"]
    ends += [row.strategy for row in complete if row.upper_bound][:1]
    best = [row.strategy for row in complete if row.strategy not in ends and not row.upper_bound]
    return {*ends, *best[: AT_FIRST - len(ends)]}


def _line(row: comparison.Row, runs: Sequence[Record], shown: bool) -> Line:
    matrices = np.array([run.accuracy_matrix for run in runs])
    at_once = matrices.shape[1] == 1
    so_far = [
        Estimate.of([seen_so_far(matrix[: count + 1].tolist())["ACC"] for matrix in matrices])
        for count in range(0 if at_once else matrices.shape[1])
    ]
    forgotten = matrices[:, :-1].max(axis=1) - matrices[:, -1] if matrices.shape[1] > 1 else np.empty((1, 1))
    return Line(
        row.strategy,
        row.upper_bound,
        shown,
        interval(row.metrics["ACC"]),
        [interval(one) for one in so_far] or [interval(row.metrics["ACC"])],
        [interval(Estimate.of(values)) for values in forgotten.T[:-1].tolist()],
        _interval_of(row, "learning_accuracy"),
        _interval_of(row, "forgetting"),
        {name: interval(Estimate.of(values)) for name in costs.MEASURES if (values := costs.values_of(name, runs))},
        matrices.mean(axis=0).round(DIGITS).tolist(),
    )


def interval(estimate: Estimate) -> Interval:
    """Returns an estimate as charts have it."""
    half_width = estimate.half_width
    return round(estimate.mean, DIGITS), None if half_width is None else round(half_width, DIGITS)


def _interval_of(row: comparison.Row, metric: str) -> Interval | None:
    return interval(row.metrics[metric]) if metric in row.metrics else None


# --- one run ----------------------------------------------------------------------------------------------------------


def command(record: Record, own_file: bool = False) -> str:
    """Returns the command that repeats a run.

    What was set by hand is named in the variant, and its value is in the hyperparameters, in full.

    Args:
        record: of the run.
        own_file: whether its protocol is somebody's own: the file in the current folder.
    """
    file, slash, scenario = record.protocol.partition("/")
    protocol = f"{file}.toml{slash}{scenario}" if own_file else record.protocol
    words = ["engrams", "run", protocol, record.strategy]
    for key, text in set_by_hand(record.variant, record.hyperparameters):
        if key == "experiences":
            words += ["--experiences", text]
        else:
            value = recorded(record.hyperparameters, key)
            in_full = text if value is None else value if isinstance(value, str) else json.dumps(value)
            words += ["--set", f"{key}={in_full}"]
    return shlex.join([*words, "--seeds", f"{record.seed}-{record.seed}"])


def run(
    record: Record, pictures: Sequence[str], answered: Predictions | None = None, own_file: bool = False
) -> dict[str, Any]:
    """Returns all that the page shows of a run when it is opened.

    Args:
        record: of the run.
        pictures: their paths from the page.
        answered: what it answered on the test stream, if that was kept.
        own_file: whether its protocol is somebody's own.
    """
    return {
        "seed": record.seed,
        "complete": record.complete,
        "reason": record.reason,
        "matrix": [[round(value, DIGITS) for value in row] for row in record.accuracy_matrix],
        "initial": [round(value, DIGITS) for value in record.accuracy_at_initialisation],
        "metrics": record.metrics,
        "undefined": record.undefined,
        "answered": answers(answered) if answered else None,
        "made": _made(record),
        "seconds": round(record.seconds, 2),
        "costs": _costs(record),
        "command": command(record, own_file),
        "settings": flat(record.hyperparameters),
        "environment": flat(record.environment),
        "pictures": list(pictures),
    }


def answers(found: Predictions) -> dict[str, Any]:
    """Returns what is read off the answers of a run: confusion, accuracy by class, recency bias."""
    times = len(found.answers)
    shown = range(times) if found.classes <= CLASSES_EACH_TIME else [times - 1]
    bias = found.recency_bias()
    by_class = found.accuracy_by_class().tolist()
    return {
        "confusion": {t + 1: found.confusion(t).tolist() for t in shown},
        "by_class": [[None if value != value else round(value, DIGITS) for value in row] for row in by_class],
        "recency": None if bias is None else bias.round(DIGITS).tolist(),
    }


def _made(record: Record) -> dict[str, Any] | None:
    """The matrices of a generator, a column a class that was learned."""
    if record.generated is None or not record.generated.frechet_by_class:
        return None
    learned = [label for label, last in enumerate(record.generated.frechet_by_class[-1]) if last is not None]
    matrices = {"frechet": record.generated.frechet_by_class, "reverse": record.generated.reverse_by_class}
    rounded = {
        name: [[None if row[c] is None else round(row[c] or 0.0, DIGITS) for c in learned] for row in matrix]
        for name, matrix in matrices.items()
    }
    return {"classes": list(map(str, learned)), **rounded}


def _costs(record: Record) -> dict[str, str]:
    if record.costs is None:
        return {}
    found = {"processor seconds": f"{record.costs.processor_seconds:.2f}"}
    if record.costs.peak_memory is not None:
        found["peak memory"] = f"{record.costs.peak_memory / 1e6:,.0f} MB"
    found |= {part: f"{size:,} bytes" for part, size in record.costs.bytes.items()}
    for kind, steps in record.costs.steps.items():
        found[f"steps: {kind}"] = f"{steps:,}, of {record.costs.operations[kind] / 1e9:,.3g} GFLOP in all"
    return found


def failures(found: Iterable[Section]) -> list[Record]:
    """Returns the runs that failed."""
    return [record for section in found for group in section.runs.values() for record in group if not record.complete]
