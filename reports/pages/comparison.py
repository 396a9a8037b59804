"""Records -> comparison tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from engrams.reports.anytime import MEASURES
from engrams.reports.estimates import CONFIDENCE, Estimate, p_value
from engrams.reports.matrix import METRICS
from engrams.reports.render import Sheet
from engrams.reports.settings import DATA, differing, flat, folder_named, set_by_hand
from engrams.reports.store import Record, RecordError

ESTIMATED = (*METRICS, *MEASURES, "prequential")
"""What is averaged over seeds: tables show the metrics here and the rest on a page of its own, the CSV has them all."""
LEVEL_FROM = 3
"""Seeds in common from which on it says something that a test finds no difference."""
IN_COMMON = ("dataset", DATA, "scenario", "images", "stream", "network", "training")
"""What rows that are compared have in common, but for the learning rate, which a protocol may set for a strategy."""
GOES_WITH = {
    "benchmark": ("dataset", DATA),
    "dataset": (DATA,),
    "images.standardise": ("images.mean", "images.std"),
    "stream.kind": ("stream",),
    "network.kind": ("network",),
}
"""A setting -> what else becomes another by it."""


@dataclass(frozen=True)
class Row:
    """One strategy under one protocol, over its seeds."""

    protocol: str
    strategy: str
    metrics: dict[str, Estimate]
    seeds: int
    failed: int
    seconds: float | None
    """Mean over seeds."""
    devices: tuple[str, ...]
    """That the seconds were taken on: several, where the seeds were not done on one."""
    upper_bound: bool
    best: bool
    """The highest mean ACC of the rows that compete: no upper bound, the whole stream, half as many seeds as any."""
    common_seeds: int
    """With the best row; 0 for an upper bound or fewer experiences, which are not tested against it."""
    below_best: float | None
    """Mean difference in ACC to the best row, where the seeds, paired, support that there is one; else None."""

    @property
    def compared(self) -> bool:
        """Tells whether it could be tested against the best row."""
        return self.common_seeds >= 2


def compare(records: Iterable[Record]) -> list[Row]:
    """Returns the rows of the comparison tables, by protocol: best first, then short runs, then upper bounds.

    Whether a row differs from the best is decided by a paired t-test over the seeds that both have (two-sided, 5%,
    not corrected for the number of rows); with fewer than two common seeds nothing is supported.

    Args:
        records: of any number of protocols, strategies and seeds; failed ones are counted, not averaged, and trials
            of a search, which are judged on validation data, are left out.

    Raises:
        RecordError: the seeds of one strategy were run with different hyperparameters, or a seed is there twice; or
            rows learned other streams, or in another way, and their names do not say so.
    """
    rows = []
    for protocol, by_strategy in sorted(grouped(records).items()):
        _check_settings_in_common(protocol, by_strategy)
        acc = {
            strategy: {record.seed: record.acc for record in group if record.complete}
            for strategy, group in by_strategy.items()
        }
        upper_bounds = {name for name, group in by_strategy.items() if any(record.upper_bound for record in group)}
        shorter = {name for name, group in by_strategy.items() if any(map(is_of_the_beginning, group))}
        shorter = shorter if len(shorter) < len(by_strategy) else set()  # they compete with each other
        most_seeds = max(map(len, acc.values()))
        learners = {
            name: list(by_seed.values())
            for name, by_seed in acc.items()
            if len(by_seed) >= most_seeds / 2 > 0 and name not in upper_bounds | shorter
        }
        best = max(learners, key=lambda name: np.mean(learners[name]), default=None)
        rows += sorted(
            (
                _row(protocol, strategy, group, strategy in upper_bounds, None if strategy in shorter else best, acc)
                for strategy, group in by_strategy.items()
            ),
            key=lambda row: (
                row.upper_bound,
                row.strategy in shorter,
                -row.metrics["ACC"].mean if row.metrics else 1.0,
            ),
        )
    return rows


def is_of_the_beginning(record: Record) -> bool:
    """Tells whether a record is of the stream's first experiences alone."""
    return "first_experiences" in record.hyperparameters


def grouped(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Returns protocol -> strategy -> the records, failed ones too, that were judged on test data.

    Raises:
        RecordError: the seeds of one strategy were run with different hyperparameters, or a seed is there twice.
    """
    by_protocol: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.on_test_data:
            by_protocol.setdefault(record.protocol, {}).setdefault(record.row, []).append(record)
    for protocol, by_strategy in by_protocol.items():
        for strategy, group in by_strategy.items():
            _check_one_row(protocol, strategy, group)
    return by_protocol


def complete_by_row(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Returns (protocol, row) -> its complete records that were judged on test data, where there are any.

    Raises:
        RecordError: as :func:`grouped`.
    """
    return {
        (protocol, row): complete
        for protocol, by_strategy in grouped(record for record in records if record.complete).items()
        for row, complete in by_strategy.items()
    }


def _row(
    protocol: str,
    strategy: str,
    group: list[Record],
    upper_bound: bool,
    best: str | None,
    acc: dict[str, dict[int, float]],
) -> Row:
    complete = [record for record in group if record.complete]
    measured: list[dict[str, float | None]] = [{**record.metrics, **record.along_the_way} for record in complete]
    estimates = {}
    for name in ESTIMATED:
        values = [value for of_seed in measured if (value := of_seed.get(name)) is not None]
        if values:
            estimates[name] = Estimate.of(values)
    against = acc[best] if best is not None and not upper_bound and strategy != best else {}
    common = len(acc[strategy].keys() & against.keys())
    return Row(
        protocol,
        strategy,
        estimates,
        seeds=len(complete),
        failed=len(group) - len(complete),
        seconds=float(np.mean([record.seconds for record in complete])) if complete else None,
        devices=devices_of(complete),
        upper_bound=upper_bound,
        best=strategy == best,
        common_seeds=common,
        below_best=_supported_difference(acc[strategy], against) if common >= 2 else None,
    )


def devices_of(records: Iterable[Record]) -> tuple[str, ...]:
    """Returns what runs were done on, each once."""
    return tuple(sorted({record.device for record in records}))


def _check_one_row(protocol: str, strategy: str, group: list[Record]) -> None:
    seeds = [record.seed for record in group]
    if len(set(seeds)) < len(seeds):
        raise RecordError(f"{protocol} {strategy}: a seed is there twice; keep one set of records in the folder")
    complete = [record for record in group if record.complete]  # one that failed may be of a file that is mended now
    for record in complete:
        if found := differing(complete[0].hyperparameters, record.hyperparameters):
            key, before, now = found
            first, other = f"seed {complete[0].seed}", f"seed {record.seed}"
            how = f"{first} has {key} {before}, {other} has {now}"
            if key == "code":  # a digest of the strategy's own file, which tells nobody anything
                how = f"its file changed between {first} and {other}"
            raise RecordError(
                f"{protocol} {strategy}: its seeds were run with different hyperparameters ({how}); run them again "
                f"into one folder"
            )


def _check_settings_in_common(protocol: str, by_row: Mapping[str, list[Record]]) -> None:
    """Raises a RecordError where rows learned other data, or in another way, and their names do not say so."""
    settings = defaultdict(list)  # of each folder: the name of a row says which it is of
    for row, group in by_row.items():
        if one := next((record for record in group if record.complete), None):  # its seeds are all alike
            # A strategy's own setting may be called "network", too; a protocol's tables are set by what is in them.
            by_hand = [
                key for key, _ in set_by_hand(one.variant, one.hyperparameters) if "." in key or key in GOES_WITH
            ]
            own = {key for chosen in by_hand for key in (chosen, *GOES_WITH.get(chosen, ()))}
            found = flat({name: one.hyperparameters.get(name) for name in IN_COMMON})
            found.pop("training.learning_rate", None)
            settings[folder_named(one.variant)].append((row, own, found))
    for rows in settings.values():
        for key in dict.fromkeys(key for *_, found in rows for key in found):
            alike = [(row, found) for row, own, found in rows if own.isdisjoint(_holders(key))]
            # Older records may lack one that is kept since.
            may_lack = key == DATA or key.startswith("training.")
            values = {found.get(key): row for row, found in alike if key in found or not may_lack}
            if len(values) < 2:
                continue
            first, second = list(values.values())[:2]
            name = key if key.startswith("training.") else key.partition(".")[0].replace("_", " ")
            raise RecordError(
                f"{protocol}: {first} and {second} were run with another {name}, and cannot be compared; run them "
                f"again into one folder, or call one protocol otherwise"
            )


def _holders(key: str) -> list[str]:
    """Returns a dotted key and those of the tables that it is in."""
    parts = key.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _supported_difference(ours: dict[int, float], best: dict[int, float]) -> float | None:
    differences = np.array([ours[seed] - best[seed] for seed in sorted(ours.keys() & best.keys())])
    p = p_value(differences)
    if p is None:  # every seed says the same
        return float(differences[0]) or None
    return float(differences.mean()) if p < 1 - CONFIDENCE else None


# --- shown ------------------------------------------------------------------------------------------------------------

HEADINGS = {
    "ACC": "ACC",
    "BWT": "BWT",
    "FWT": "FWT",
    "forgetting": "forgetting",
    "learning_accuracy": "learning acc.",
}
SPARE = ("s a run", "device", "FWT", "learning acc.", "BWT", "seeds", "to best")
LEGEND = (
    "Percentages, mean ± 95% confidence interval over seeds. 'to best': difference in ACC to the best row (*), where a "
    "paired t-test over the seeds supports one at 5%; '=' where it does not, with three seeds or more in common. Rows "
    "marked ‡ see data that a continual learner would no longer have and do not compete; nor do those of fewer "
    "experiences. Where the rows of a table were not all done on one 'device', their seconds do not compare."
)


def _cells(row: Row, with_device: bool) -> dict[str, str]:
    if row.best:
        to_best = "*"
    elif row.below_best is not None:
        to_best = f"{100 * row.below_best:+.2f}"
    else:
        to_best = "=" if row.common_seeds >= LEVEL_FROM else ""
    return {
        "strategy": row.strategy + (" ‡" if row.upper_bound else ""),
        **{heading: row.metrics[name].percent() if name in row.metrics else "" for name, heading in HEADINGS.items()},
        "to best": to_best,
        "seeds": f"{row.seeds}" + (f" ({row.failed} failed)" if row.failed else ""),
        "s a run": "" if row.seconds is None else f"{row.seconds:.1f}",
        **({"device": ", ".join(row.devices)} if with_device else {}),
    }


class OfProtocol(Protocol):
    @property
    def protocol(self) -> str: ...


R = TypeVar("R", bound=OfProtocol)


def by_protocol(rows: Iterable[R]) -> dict[str, list[R]]:
    """Protocol -> its rows, both in the order given."""
    grouped: dict[str, list[R]] = {}
    for row in rows:
        grouped.setdefault(row.protocol, []).append(row)
    return grouped


class OnDevices(Protocol):
    @property
    def devices(self) -> tuple[str, ...]: ...


def are_on_several(rows: Iterable[OnDevices]) -> bool:
    """Tells whether rows were not all done on one device, so that their seconds and memory do not compare."""
    return len({device for row in rows for device in row.devices}) > 1


def _cells_of(group: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the cells of one protocol's rows."""
    with_device = are_on_several(group)
    return [_cells(row, with_device) for row in group]


def sheets(rows: Iterable[Row]) -> list[Sheet]:
    """Returns one table a protocol."""
    return [
        Sheet(
            protocol,
            _cells_of(group),
            spare=SPARE,
            styles=["bold" if row.best else "dim" if row.upper_bound else None for row in group],
        )
        for protocol, group in by_protocol(rows).items()
    ]


def as_latex(rows: Iterable[Row]) -> str:
    """Returns one tabular (booktabs) a protocol."""
    import pandas as pd  # here: a table in the terminal does without, and comes sooner

    parts = []
    for protocol, group in by_protocol(rows).items():
        frame = pd.DataFrame(_cells_of(group))
        body = frame.to_latex(index=False, column_format="l" + "r" * (frame.shape[1] - 1), escape=True)
        for sign, command in {"±": r"$\pm$", "‡": r"$\ddagger$"}.items():
            body = body.replace(sign, command)
        parts.append(f"% {protocol}\n{body}")
    return "\n".join([*parts, f"% {LEGEND.replace('%', chr(92) + '%')}", ""])


def as_csv(rows: Iterable[Row]) -> str:
    """Returns one line a row, numbers as fractions: mean and half-width of all that is averaged over its seeds."""
    import pandas as pd

    lines = []
    for row in rows:
        line: dict[str, object] = {"protocol": row.protocol, "strategy": row.strategy}
        for name in ESTIMATED:
            estimate = row.metrics.get(name)
            line[name] = estimate.mean if estimate else None
            line[f"{name}_half_width"] = estimate.half_width if estimate else None
        line |= {"best": row.best, "supported_difference_to_best": row.below_best, "upper_bound": row.upper_bound}
        line |= {"seeds": row.seeds, "failed": row.failed, "seconds": row.seconds}
        line["device"] = ", ".join(row.devices)
        lines.append(line)
    return pd.DataFrame(lines).to_csv(index=False)
