"""Strategies whose generator is judged: it is asked for classes, and a classifier of real images says what it made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from engrams.strategies.dgr import DeepGenerativeReplay
from engrams.strategies.experiences import classes_of
from engrams.strategies.generator_training import READ_AT_ONCE
from engrams.strategies.generators import Generator

EVALUATION_SEED = 0


# Not a template itself: a template's constructor refuses the arguments of those beside it.
class JudgedByClassifier(SupervisedTemplate if TYPE_CHECKING else object):  # type: ignore[misc]
    """Makes a template evaluate its generator by a classifier of real images; it goes before the template.

    ``eval`` on an experience asks the generator for images of each of its classes, and the accuracy is the share that
    the classifier takes for the class asked for. Everything else is Avalanche's: the minibatch is what was made, its
    targets are what was asked for, the outputs are the classifier's. So Avalanche's accuracy is R[i, c] of Wu et al.
    2018, section 5, and its loggers have it.
    """

    generator: Generator
    classes_so_far: Sequence[int]

    def __init__(self, *, classifier: nn.Module | None, images_per_class: int, **template):
        """
        Args:
            classifier: images -> logits of their classes, trained on real data; None for what is not evaluated.
            images_per_class: asked for in evaluation.
            template: the arguments of Avalanche's ``SupervisedTemplate``.
        """
        super().__init__(**template)
        self.classifier = classifier.to(self.device).eval() if classifier else None
        self.images_per_class = images_per_class

    def of_class(self, label: int, n: int) -> Tensor:
        """``n`` images asked for as one class, [n, *shape]: from the same latent vectors whenever they are asked for.

        No random number is taken from the training.
        """
        of_training, self.generator.random = self.generator.random, torch.Generator().manual_seed(EVALUATION_SEED)
        try:
            return self.made_as(label, n)
        finally:
            self.generator.random = of_training

    @abstractmethod
    def made_as(self, label: int, n: int) -> Tensor:
        """Returns what the generator makes where a class is asked for, [n, *shape]."""

    def make_eval_dataloader(self, **kwargs):
        if self.classifier is None:
            raise ValueError("a generator is evaluated by a classifier of real images; there is none")
        self.dataloader = AskedFor(self)

    def forward(self):
        return super().forward() if self.is_training else self.classifier(self.mb_x)


class AskedFor:
    """In place of a data loader: minibatches [images, the class they were asked for as, task labels].

    An experience that has no task labels has none here, as in Avalanche's own loaders.
    """

    def __init__(self, strategy: JudgedByClassifier):
        self.strategy = strategy
        self.classes = classes_of(strategy.experience)
        self.tasks = list(getattr(strategy.experience, "task_labels", []))
        if len(self.tasks) > 1:
            raise ValueError(
                f"a generator knows classes, not their tasks; this experience has several task labels: {self.tasks}"
            )

    def __len__(self) -> int:
        return len(self.classes) * -(-self.strategy.images_per_class // self.strategy.eval_mb_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for label in self.classes:
            for x in self.strategy.of_class(label, self.strategy.images_per_class).split(self.strategy.eval_mb_size):
                yield [x, *(torch.full((len(x),), value) for value in (label, *self.tasks))]


class GANDeepGenerativeReplay(JudgedByClassifier, DeepGenerativeReplay):
    """The paper's DGR: an unconditional generator, whose images the solver labels.

    So what is asked for as a class is what the solver takes for it among as many images as all classes need: over and
    over if they are few; where it takes none for it, any.
    """

    _labelled: tuple[Tensor, Tensor] | None = None
    """The images made since the last training, [n, *shape], and the solver's class of each, [n]; None before."""

    def _before_training_exp(self, **kwargs):
        super()._before_training_exp(**kwargs)
        self._labelled = None

    def _after_training_exp(self, **kwargs):
        self._labelled = None  # before it, for Avalanche may evaluate in it
        super()._after_training_exp(**kwargs)

    @torch.no_grad()
    def made_as(self, label: int, n: int) -> Tensor:
        wanted = n * max(1, len(self.classes_so_far))
        if self._labelled is None or len(self._labelled[0]) != wanted:
            x = self.generator.sample(wanted)
            self.model.eval()  # training sets it back
            self._labelled = x, torch.cat([self.model(part).argmax(dim=1) for part in x.split(READ_AT_ONCE)])
        x, labels = self._labelled
        found = x[labels == label]
        return found[torch.arange(n) % len(found)] if len(found) else x[:n]
