"""``make gallery``: pictures that explain, each computed by the code that it explains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from engrams.strategies.importance import diagonal_fisher

BLUE, RED, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"
"""Okabe and Ito's, and one of Tol's: colour-blind readers can tell them apart."""
STEPS, RATE = 800, 0.01
STRENGTHS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


# --- EWC on the Rosenbrock function -----------------------------------------------------------------------------------


class Valley(NamedTuple):
    """A Rosenbrock function of two weights, (u - at)^2 / 2 + steepness (v - bend u^2 - height)^2 / 2.

    (u, v) are the weights (x, y), or (y, x) where it is ``crossing``.
    """

    at: float
    steepness: float
    bend: float
    height: float
    crossing: bool

    def residuals(self, weights: Tensor) -> Tensor:
        """Returns the two roots of the function's terms, [..., 2]: half the sum of their squares is its value."""
        u, v = (weights.flip(-1) if self.crossing else weights).unbind(-1)
        return torch.stack([u - self.at, self.steepness**0.5 * (v - self.bend * u.square() - self.height)], dim=-1)

    def __call__(self, weights: Tensor) -> Tensor:
        return self.residuals(weights).square().sum(-1) / 2


FIRST = Valley(at=0.0, steepness=20.0, bend=0.12, height=0.0, crossing=False)
SECOND = Valley(at=2.2, steepness=8.0, bend=-0.15, height=1.9, crossing=True)


class Weights(nn.Module):
    """A network of two weights, whose outputs are a valley's residuals: its squared error is the valley."""

    def __init__(self, valley: Valley, start: Tensor):
        super().__init__()
        self.valley = valley
        self.theta = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.valley.residuals(self.theta).expand(len(x), 2)


def fisher_at(valley: Valley, weights: Tensor) -> Tensor:
    """Returns the diagonal Fisher information of a valley as the strategies measure it, of a Gaussian, [2]."""
    data = TensorDataset(torch.zeros(1, 1), torch.zeros(1, 2))
    return diagonal_fisher(Weights(valley, weights), data, likelihood="gaussian")["theta"]


def descend(start: Tensor, importance: Tensor, strength: float) -> NDArray[np.float64]:
    """Returns the weights at every step of learning the second valley with a penalty around the start, [steps, 2]."""
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=RATE)
    path = [start.numpy().copy()]
    for _ in range(STEPS):
        optimiser.zero_grad()
        penalty = strength / 2 * (importance * (weights - start).square()).sum()
        (SECOND(weights) + penalty).backward()
        optimiser.step()
        path.append(weights.detach().numpy().copy())
    return np.array(path, dtype=float)


def both(weights: NDArray[np.float64]) -> float:
    """Returns what is lost on the two valleys together."""
    point = torch.as_tensor(weights, dtype=torch.float32)
    return float(FIRST(point) + SECOND(point))


def best_of(start: Tensor, importance: Tensor) -> tuple[float, NDArray[np.float64]]:
    """Returns the strength that loses least on both valleys, and its path: each penalty at its best."""
    paths = [(strength, descend(start, importance, strength)) for strength in STRENGTHS]
    return min(paths, key=lambda one: both(one[1][-1]))


def joint_optimum() -> NDArray[np.float64]:
    """Returns where both valleys together are lowest, found on a fine grid."""
    x, y = np.meshgrid(np.linspace(-1, 3, 801), np.linspace(-1, 3, 801))
    points = torch.tensor(np.stack([x, y], axis=-1), dtype=torch.float32)
    at = (FIRST(points) + SECOND(points)).argmin()
    return points.reshape(-1, 2)[at].numpy().astype(float)


def rosenbrock() -> Figure:
    """Returns the picture: two crossing valleys, and the paths of SGD, L2 and EWC from the first's optimum."""
    start = torch.zeros(2)
    fisher = fisher_at(FIRST, start)
    paths = {"SGD": (RED, "-", 0.0, descend(start, fisher, 0.0))}
    for name, colour, style, importance in (("L2", PURPLE, "--", torch.ones(2)), ("EWC", GREEN, "-", fisher)):
        paths[name] = (colour, style, *best_of(start, importance))
    figure = Figure(figsize=(7.2, 5.4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    x, y = np.meshgrid(np.linspace(-0.8, 2.9, 300), np.linspace(-0.8, 2.6, 300))
    points = torch.tensor(np.stack([x, y], axis=-1), dtype=torch.float32)
    for valley, colour in ((FIRST, BLUE), (SECOND, "#e69f00")):
        heights = valley(points).numpy()
        axes.contourf(x, y, heights, levels=[0, 0.15, 0.6, 1.5], colors=colour, alpha=0.16)
        axes.contour(x, y, heights, levels=[0.15, 0.6, 1.5], colors=colour, linewidths=0.8)
    for name, (colour, style, strength, path) in paths.items():
        label = f"{name}{f', λ = {strength:g}' if strength else ''}: loses {both(path[-1]):.2f} on both"
        axes.plot(*path.T, style, color=colour, linewidth=2.2, label=label)
        axes.plot(*path[-1], "o", color=colour, markersize=8)
    joint = joint_optimum()
    axes.plot(*joint, "*", color="black", markersize=15, label=f"joint optimum: {both(joint):.2f}", linestyle="none")
    axes.annotate("first task", (-0.7, 0.45), color=BLUE, fontweight="bold")
    axes.annotate("second task", (1.75, 2.35), color="#9a6b00", fontweight="bold")
    axes.set(xlabel="weight 1", ylabel="weight 2", title="Learning a second task from the first one's optimum")
    axes.legend(loc="lower right", fontsize="small", framealpha=0.95)
    return figure


# --- Huszár's point ---------------------------------------------------------------------------------------------------

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


def huszar() -> Figure:
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


PICTURES = {"ewc-rosenbrock": rosenbrock, "ewc-huszar": huszar}


def main(out: Path) -> None:
    """Draws every picture."""
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        path = out / f"{name}.png"
        draw().savefig(path, metadata={"Software": None})
        print(f"picture: {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
