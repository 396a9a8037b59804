"""What a conditional GAN makes of old digits while it learns new ones: fine-tuning beside replay alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from engrams.benchmarks.data.streams import brightness
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.protocols.schema import Images
from engrams.benchmarks.training.learn import learn

PROTOCOL, STRATEGIES = "generate-digits", {"gan-finetune": "fine-tuning", "mergan-ra": "replay alignment"}


class Made:
    """A watcher of a run: an image of every class after every experience, from the same latent vector each time."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.after: list[Tensor] = []

    def after_experience(self, strategy, matrix, seen) -> None:
        made = [strategy.of_class(label, 1) for label in strategy.classes_so_far]
        self.after.append(brightness(torch.cat(made), self.images).cpu())


def made(strategy: str, experiences: int | None = None, settings: Mapping[str, Any] | None = None) -> list[Tensor]:
    """Runs a strategy; returns after each experience an image of every class so far, [classes, 1, height, width].

    Args:
        strategy: of the protocol's.
        experiences: how many are learned; None for all.
        settings: in place of the protocol's.
    """
    (run,) = plan(PROTOCOL, [strategy], [0], {"generation.images_per_class": 1, **(settings or {})}, experiences)
    watcher = Made(run.protocol.images)
    anyone = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))  # a run asks for a judge; what it says is not shown
    learn(run, "cpu", [watcher], lambda epochs: None, classifier=anyone)
    return watcher.after


def picture() -> Figure:
    """Returns the picture of real runs."""
    return drawn({title: made(strategy) for strategy, title in STRATEGIES.items()})


def drawn(found: dict[str, list[Tensor]]) -> Figure:
    """Returns the picture: a grid a strategy, a row an experience, a column a class."""
    figure = Figure(figsize=(4.4 * len(found), 4.9), dpi=120, layout="constrained")
    for axes, (title, after) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        count, side = len(after), after[0].shape[-1]
        sheet = torch.ones(count, count, side + 2, side + 2)
        for row, images in enumerate(after):
            sheet[row, : len(images), 1:-1, 1:-1] = images[:, 0]
        flat = sheet.permute(0, 2, 1, 3).reshape(count * (side + 2), -1)
        axes.imshow(flat, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        middles = [(place + 0.5) * (side + 2) - 0.5 for place in range(count)]
        axes.set_xticks(middles, range(count))
        axes.set_yticks(middles, range(count))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(title=title, xlabel="asked for", ylabel="after learning")
    return figure
