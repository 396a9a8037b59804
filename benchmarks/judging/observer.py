"""What a generator remembers: after every experience some of its images, and the share of each class among many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.training import GenerativeReplay
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from engrams.benchmarks.data.streams import brightness, prepared
from engrams.benchmarks.judging.pictures import drawn
from engrams.benchmarks.judging.privacy import by_class, given_away_by_run
from engrams.benchmarks.judging.quality import features_of, first_of_each, precision_and_recall
from engrams.benchmarks.judging.real_classifier import RealClassifier, real_classifier
from engrams.benchmarks.protocols.protocol import Protocol
from engrams.reports.figures import sheet_figure
from engrams.reports.privacy import Privacy
from engrams.reports.store import Generated
from engrams.strategies.dgr import DeepGenerativeReplay
from engrams.strategies.kept import State

SHOWN, JUDGED = 20, 5000
SEED = 0
"""Of what is sampled here: the same latent vectors after every experience, and no number taken from the training."""
PICTURE = "generated.png"
CLASSIFIERS = "classifiers"
BY_EXPERIENCE = ("class_shares", "precision", "recall")
"""What is seen after every experience, and the record has."""


def classifier_for(protocol: Protocol, device: str, out: Path) -> RealClassifier | None:
    """Returns the classifier that tells what images of a protocol show; None where its experiences permute pixels, say.

    Args:
        protocol: of the run.
        device: torch's name of the device that the images are on.
        out: folder of all records; the classifier is kept below it.
    """
    if protocol.stream.kind != "split":
        return None
    classifier = real_classifier(protocol.dataset, protocol.images, out / CLASSIFIERS)
    classifier.network.to(device)
    return classifier


class GeneratorObserver:
    """Looks at a generator after every experience."""

    def __init__(
        self,
        protocol: Protocol,
        classifier: RealClassifier | None,
        title: str,
        folder: Path,
        experiences: Sequence[Sequence[int]] = (),
    ):
        """
        Args:
            protocol: of the run.
            classifier: of real images; without one nothing is measured.
            title: above the pictures.
            folder: the pictures go there.
            experiences: the data set's classes in each; without them shares alone are measured.
        """
        self.folder = folder
        self.protocol = protocol
        self.title = title
        self.classifier = classifier
        self.rows: list[Tensor] = []
        self.class_shares: list[list[float]] = []
        self.precision: list[float | None] = []
        self.recall: list[float | None] = []
        self.experiences = experiences
        if classifier and experiences:
            data = prepared(protocol.dataset, protocol.images)
            assert isinstance(data.test_x, Tensor)
            self.test_x, self.test_y = data.test_x, data.test_y

    def after_experience(self, strategy: SupervisedTemplate, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Samples, and judges; ``seen`` gets ``class_shares`` and, as ``generated``, the path of the picture."""
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            x = sampler(strategy)(JUDGED)
        self.rows.append(brightness(x[:SHOWN], self.protocol.images).cpu().clone())
        if self.classifier:
            labels = self.classifier.classify(x)
            counts = labels.bincount(minlength=self.classifier.classes)
            self.class_shares.append((counts.double() / len(x)).tolist())
            seen["class_shares"] = self.class_shares[-1]
            if self.experiences:
                self.made = x, labels
                self._compare(self.classifier)
        if picture := drawn(self._draw):
            seen["generated"] = picture

    @property
    def learned(self) -> list[int]:
        """Returns the data set's classes so far."""
        return [label for classes in self.experiences[: len(self.rows)] for label in classes]

    def _compare(self, classifier: RealClassifier) -> None:
        """What was made beside as many real images, in the classifier's features."""
        real = list(by_class(self.test_x, self.test_y, self.learned).values())
        of_real = features_of(classifier, first_of_each(real, min(map(len, real))).to(self.made[0].device))
        of_made = features_of(classifier, self.made[0][: len(of_real)])
        precision, recall = precision_and_recall(of_real, of_made)
        self.precision.append(precision)
        self.recall.append(recall)

    def state_dict(self) -> State:
        """Returns what was seen so far, but for what only the last experience is asked for."""
        return {"rows": self.rows, **{name: getattr(self, name) for name in BY_EXPERIENCE}}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.rows = state["rows"]
        for name in BY_EXPERIENCE:
            setattr(self, name, state[name])

    def _draw(self) -> Path:
        """Writes the picture: one row of images an experience."""
        self.folder.mkdir(parents=True, exist_ok=True)
        figure = sheet_figure(torch.stack(self.rows).numpy(), self.title, "after training on")
        figure.savefig(self.folder / PICTURE)
        return self.folder / PICTURE

    def summary(self) -> Generated | None:
        """Returns what the record has of the generator; None where no class could be told."""
        if not self.classifier:
            return None
        return Generated(
            classifier_accuracy=self.classifier.accuracy,
            privacy=self._privacy(self.classifier) if self.experiences else None,
            **{name: getattr(self, name) for name in BY_EXPERIENCE},
        )

    def _privacy(self, classifier: RealClassifier) -> Privacy | None:
        """Of what was made last; an image is of the class that it is taken for."""
        return given_away_by_run(classifier, self.protocol, self.made, self.learned, self.title, self.folder)


def sampler(strategy: SupervisedTemplate) -> Callable[[int], Tensor]:
    """Returns what makes so many images, or vectors, of a strategy's generator, the same ones whenever it is asked."""
    if isinstance(strategy, GenerativeReplay):
        vae = strategy.generator_strategy.model.eval()  # its own training sets it back
        return lambda n: vae.generate(n).detach()
    assert isinstance(strategy, DeepGenerativeReplay)
    generator = strategy.generator.frozen_copy()
    generator.random = torch.Generator().manual_seed(SEED)
    return generator.sample
