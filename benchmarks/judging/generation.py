"""What a generator that is asked for classes makes, besides the accuracy matrix: pictures, and how real they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from PIL import Image
from torch import Tensor, nn

from engrams.benchmarks.data.streams import brightness, prepared
from engrams.benchmarks.judging.pictures import drawn
from engrams.benchmarks.judging.privacy import by_class, given_away_by_run
from engrams.benchmarks.judging.quality import features_of, first_of_each, frechet_distance, precision_and_recall
from engrams.benchmarks.judging.real_classifier import RealClassifier, classes_of, train_classifier
from engrams.benchmarks.protocols.protocol import Protocol
from engrams.reports.figures import sheet_figure
from engrams.reports.generators import ByClass
from engrams.reports.store import Generated
from engrams.strategies.judged import JudgedByClassifier
from engrams.strategies.kept import State

SHOWN = 20
PICTURE, ANIMATION = "generated.png", "generated.gif"
REVERSE_IMAGES_SEEN = 60_000
"""In the training of the classifier that learns from generated images in the end."""
REVERSE_EACH = 640
"""Images of a class that are learned from after every experience, in as few epochs as a classifier is trained for."""
BY_EXPERIENCE = ("frechet_distance", "frechet_by_class", "reverse_by_class", "precision", "recall")
"""What is seen after every experience, and the record has."""


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
        self.protocol = protocol
        data = prepared(protocol.dataset, protocol.images)
        assert isinstance(data.test_x, Tensor)
        self.test_x, self.test_y = data.test_x, data.test_y
        self.classifier = classifier
        self.title = title
        self.grids: list[Tensor] = []
        """After every experience [classes, images, *shape] in [0, 1]; NaN for classes that were not learned yet."""
        self.frechet_distance: list[float] = []
        self.frechet_by_class: ByClass = []
        self.reverse_by_class: ByClass = []
        self.precision: list[float | None] = []
        self.recall: list[float | None] = []
        self.learned = 0
        """Classes."""
        self.pictures: list[Image.Image] = []

    @property
    def judge(self) -> nn.Module:
        """Returns the network that tells what an image shows."""
        return self.classifier.network

    def after_experience(self, strategy: SupervisedTemplate, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Samples every class so far; ``seen`` gets ``generated``, a picture's path, and ``frechet_distance``."""
        assert isinstance(strategy, JudgedByClassifier)
        classes = strategy.classes_so_far
        made = {label: strategy.of_class(label, self.images_per_class) for label in classes}
        shown = torch.full((self.classifier.classes, SHOWN, *self.test_x.shape[1:]), torch.nan)
        for label, x in made.items():
            few = brightness(x[:SHOWN], self.protocol.images)
            shown[label, : len(few)] = few
        self.grids.append(shown)
        self.made = torch.cat(list(made.values())), torch.cat([torch.full((len(x),), c) for c, x in made.items()])
        # As many of every class, as of what is made.
        of_test = by_class(self.test_x, self.test_y, classes).values()
        least = min(map(len, of_test))
        real = torch.cat([x[:least] for x in of_test])
        self._compare(classes, least, real.to(self.made[0].device))
        self._learn_from_what_is_made(classes)
        self.learned = len(classes)
        seen["frechet_distance"] = self.frechet_distance[-1]
        if picture := drawn(self._draw):
            seen["generated"] = picture

    def _compare(self, classes: Sequence[int], least: int, real: Tensor) -> None:
        """What was made beside real images, in the classifier's features: of all classes so far, and of each."""
        of_real, of_made = (features_of(self.classifier, x) for x in (real, self.made[0]))
        self.frechet_distance.append(frechet_distance(of_real, of_made))
        columns = of_real.split(least), of_made.split(self.images_per_class)
        distances = {label: frechet_distance(*pair) for label, *pair in zip(classes, *columns, strict=True)}
        self.frechet_by_class.append(self._row(distances))
        each = min(least, self.images_per_class)
        precision, recall = precision_and_recall(*(first_of_each(one, each) for one in columns))
        self.precision.append(precision)
        self.recall.append(recall)

    def _learn_from_what_is_made(self, classes: Sequence[int]) -> None:
        """The other way round: a classifier that is trained, shortly, on some of what was made of each class."""
        x, y = (
            torch.cat([part[:REVERSE_EACH] for part in column.split(self.images_per_class)]) for column in self.made
        )
        right = self._right(x, y, images_seen=0)
        self.reverse_by_class.append(
            self._row({label: right[self.test_y == label].double().mean().item() for label in classes})
        )

    def _right(self, x: Tensor, y: Tensor, images_seen: int) -> Tensor:
        """Whether a classifier that is trained on what was made tells each real test image rightly."""
        network = train_classifier(x, y.to(x.device), self.classifier.classes, images_seen)
        return classes_of(network, self.test_x.to(x.device)).cpu() == self.test_y

    def _row(self, values: Mapping[int, float]) -> list[float | None]:
        return [values.get(label) for label in range(self.classifier.classes)]

    def state_dict(self) -> State:
        """Returns what was seen so far, but for what only the last experience is asked for."""
        return {"grids": self.grids, **{name: getattr(self, name) for name in BY_EXPERIENCE}}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state; draws what was drawn before."""
        for name in BY_EXPERIENCE:
            setattr(self, name, state[name])
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
        """Returns what the record has of the generator; trains a classifier on what was generated last for it."""
        x, y = self.made
        right = self._right(x, y, REVERSE_IMAGES_SEEN)
        classes = y.unique().tolist()
        return Generated(
            reverse_accuracy=right[torch.isin(self.test_y, y)].double().mean().item(),
            classifier_accuracy=self.classifier.accuracy,
            privacy=given_away_by_run(self.classifier, self.protocol, self.made, classes, self.title, self.folder),
            **{name: getattr(self, name) for name in BY_EXPERIENCE},
        )
