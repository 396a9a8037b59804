"""Accuracy along the stream: after each experience the mean over those learned so far, one line a strategy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engrams.reports.estimates import Estimate
from engrams.reports.figures import COLOURS, MARKERS
from engrams.reports.matrix import seen_so_far
from engrams.reports.pages.comparison import complete_by_row
from engrams.reports.store import Record

SHOWN = (
    *("naive", "avalanche-er-ace", "avalanche-mir"),
    *("ewc", "replay", "dgr-vae", "dgr-gaussian", "exact-replay", "avalanche-slda", "dgr", "mas"),
    *("ewc+replay", "avalanche-agem", "der", "er", "avalanche-gem", "ewc-separate"),
    *("icarl", "si", "avalanche-rwalk", "chaudhry2019-mas", "chaudhry2019-ewc", "avalanche-gdumb"),
)
"""The rows of a protocol's picture, as far as there are records of them and colours for them, the first ones first.

Before them come strategies of somebody's own, the best ones first, with half of the colours.
"""


class Line(NamedTuple):
    """One row of a table along the stream."""

    strategy: str
    acc: list[Estimate]
    """After each experience, on those so far; one alone where the whole stream is learned at once."""


def lines_of(records: Iterable[Record]) -> list[Line]:
    """Returns the lines of one protocol's picture, the highest at the end first, and joint training.

    Where joint training was not run with the protocol's own settings, the row of other settings that has the most seeds
    takes its place, and its name says so.

    Args:
        records: of one protocol.
    """
    groups = {row: group for (_, row), group in complete_by_row(records).items()}
    found = []
    own = [row for row in groups if ":" in row.partition(" ")[0]]
    own = sorted(own, key=lambda row: -fmean(record.acc for record in groups[row]))[: len(COLOURS) // 2]
    for strategy in [*own, *(row for row in SHOWN if row in groups)][: len(COLOURS)]:
        matrices = [record.accuracy_matrix for record in groups[strategy]]
        stages = range(1, len(matrices[0]) + 1)
        found.append(Line(strategy, [_estimate([seen_so_far(one[:n])["ACC"] for one in matrices]) for n in stages]))
    found.sort(key=lambda line: -line.acc[-1].mean)
    if joint := [row for row in groups if _is_joint(row)]:
        row = "joint" if "joint" in joint else max(joint, key=lambda row: len(groups[row]))
        name = "joint" if row == "joint" else "joint, other settings"
        found.append(Line(name, [Estimate.of([record.acc for record in groups[row]])]))
    return found


def _estimate(values: Sequence[float]) -> Estimate:
    """Returns an estimate; of two seeds it has no interval, which could be wider than all accuracies there are."""
    estimate = Estimate.of(values)
    return estimate if len(values) > 2 else Estimate(estimate.mean, None)


def _is_joint(row: str) -> bool:
    return row.partition(" ")[0] == "joint" and "experiences=" not in row  # not of the stream's beginning


def figure(lines: Sequence[Line]) -> Figure:
    """Returns the picture: means with 95% intervals; what learns the whole stream at once is a level."""
    picture = Figure(figsize=(7.6, 4.2), dpi=130, layout="constrained")
    axes = picture.add_subplot()
    for index, line in enumerate(lines):
        mean = 100 * np.array([one.mean for one in line.acc])
        aside = 100 * np.array([one.half_width or 0.0 for one in line.acc])
        label = f"{line.strategy} {mean[-1]:.1f}" + (f" ± {aside[-1]:.1f}" if aside[-1] else "")
        if len(line.acc) == 1:
            axes.axhline(mean[0], color="0.4", linestyle="--", linewidth=1.2, label=label)
            continue
        stages, colour = np.arange(1, len(mean) + 1), COLOURS[index % len(COLOURS)]
        axes.plot(stages, mean, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4, label=label)
        axes.fill_between(
            stages, np.maximum(mean - aside, 0), np.minimum(mean + aside, 100), color=colour, alpha=0.15, linewidth=0
        )
    axes.set_xlabel("experiences learned")
    axes.set_ylabel("accuracy on them (%), mean and 95% interval")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, title="at the end, %")
    return picture
