"""Huszár's point: with three tasks or more, an anchor for every task counts old tasks twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray

from engrams.benchmarks.gallery.drawing import BLUE, GREEN, RED

OPTIMA = np.array([[0.0, 0.0], [3.0, 0.6], [2.4, 3.0], [-0.6, 2.4]])
PRECISIONS = np.array([[1.0, 2.0], [1.5, 0.6], [0.7, 1.6], [2.0, 0.8]])
"""Of each task, a quadratic: by weight. Their Fishers are these, wherever they are measured."""


def weighted_mean(points: Sequence[NDArray], weights: Sequence[NDArray]) -> NDArray[np.float64]:
    """Returns where a sum of quadratics is lowest: the mean of their centres, weighted by their precisions."""
    return np.asarray(sum(w * p for w, p in zip(weights, points, strict=True)) / sum(weights))


def separate_and_corrected() -> tuple[NDArray, NDArray, NDArray]:
    """Returns where `separate` and `corrected` end after each task (lambda = 1), and the joint optima, [tasks, 2]."""
    separate, corrected = [OPTIMA[0]], [OPTIMA[0]]
    for t in range(1, len(OPTIMA)):
        # separate: the new task, and a spring for every old one at the optimum of its time
        separate.append(weighted_mean([OPTIMA[t], *separate], [PRECISIONS[t], *PRECISIONS[:t]]))
        # corrected: the new task, and one spring at the latest optimum, as stiff as all together
        corrected.append(weighted_mean([OPTIMA[t], corrected[-1]], [PRECISIONS[t], PRECISIONS[:t].sum(axis=0)]))
    joint = [weighted_mean(list(OPTIMA[: t + 1]), list(PRECISIONS[: t + 1])) for t in range(len(OPTIMA))]
    return np.array(separate), np.array(corrected), np.array(joint)


def picture() -> Figure:
    """Returns the picture: four quadratic tasks, and where one anchor a task and one anchor in all end up."""
    separate, corrected, joint = separate_and_corrected()
    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
    both_axes = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = ("separate: an anchor for every task", "corrected: one anchor, at the latest optimum")
    for axes, path, colour, title in zip(both_axes, (separate, corrected), (RED, GREEN), titles, strict=True):
        _draw_tasks(axes)
        axes.plot(*path.T, "o-", color=colour, linewidth=2, markersize=7, label="EWC, λ = 1")
        axes.plot(*joint.T, "*", color="black", markersize=14, label="joint optimum", fillstyle="none")
        gap = np.linalg.norm(path[-1] - joint[-1])
        axes.set(title=f"{title}\nends {gap:.2f} from the joint optimum", xlabel="weight 1", aspect="equal")
        axes.legend(loc="lower right", fontsize="small")
    both_axes[0].set_ylabel("weight 2")
    return figure


def _draw_tasks(axes: Axes) -> None:
    for index, (centre, precision) in enumerate(zip(OPTIMA, PRECISIONS, strict=True)):
        for scale in (0.5, 1.0):
            width, height = 2 * scale / np.sqrt(precision)
            axes.add_patch(Ellipse(tuple(centre), width, height, facecolor=BLUE, edgecolor=BLUE, alpha=0.12))
        axes.annotate(f"task {index + 1}", (centre[0], centre[1] + 0.75), color=BLUE, ha="center", fontweight="bold")
    axes.set(xlim=(-1.8, 4.4), ylim=(-1.3, 4.2))
