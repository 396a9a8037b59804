"""The results of the adaptive experiment (see ``benchmarks/studies/adaptive.py``): on disk, estimated and tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engrams.reports.estimates import Estimate, p_value
from engrams.reports.files import write_json
from engrams.reports.render import Sheet
from engrams.reports.store import read_json

Fraction = Annotated[float, Field(ge=0, le=1)]
Classes = tuple[int, ...]
NOTHING: Classes = ()
"""Importance measured on nothing: no penalty."""
SECOND = "accuracy on the second experience"
LEGEND = (
    "Percentage points and percent, mean ± 95% confidence interval over seeds. Forgetting: accuracy on the test images "
    "of these classes before the second experience minus after it. Output change: mean squared change of the outputs "
    "on them meanwhile, relative to the mean squared output before."
)


class Outcome(BaseModel):
    """One seed under one condition; lists have an entry for each class of the first experience."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    measured_on: Classes
    """The classes that the importance was measured on."""
    before: list[Fraction]
    """Accuracy after the first experience."""
    after: list[Fraction]
    """Accuracy after the second."""
    output_change: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    """Mean squared change of the outputs by the second experience, relative to their mean square before it."""
    second: Fraction
    """Accuracy on the second experience, after it."""

    def forgetting(self, classes: Classes) -> float:
        return float(np.mean([self.before[c] - self.after[c] for c in classes]))

    def change(self, classes: Classes) -> float:
        return float(np.mean([self.output_change[c] for c in classes]))


class Results(BaseModel):
    """A whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    settings: dict[str, Any]
    """All that decides the outcomes but the seeds."""
    subsets: Annotated[list[Classes], Field(min_length=2, max_length=2)]
    classes: Annotated[int, Field(ge=2)]
    """How many the first experience has."""
    environment: dict[str, Any]
    outcomes: list[Outcome]

    @model_validator(mode="after")
    def _consistent(self) -> Results:
        if len({(outcome.seed, outcome.measured_on) for outcome in self.outcomes}) < len(self.outcomes):
            raise ValueError("a seed is there twice")
        for outcome in self.outcomes:
            if any(len(v) != self.classes for v in (outcome.before, outcome.after, outcome.output_change)):
                raise ValueError(f"seed {outcome.seed} has not one number a class")
        if not all(0 <= index < self.classes for subset in self.subsets for index in subset):
            raise ValueError(f"subsets are not of the classes 0 ... {self.classes - 1}")
        return self

    @property
    def groups(self) -> dict[str, Classes]:
        """Returns the classes that are looked at together: both subsets and what is in neither."""
        rest = tuple(c for c in range(self.classes) if not any(c in subset for subset in self.subsets))
        groups = {f"classes {label(subset)}": subset for subset in self.subsets}
        return groups | ({"the others": rest} if rest else {})

    @property
    def conditions(self) -> dict[str, Classes]:
        """Returns what the importance is measured on."""
        return {
            "nothing": NOTHING,
            **{f"classes {label(subset)}": subset for subset in self.subsets},
            "all classes": tuple(range(self.classes)),
        }

    def under(self, measured_on: Classes) -> list[Outcome]:
        """Returns the outcomes of one condition, by seed."""
        return sorted((o for o in self.outcomes if o.measured_on == measured_on), key=lambda o: o.seed)


def label(classes: Iterable[int]) -> str:
    return ", ".join(map(str, classes))


def write(results: Results, path: Path) -> None:
    """Writes the results, whole or not at all."""
    ordered = sorted(results.outcomes, key=lambda outcome: (outcome.seed, outcome.measured_on))
    write_json(path, results.model_copy(update={"outcomes": ordered}).model_dump(mode="json"))


def read(path: Path) -> Results:
    """Reads results.

    Raises:
        RecordError: the file is cut short, or not what :func:`write` leaves.
    """
    return read_json(path, Results, "holds no results of this study")


@dataclass(frozen=True)
class Difference:
    """Of one measure, paired over seeds; ``p``: of a two-sided paired t-test that it is zero, None where there is none.

    (There is none with fewer than two seeds, or where every seed says the same.)
    """

    estimate: Estimate
    p: float | None

    @classmethod
    def of(cls, differences: Sequence[float]) -> Difference:
        return cls(Estimate.of(differences), p_value(differences))


Measure = Callable[[Outcome, Classes], float]


def protection(results: Results, measure: Measure) -> dict[str, Difference]:
    """Returns how much less some classes lose if the importance is measured on them than on the other subset.

    For each subset, and last for the mean of both: a subset whose importances happen to be larger protects everything
    better, which counts for one subset as much as it counts against the other.

    Args:
        results: under both conditions; empty where no seed has been run under both.
        measure: what is lost, ``Outcome.forgetting`` or ``Outcome.change``.
    """
    first, second = results.subsets
    by_subset = [_paired(results, measure, own, other) for own, other in ((first, second), (second, first))]
    seeds = by_subset[0].keys() & by_subset[1].keys()
    if not seeds:
        return {}
    found = {
        f"classes {label(subset)}": Difference.of(list(by_seed.values()))
        for subset, by_seed in zip(results.subsets, by_subset, strict=True)
    }
    both = [(by_subset[0][seed] + by_subset[1][seed]) / 2 for seed in sorted(seeds)]
    return found | {"both, mean": Difference.of(both)}


def _paired(results: Results, measure: Measure, own: Classes, other: Classes) -> dict[int, float]:
    """Seed -> what the classes ``own`` lose if the importance is measured on ``other``, minus if on themselves."""
    on_other, on_own = ({o.seed: measure(o, own) for o in results.under(on)} for on in (other, own))
    return {seed: on_other[seed] - on_own[seed] for seed in sorted(on_other.keys() & on_own.keys())}


def sheets(results: Results) -> list[Sheet]:
    """Returns what is forgotten under each condition, and what the subsets' own importance protects them from."""
    rows = []
    for name, measured_on in results.conditions.items():
        if outcomes := results.under(measured_on):
            row = {"importance measured on": name}
            for heading, measure in (("forgetting of", Outcome.forgetting), ("output change on", Outcome.change)):
                for group, classes in results.groups.items():
                    cell = Estimate.of([measure(outcome, classes) for outcome in outcomes])
                    row[f"{heading} {group}"] = cell.percent()
            row[SECOND] = Estimate.of([outcome.second for outcome in outcomes]).percent()
            rows.append(row)
    changes = [f"output change on {group}" for group in results.groups]
    by_condition = Sheet(results.title, rows, ["importance measured on"], spare=[*reversed(changes), SECOND])
    return [by_condition, *_protection_sheet(results)]


def _protection_sheet(results: Results) -> list[Sheet]:
    forgetting, change = (protection(results, measure) for measure in (Outcome.forgetting, Outcome.change))
    title = "How much less they lose if the importance is measured on them than on the other subset"
    rows = [
        {
            "classes": name,
            "forgetting": forgetting[name].estimate.percent(),
            "paired t-test": _p(forgetting[name]),
            "output change": change[name].estimate.percent(),
            "its paired t-test": _p(change[name]),
        }
        for name in forgetting
    ]
    return [Sheet(title, rows, ["classes"], spare=["its paired t-test", "output change"])] if rows else []


def _p(difference: Difference) -> str:
    return "" if difference.p is None else f"p = {difference.p:.1g}"
