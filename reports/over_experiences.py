"""Accuracy along the stream: after each experience the mean over those learned so far, one line a strategy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engrams.reports.estimates import Estimate
from engrams.reports.figures import COLOURS, MARKERS
from engrams.reports.matrix import seen_so_far
from engrams.reports.pages.comparison import complete_by_row, is_of_the_beginning
from engrams.reports.store import Record

BY_COLOUR = (
    ("dgr-vae", "derpp", "pnn", "avalanche-rwalk", "mergan-ra"),
    ("replay", "icarl", "avalanche-si", "ewc-online", "ewc-separate", "chaudhry2019-mas", "avalanche-ewc"),
    ("mas", "der", "noise-replay", "avalanche-gdumb", "avalanche-slda", "mas-local", "avalanche-ewc-online"),
    ("er", "dgr-gaussian", "avalanche-replay-large", "chaudhry2019-ewc", "avalanche-derpp", "gan-dgr"),
    ("si", "dgr", "ewc+replay", "avalanche-agem", "avalanche-mir", "avalanche-lwf", "avalanche-der", "gan-ewc"),
    ("ewc", "avalanche-replay", "avalanche-gem", "avalanche-er-ace", "avalanche-ncm", "mergan-jtr"),
    ("naive", "gan-finetune"),
)
"""The strategies of each colour, those of one colour seldom in one picture: a strategy looks the same in most."""
FEWEST = 3
"""Seeds from which on a line has a band; of fewer it is thin and dotted, and the legend says how many: a line without a
band would look the surest."""
ALWAYS = ("naive", "ewc", "mas")
"""They have a line wherever there are records of them: where they keep nothing, that is to be seen."""


class Line(NamedTuple):
    """One row of a table along the stream."""

    strategy: str
    acc: list[Estimate]
    """After each experience, on those so far; one alone where the whole stream is learned at once."""
    seeds: int
    upper_bound: bool
    own_settings: bool = False
    """Whether the row has settings other than the protocol's."""

    @property
    def name(self) -> str:
        return f"{self.strategy}, other settings" if self.own_settings else self.strategy

    @property
    def label(self) -> str:
        """Returns the name and what comes out at the end, with its interval, or the seeds where they are too few."""
        at_the_end = self.acc[-1]
        label = f"{self.name} {100 * at_the_end.mean:.1f}"
        if self.seeds < FEWEST:
            return f"{label} ({self.seeds} seed{'s' if self.seeds > 1 else ''})"
        return f"{label} ± {100 * at_the_end.half_width:.1f}" if at_the_end.half_width is not None else label


class Picture(NamedTuple):
    """What one protocol's picture shows."""

    lines: list[Line]
    """The highest at the end first, upper bounds last."""
    rows: int
    """Of the protocol's table, with those that have no line."""


def of(records: Iterable[Record]) -> Picture:
    """Returns what the picture of one protocol shows: a few strategies, those that end highest, and joint training.

    The few are :data:`ALWAYS`. Each strategy has one line, of the protocol's own settings where it was run with them.
    Strategies of somebody's own come before others that are better, on half of the places. Where joint training was not
    run with the protocol's own settings, the row of other settings that has the most seeds takes its place. Beside deep
    generative replay stands exact replay, which has real images in the generator's place.

    Args:
        records: of one protocol.
    """
    groups = list(complete_by_row(records).values())
    whole = [group for group in groups if not is_of_the_beginning(group[0])] or groups
    best = _best_by_strategy(group for group in whole if not group[0].upper_bound)
    own = [strategy for strategy in best if ":" in strategy][: len(COLOURS) // 2]
    first = [strategy for strategy in (*ALWAYS, *own) if strategy in best]
    shown = [best[strategy] for strategy in list(dict.fromkeys([*first, *best]))[: len(COLOURS)]]
    lines = sorted(map(_line, shown), key=lambda line: -line.acc[-1].mean)
    bounds = [group for group in whole if group[0].upper_bound]
    exact = [group for group in bounds if group[0].strategy == "exact-replay"]
    joint = [group for group in bounds if len(group[0].accuracy_matrix) == 1]
    for found in (exact if any(line.strategy.startswith("dgr") for line in lines) else [], joint):
        if found:
            lines.append(_line(max(found, key=lambda group: (not group[0].variant, len(group)))))
    return Picture(lines, len(groups))


def _best_by_strategy(groups: Iterable[list[Record]]) -> dict[str, list[Record]]:
    """Returns strategy -> its row with the protocol's own settings, or else its best; the highest ACC first."""
    found: dict[str, list[Record]] = {}
    for group in sorted(groups, key=lambda group: (not group[0].variant, _acc(group)), reverse=True):
        found.setdefault(group[0].strategy, group)
    return dict(sorted(found.items(), key=lambda item: -_acc(item[1])))


def _acc(group: Sequence[Record]) -> float:
    return fmean(record.acc for record in group)


def _line(group: Sequence[Record]) -> Line:
    along = zip(*map(_along, group), strict=True)
    one = group[0]
    return Line(one.strategy, [_estimate(values) for values in along], len(group), one.upper_bound, bool(one.variant))


def _along(record: Record) -> list[float]:
    """Returns the accuracy after each experience on those so far; ACC alone where all are learned at once."""
    matrix = record.accuracy_matrix
    return [*(seen_so_far(matrix[:n])["ACC"] for n in range(1, len(matrix))), record.acc]


def _estimate(values: Sequence[float]) -> Estimate:
    """Returns an estimate; of two seeds it has no interval, which could be wider than all accuracies there are."""
    estimate = Estimate.of(values)
    return estimate if len(values) >= FEWEST else Estimate(estimate.mean, None)


def colours_of(strategies: Sequence[str]) -> dict[str, int]:
    """Returns strategy -> the index of its colour, its own where it has one that no other in the picture has first."""
    present = ([name for name in names if name in strategies] for names in BY_COLOUR)
    found = {names[0]: index for index, names in enumerate(present) if names}
    free = [index for index in range(len(COLOURS)) if index not in found.values()]
    return found | dict(zip([name for name in strategies if name not in found], free, strict=False))


def figure(picture: Picture) -> Figure:
    """Returns the picture: means with 95% intervals; upper bounds are grey, and joint training is a level."""
    drawn = Figure(figsize=(7.6, 4.2), dpi=130, layout="constrained")
    axes = drawn.add_subplot()
    colours = colours_of([line.strategy for line in picture.lines if not line.upper_bound])
    for line in picture.lines:
        mean = 100 * np.array([one.mean for one in line.acc])
        aside = 100 * np.array([one.half_width or 0.0 for one in line.acc])
        if len(line.acc) == 1:
            axes.axhline(mean[0], color="0.4", linestyle="--", linewidth=1.2, label=line.label)
            continue
        stages = np.arange(1, len(mean) + 1)
        style: dict[str, Any] = {} if line.seeds >= FEWEST else {"linestyle": ":", "linewidth": 1.2}
        colour, marker = "0.4", "."
        if not line.upper_bound:
            colour, marker = COLOURS[colours[line.strategy]], MARKERS[colours[line.strategy]]
        axes.plot(stages, mean, color=colour, marker=marker, markersize=4, label=line.label, **style)
        axes.fill_between(
            stages,
            np.maximum(mean - aside, 0),
            np.minimum(mean + aside, 100),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    interval = any(one.half_width for line in picture.lines for one in line.acc)
    axes.set_xlabel("experiences learned")
    axes.set_ylabel("accuracy on them (%)" + (", mean and 95% interval" if interval else ""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    legend = axes.legend(
        fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, title="at the end, %"
    )
    if len(picture.lines) < picture.rows:
        rows = f"{len(picture.lines)} of {picture.rows} rows"
        axes.annotate(rows, (0.5, 0), xycoords=legend, ha="center", va="top", fontsize="x-small", color="0.4")
    return drawn
