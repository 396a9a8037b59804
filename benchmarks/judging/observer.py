"""What a generator remembers: after every experience some of its images, and the share of each class among many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from avalanche.training import GenerativeReplay
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from engrams.benchmarks.data.streams import brightness
from engrams.benchmarks.judging.pictures import drawn
from engrams.benchmarks.judging.real_classifier import RealClassifier, real_classifier
from engrams.benchmarks.protocols.schema import Protocol
from engrams.reports.figures import sheet_figure
from engrams.reports.store import Generated
from engrams.strategies.dgr import DeepGenerativeReplay
from engrams.strategies.kept import State

SHOWN, JUDGED = 20, 5000
SEED = 0
"""Of what is sampled here: the same latent vectors after every experience, and no number taken from the training."""
PICTURE = "generated.png"
CLASSIFIERS = "classifiers"


def classifier_for(protocol: Protocol, device: str, out: Path) -> RealClassifier | None:
    """The classifier that tells what images of a protocol show; None where its experiences permute pixels, say.

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

    def __init__(self, protocol: Protocol, classifier: RealClassifier | None, title: str, folder: Path):
        """
        Args:
            protocol: of the run.
            classifier: of real images; without one there are no shares.
            title: above the picture.
            folder: the picture goes there.
        """
        self.folder = folder
        self.images = protocol.images
        self.title = title
        self.classifier = classifier
        self.rows: list[Tensor] = []
        self.class_shares: list[list[float]] = []

    def after_experience(self, strategy: SupervisedTemplate, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Samples, and judges; ``seen`` gets ``class_shares`` and, as ``generated``, the path of the picture."""
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            x = _sampler(strategy)(JUDGED)
        self.rows.append(brightness(x[:SHOWN], self.images).cpu().clone())
        if self.classifier:
            counts = self.classifier.classify(x).bincount(minlength=self.classifier.classes)
            self.class_shares.append((counts.double() / len(x)).tolist())
            seen["class_shares"] = self.class_shares[-1]
        if picture := drawn(self._draw):
            seen["generated"] = picture

    def state_dict(self) -> State:
        """Returns what was seen so far."""
        return {"rows": self.rows, "class_shares": self.class_shares}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.rows, self.class_shares = state["rows"], state["class_shares"]

    def _draw(self) -> Path:
        """Writes the picture: one row of images an experience."""
        self.folder.mkdir(parents=True, exist_ok=True)
        figure = sheet_figure(torch.stack(self.rows).numpy(), self.title, "after training on")
        figure.savefig(self.folder / PICTURE)
        return self.folder / PICTURE

    def summary(self) -> Generated | None:
        """For the record; None where no class could be told."""
        if not self.classifier:
            return None
        return Generated(class_shares=self.class_shares, classifier_accuracy=self.classifier.accuracy)


def _sampler(strategy: SupervisedTemplate) -> Callable[[int], Tensor]:
    if isinstance(strategy, GenerativeReplay):
        vae = strategy.generator_strategy.model.eval()  # its own training sets it back
        return lambda n: vae.generate(n).detach()
    assert isinstance(strategy, DeepGenerativeReplay)
    generator = strategy.generator.frozen_copy()
    generator.random = torch.Generator().manual_seed(SEED)
    return generator.sample
