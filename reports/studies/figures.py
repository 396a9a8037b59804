"""Pictures of studies. (Apart from those of records, which every run may draw and which need fewer imports.)"""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engrams.reports.estimates import Estimate
from engrams.reports.figures import COLOURS, MARKERS
from engrams.reports.studies.adaptive import Classes, Outcome, Results
from engrams.reports.studies.curves import Curves

TITLE = 80
"""Characters in a line of a title."""


def curves_figure(found: Curves) -> Figure:
    """ACC against a hyperparameter on a logarithmic axis, one line each, with 95% confidence intervals.

    References are horizontal lines. The axis of ACC is that of the means: intervals of very few seeds are cut off.
    Lines are moved sideways by a few hundredths of a decade, so that one interval does not hide another.
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for index, curve in enumerate(found.curves):
        aside = 10 ** (0.05 * (index - (len(found.curves) - 1) / 2))
        measured = [
            (point.x * aside, point.acc) for point in curve.points if point.x is not None and point.acc is not None
        ]
        axes.errorbar(
            [x for x, _ in measured],
            [100 * acc.mean for _, acc in measured],
            yerr=[100 * (acc.half_width or 0.0) for _, acc in measured],
            label=curve.label,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            capsize=3,
            elinewidth=0.9,
        )
    handles, labels = axes.get_legend_handles_labels()
    for index, (label, point) in enumerate(found.references.items()):
        if point.acc is not None:
            style = ("--", ":", "-.")[index % 3]
            handles.append(axes.axhline(100 * point.acc.mean, color="0.4", linestyle=style, linewidth=1.2))
            labels.append(label)
    axes.set_ylim(*_limits(found))
    axes.set_xlabel(found.hyperparameter)
    axes.set_ylabel(f"ACC (%) on {found.judged_on} data, mean and 95% interval")
    axes.set_title(fill(found.title, TITLE), fontsize="medium")
    axes.grid(color="0.9")
    axes.legend(handles, labels, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _limits(found: Curves) -> tuple[float, float]:
    points = [point for curve in found.curves for point in curve.points] + list(found.references.values())
    means = [100 * point.acc.mean for point in points if point.acc is not None]
    margin = 0.3 * max(1.0, max(means) - min(means))
    return max(0.0, min(means) - margin), min(100.0, max(means) + margin)


def adaptive_figure(results: Results) -> Figure:
    """Forgetting and change of the outputs, by class and by what the importance was measured on, with 95% intervals."""
    figure = Figure(figsize=(9.6, 4.0), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    _grouped_bars(left, results, Outcome.forgetting)
    left.set_ylabel("forgetting (percentage points)")
    _grouped_bars(right, results, Outcome.change)
    right.set_ylabel("squared change of the outputs (%)")
    for axes in (left, right):
        axes.set_xlabel("on test images of")
    figure.suptitle(f"{results.title} (mean and 95% interval)", fontsize="medium")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, title="importance measured on", loc="outside lower center", ncols=len(labels), fontsize="small"
    )
    return figure


def _grouped_bars(axes: Axes, results: Results, measure: Callable[[Outcome, Classes], float]) -> None:
    conditions = {name: found for name, on in results.conditions.items() if (found := results.under(on))}
    width = 0.8 / max(1, len(conditions))
    shades = ("0.65", *COLOURS)
    for index, (name, outcomes) in enumerate(conditions.items()):
        estimates = [Estimate.of([measure(o, classes) for o in outcomes]) for classes in results.groups.values()]
        axes.bar(
            [group + (index - (len(conditions) - 1) / 2) * width for group in range(len(estimates))],
            [100 * estimate.mean for estimate in estimates],
            width,
            yerr=[100 * (estimate.half_width or 0.0) for estimate in estimates],
            capsize=2.5,
            error_kw={"elinewidth": 0.9},
            color=shades[index % len(shades)],
            label=name,
        )
    axes.set_xticks(range(len(results.groups)), list(results.groups))
    axes.axhline(0, color="0.2", linewidth=0.8)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
