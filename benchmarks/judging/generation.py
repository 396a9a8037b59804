"""What a generator that is asked for classes makes, besides the accuracy matrix: pictures, and how real they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from engrams.benchmarks.data.streams import brightness, prepared
from engrams.benchmarks.judging.pictures import drawn
from engrams.benchmarks.judging.real_classifier import RealClassifier, classes_of, train_classifier
from engrams.benchmarks.protocols.schema import Protocol
from engrams.reports.figures import sheet_figure
from engrams.reports.store import Generated
from engrams.strategies.judged import JudgedByClassifier
from engrams.strategies.kept import State

SHOWN = 20
PICTURE, ANIMATION = "generated.png", "generated.gif"
REVERSE_IMAGES_SEEN = 60_000
"""In the training of the classifier that learns from generated images."""


class GenerationObserver:
    """Looks at a generator after every experience."""

    def __init__(self, protocol: Protocol, classifier: RealClassifier, title: str, folder: Path):
        """
        Args:
            protocol: of the run, one with a table ``generation``.
            classifier: of real images; its features are those of the Frechet distance.
            title: above the pictures.
            folder: the pictures go there.
        """
        self.folder = folder
        assert protocol.generation is not None
        self.images_per_class = protocol.generation.images_per_class
        self.images = protocol.images
        data = prepared(protocol.dataset, protocol.images)
        assert isinstance(data.test_x, Tensor)
        self.test_x, self.test_y = data.test_x, data.test_y
        self.classifier = classifier
        self.title = title
        self.grids: list[Tensor] = []
        """After every experience [classes, images, *shape] in [0, 1]; NaN for classes that were not learned yet."""
        self.frechet_distance: list[float] = []
        self.learned = 0
        """Classes."""
        self.pictures: list[Image.Image] = []

    @property
    def judge(self) -> nn.Module:
        """The network that tells what an image shows."""
        return self.classifier.network

    def after_experience(self, strategy: SupervisedTemplate, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Samples every class so far; ``seen`` gets ``generated``, a picture's path, and ``frechet_distance``."""
        assert isinstance(strategy, JudgedByClassifier)
        classes = strategy.classes_so_far
        made = {label: strategy.of_class(label, self.images_per_class) for label in classes}
        shown = torch.full((self.classifier.classes, SHOWN, *self.test_x.shape[1:]), torch.nan)
        for label, x in made.items():
            few = brightness(x[:SHOWN], self.images)
            shown[label, : len(few)] = few
        self.grids.append(shown)
        self.made = torch.cat(list(made.values())), torch.cat([torch.full((len(x),), c) for c, x in made.items()])
        # As many of every class, as of what is made.
        least = min(int((self.test_y == label).sum()) for label in classes)
        real = torch.cat([self.test_x[self.test_y == label][:least] for label in classes])
        self.frechet_distance.append(frechet_distance(self.classifier, real, self.made[0]))
        self.learned = len(classes)
        seen["frechet_distance"] = self.frechet_distance[-1]
        if picture := drawn(self._draw):
            seen["generated"] = picture

    def state_dict(self) -> State:
        """Returns what was seen so far, but for what only the last experience is asked for."""
        return {"grids": self.grids, "frechet_distance": self.frechet_distance}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state; draws what was drawn before."""
        self.frechet_distance = state["frechet_distance"]
        for grid in state["grids"]:
            self.grids.append(grid)
            self.learned = int((~grid.flatten(1).isnan().all(dim=1)).sum())
            drawn(self._draw)

    def _draw(self) -> Path:
        """Writes the latest grid, rows the classes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        grid = self.grids[-1].numpy()
        title = f"{self.title}, {self.learned} of {len(grid)} classes learned"
        sheet_figure(grid, title, "class").savefig(self.folder / PICTURE)
        with Image.open(self.folder / PICTURE) as picture:
            self.pictures.append(picture.convert("RGB"))
        return self.folder / PICTURE

    def animate(self) -> Path | None:
        """Writes what was drawn after every experience, one after another; the last stays twice as long."""
        return drawn(self._animate) if self.pictures else None

    def _animate(self) -> Path:
        first, *others = self.pictures
        durations = [1000] * len(others) + [2000]
        first.save(self.folder / ANIMATION, save_all=True, append_images=others, duration=durations, loop=0)
        return self.folder / ANIMATION

    def summary(self) -> Generated:
        """For the record; trains a classifier on what was generated last."""
        x, y = self.made
        network = train_classifier(x, y.to(x.device), self.classifier.classes, REVERSE_IMAGES_SEEN)
        right = classes_of(network, self.test_x.to(x.device)).cpu() == self.test_y
        return Generated(
            frechet_distance=self.frechet_distance,
            reverse_accuracy=right[torch.isin(self.test_y, y)].double().mean().item(),
            classifier_accuracy=self.classifier.accuracy,
        )


def frechet_distance(classifier: RealClassifier, real: Tensor, generated: Tensor) -> float:
    """Heusel et al. 2017 (arXiv 1706.08500), eq. 6, in the classifier's last hidden layer instead of Inception's.

    Args:
        classifier: of real images.
        real, generated: [N, *shape] and [M, *shape]. Few images make it larger: only distances of the same N and M
            can be compared.
    """
    features = classifier.network.get_submodule("features")
    features.num_features = classifier.network.get_submodule("classifier").in_features  # what torchmetrics asks for
    distance = FrechetInceptionDistance(features).to(generated.device)
    for x, is_real in ((real.to(generated.device), True), (generated, False)):
        for part in x.split(1000):
            distance.update(part, real=is_real)
    return distance.compute().item()
