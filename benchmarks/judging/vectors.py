"""What a generator of vectors remembers: after every experience its spread, and the share of each class among many."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from avalanche.training.templates import SupervisedTemplate
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from engrams.benchmarks.data.images import ImageData
from engrams.benchmarks.data.kept import kept
from engrams.benchmarks.data.streams import classes_of_experiences, prepared, standardisation
from engrams.benchmarks.judging.observer import JUDGED, SEED, sampler
from engrams.benchmarks.protocols.schema import Images, SplitStream
from engrams.benchmarks.runs import Run
from engrams.reports.store import Generated
from engrams.strategies.kept import State

BY_EXPERIENCE = ("class_shares", "spread")


class LinearClassifier(NamedTuple):
    """Linear discriminant analysis of all real training vectors: which class is one taken for?"""

    fitted: LinearDiscriminantAnalysis
    accuracy: float
    """On the real test vectors, in [0, 1]."""


@kept(maxsize=1)
def linear_classifier(dataset: str, images: Images) -> LinearClassifier:
    """Returns the classifier of a data set, every class as probable as any other.

    Args:
        dataset: its name.
        images: what is done to its vectors before they are learned.
    """
    data = prepared(dataset, images)
    assert isinstance(data.train_x, Tensor)
    assert isinstance(data.test_x, Tensor)
    analysis = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / data.classes] * data.classes)
    analysis.fit(data.train_x.numpy(), data.train_y.numpy())
    return LinearClassifier(analysis, float(analysis.score(data.test_x.numpy(), data.test_y.numpy())))


class VectorObserver:
    """Looks at a generator after every experience."""

    def __init__(self, run: Run, stream: SplitStream):
        """
        Args:
            run: of a strategy with a generator, under a protocol of vectors.
            stream: the run's.
        """
        self.data: ImageData = prepared(run.protocol.dataset, run.protocol.images)
        self.classifier = linear_classifier(run.protocol.dataset, run.protocol.images)
        self.experiences = classes_of_experiences(stream, self.data.classes, run.judge, run.seed)
        self.mean, self.deviation = standardisation(self.data, stream, run.judge, run.seed)
        self.class_shares: list[list[float]] = []
        self.spread: list[float] = []

    def after_experience(self, strategy: SupervisedTemplate, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Samples, and judges; ``seen`` gets ``class_shares``."""
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            made = sampler(strategy)(JUDGED).cpu()
        as_in_the_file = made * self.deviation + self.mean
        labels = torch.from_numpy(self.classifier.fitted.predict(as_in_the_file.numpy()))
        counts = labels.bincount(minlength=self.data.classes)
        learned = torch.tensor([label for one in self.experiences[: len(self.spread) + 1] for label in one])
        assert isinstance(self.data.train_x, Tensor)
        real = (self.data.train_x[torch.isin(self.data.train_y, learned)] - self.mean) / self.deviation
        self.class_shares.append((counts.double() / len(made)).tolist())
        self.spread.append(float(made.var(dim=0).mean() / real.var(dim=0).mean()))
        seen["class_shares"] = self.class_shares[-1]

    def state_dict(self) -> State:
        """Returns what was seen so far."""
        return {name: getattr(self, name) for name in BY_EXPERIENCE}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        for name in BY_EXPERIENCE:
            setattr(self, name, state[name])

    def summary(self) -> Generated:
        """Returns what the record has of the generator."""
        return Generated(classifier_accuracy=self.classifier.accuracy, **self.state_dict())
