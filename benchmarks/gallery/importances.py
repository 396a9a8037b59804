"""Where in a network EWC and MAS put importance, and how it adds up over experiences."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.training.learn import learn
from engrams.strategies.quadratic_penalty import QuadraticPenaltyPlugin

PROTOCOL, STRATEGIES = "split-digits/class", ("ewc", "mas")
SHADES = "viridis"


class Measured(NamedTuple):
    """What one strategy holds after every experience; a sum over all before."""

    pixels: NDArray[np.float64]
    """Of the weights that leave each pixel, [experiences, height, width]."""
    layers: dict[str, NDArray[np.float64]]
    """Layer -> of all its parameters, [experiences]."""


class Importances:
    """A watcher of a run: it keeps what the plugin found important after every experience."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def after_experience(self, strategy, matrix, seen) -> None:
        (plugin,) = (one for one in strategy.plugins if isinstance(one, QuadraticPenaltyPlugin))
        self.after.append({name: importance.clone() for name, importance in plugin.importances.items()})


def measured(strategy: str, experiences: int | None = None) -> Measured:
    """Runs a strategy and returns the importances that it measured.

    Args:
        strategy: one with a penalty that sums importances.
        experiences: how many are learned; None for all.
    """
    (run,) = plan(PROTOCOL, [strategy], [0], first=experiences)
    watcher = Importances()
    learn(run, "cpu", [watcher], lambda epochs: None)
    names = list(watcher.after[0])
    layers = dict.fromkeys(name.rpartition(".")[0] for name in names)
    first = torch.stack([after[names[0]].sum(dim=0) for after in watcher.after])
    side = int(first.shape[1] ** 0.5)
    return Measured(
        first.reshape(-1, side, side).double().numpy(),
        {
            layer: np.array(
                [sum(float(after[n].sum()) for n in names if n.startswith(layer)) for after in watcher.after]
            )
            for layer in layers
        },
    )


def picture() -> Figure:
    """Returns the picture of real runs."""
    return drawn({strategy: measured(strategy) for strategy in STRATEGIES})


def drawn(found: dict[str, Measured]) -> Figure:
    """Returns the picture: a row a strategy; pixels after each experience, and layers, experience upon experience."""
    count = len(next(iter(found.values())).pixels)
    figure = Figure(figsize=(1.5 * count + 3.6, 2.3 * len(found)), dpi=120, layout="constrained")
    figure.suptitle("Importance so far: of the weights that leave each pixel, and of each layer")
    grid = figure.subplots(len(found), count + 1, width_ratios=[1] * count + [2.1], squeeze=False)
    for row, (strategy, one) in zip(grid, found.items(), strict=True):
        for axes, pixels in zip(row, one.pixels, strict=False):
            axes.imshow(pixels, norm=PowerNorm(0.5, vmin=0, vmax=one.pixels.max()), cmap=SHADES)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(strategy.upper(), fontsize="large", fontweight="bold")
        _draw_layers(row[-1], one)
    for place, axes in enumerate(grid[0, :-1]):
        axes.set_title(f"after {_digits(place)}", fontsize="medium")
    grid[0, -1].set_title("by layer, in %", fontsize="medium")
    return figure


def _digits(experience: int) -> str:
    return f"{2 * experience}, {2 * experience + 1}"


def _draw_layers(axes: Axes, one: Measured) -> None:
    """Draws a bar a layer, made of what each experience added."""
    names = ["input", *(f"hidden {i}" for i in range(1, len(one.layers))), "output"]
    between = [f"{before} → {after}" for before, after in pairwise(names)]
    share = 100 * np.array(list(one.layers.values())) / sum(after[-1] for after in one.layers.values())
    added = np.diff(share, axis=1, prepend=0)
    for place, width in enumerate(added.T):
        shade = colormaps[SHADES](place / len(added.T))
        axes.barh(between, width, left=share[:, place] - width, color=shade, label=_digits(place))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.4 * share.max())
    axes.legend(title="added by", fontsize="x-small", title_fontsize="x-small", loc="right")
