"""What strategies that train a generator have in common: how it learns an experience, and how it is judged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import trigger_plugins
from torch import Tensor, nn
from torch.utils.data import DataLoader

from engrams.strategies.generators import Generator
from engrams.strategies.generators.generator import Sampler

READ_AT_ONCE = 1000
EVALUATION_SEED = 0


class GeneratorPlugin(SupervisedPlugin):
    """What a plugin of a strategy with a generator may have besides Avalanche's hooks."""

    def after_generator_epoch(self, strategy, **kwargs):
        """The generator has learned for an epoch; ``strategy.generator_loss`` is its mean loss."""


class GeneratorTemplate(SupervisedTemplate):
    """Avalanche's template with a generator."""

    PLUGIN_CLASS = GeneratorPlugin

    generator: Generator
    generator_loss: Tensor | None = None

    def _train_generator(self, replay: Sampler | None = None, r: float = 1.0) -> None:
        """On the experience's images; see :meth:`Generator.learn`."""
        dataset = self.adapted_dataset
        # A loader takes a random number even where it draws nothing by it: its own, not the solver's.
        loader = DataLoader(dataset, READ_AT_ONCE, collate_fn=dataset.collate_fn, generator=torch.Generator())
        images, labels = (torch.cat(column).to(self.device) for column in list(zip(*loader, strict=True))[:2])
        for loss in self.generator.learn(images, replay, r, labels):
            self.generator_loss = loss
            trigger_plugins(self, "after_generator_epoch")


# Not a template itself: a template's constructor refuses the arguments of those beside it.
class JudgedByClassifier(SupervisedTemplate if TYPE_CHECKING else object):  # type: ignore[misc]
    """Before a template: evaluation of its generator by a classifier of real images.

    How many of the images that are asked for as a class does it take for that class? ``eval`` on an experience asks
    for images of each of its classes, and everything else is Avalanche's: the minibatch is what was made, its targets
    are what was asked for, the outputs are the classifier's. So Avalanche's accuracy is R[i, c] of Wu et al. 2018,
    section 5, and its loggers have it.
    """

    generator: Generator

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
        self.classes_so_far: list[int] = []
        """Learned, in order."""

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
        """What the generator makes where a class is asked for, [n, *shape]."""

    def _after_training_exp(self, **kwargs):
        self.classes_so_far = sorted({*self.classes_so_far, *self.adapted_dataset.targets.uniques})
        super()._after_training_exp(**kwargs)

    def make_eval_dataloader(self, **kwargs):
        if self.classifier is None:
            raise ValueError("a generator is evaluated by a classifier of real images; there is none")
        self.dataloader = AskedFor(self)

    def forward(self):
        return super().forward() if self.is_training else self.classifier(self.mb_x)


class AskedFor:
    """In place of a data loader: minibatches [images, the class they were asked for as, task labels]."""

    def __init__(self, strategy: JudgedByClassifier):
        self.strategy = strategy
        self.classes = strategy.experience.classes_in_this_experience
        [self.task] = strategy.experience.task_labels

    def __len__(self) -> int:
        return len(self.classes) * -(-self.strategy.images_per_class // self.strategy.eval_mb_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for label in self.classes:
            for x in self.strategy.of_class(label, self.strategy.images_per_class).split(self.strategy.eval_mb_size):
                yield [x, torch.full((len(x),), label), torch.full((len(x),), self.task)]
