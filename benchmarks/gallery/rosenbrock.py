"""EWC on the Rosenbrock function: two tasks, each a valley of two weights, the second crossing the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from engrams.benchmarks.gallery.drawing import BLUE, GREEN, ORANGE, PURPLE, RED
from engrams.strategies.importance import diagonal_fisher

STEPS, RATE, FRAMES = 800, 0.01, 40
STRENGTHS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


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


def descend(start: Tensor, importance: Tensor, strengths: Sequence[float]) -> NDArray[np.float64]:
    """Returns the ways of learning the second valley with a penalty around the start, one for each of its strengths.

    Returns:
        The weights at every step of SGD, [strengths, steps, 2].
    """
    weights = start.repeat(len(strengths), 1).requires_grad_()
    strength = torch.tensor(strengths)
    optimiser = torch.optim.SGD([weights], lr=RATE)
    path = [weights.detach().numpy().copy()]
    for _ in range(STEPS):
        optimiser.zero_grad()
        penalty = strength / 2 * (importance * (weights - start).square()).sum(-1)
        (SECOND(weights) + penalty).sum().backward()  # each has its own gradient
        optimiser.step()
        path.append(weights.detach().numpy().copy())
    return np.stack(path, axis=1).astype(float)


def both(weights: NDArray[np.float64]) -> float:
    """Returns what is lost on the two valleys together."""
    point = torch.as_tensor(weights, dtype=torch.float32)
    return float(FIRST(point) + SECOND(point))


def best_of(start: Tensor, importance: Tensor) -> tuple[float, NDArray[np.float64]]:
    """Returns the strength that loses least on both valleys, and its path: each penalty at its best."""
    return min(zip(STRENGTHS, descend(start, importance, STRENGTHS), strict=True), key=lambda one: both(one[1][-1]))


@cache
def joint_optimum() -> NDArray[np.float64]:
    """Returns where both valleys together are lowest, found on a fine grid."""
    x, y = np.meshgrid(np.linspace(-1, 3, 801), np.linspace(-1, 3, 801))
    points = torch.tensor(np.stack([x, y], axis=-1), dtype=torch.float32)
    at = (FIRST(points) + SECOND(points)).argmin()
    return points.reshape(-1, 2)[at].numpy().astype(float)


def picture() -> Figure:
    """Returns the picture: two crossing valleys, and the paths of SGD, L2 and EWC from the first's optimum."""
    return _drawn(_paths(), STEPS)


def animation() -> Iterator[Figure]:
    """Yields the same picture while the paths are walked, quick steps first."""
    paths = _paths()
    return (_drawn(paths, int(step)) for step in np.unique(np.geomspace(1, STEPS, FRAMES).round()))


class Path(NamedTuple):
    """Of one way to learn the second task: what it is called, how it is drawn, and where it goes."""

    name: str
    colour: str
    style: str
    strength: float
    weights: NDArray[np.float64]


def _paths() -> list[Path]:
    start = torch.zeros(2)
    fisher = fisher_at(FIRST, start)
    return [
        Path("SGD", RED, "-", 0.0, descend(start, fisher, [0.0])[0]),
        Path("L2", PURPLE, "--", *best_of(start, torch.ones(2))),
        Path("EWC", GREEN, "-", *best_of(start, fisher)),
    ]


def _drawn(paths: Sequence[Path], step: int) -> Figure:
    figure = Figure(figsize=(7.2, 5.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    x, y = np.meshgrid(np.linspace(-0.8, 2.9, 300), np.linspace(-0.8, 2.6, 300))
    points = torch.tensor(np.stack([x, y], axis=-1), dtype=torch.float32)
    for valley, colour in ((FIRST, BLUE), (SECOND, ORANGE)):
        heights = valley(points).numpy()
        axes.contourf(x, y, heights, levels=[0, 0.15, 0.6, 1.5], colors=colour, alpha=0.16)
        axes.contour(x, y, heights, levels=[0.15, 0.6, 1.5], colors=colour, linewidths=0.8)
    for one in paths:
        walked = one.weights[: step + 1]
        lost = both(walked[-1])
        label = f"{one.name}{f', λ = {one.strength:g}' if one.strength else ''}: loses {lost:.2f} on both"
        axes.plot(*walked.T, one.style, color=one.colour, linewidth=2.2, label=label)
        axes.plot(*walked[-1], "o", color=one.colour, markersize=8)
    joint = joint_optimum()
    axes.plot(*joint, "*", color="black", markersize=15, label=f"joint optimum: {both(joint):.2f}", linestyle="none")
    axes.annotate("first task", (-0.7, 0.45), color=BLUE, fontweight="bold")
    axes.annotate("second task", (1.75, 2.35), color="#9a6b00", fontweight="bold")
    axes.set(xlabel="weight 1", ylabel="weight 2", title="Learning a second task from the first one's optimum")
    axes.legend(loc="lower right", fontsize="small", framealpha=0.95)
    return figure
