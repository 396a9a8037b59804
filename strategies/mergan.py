"""Memory replay GANs: Wu et al. 2018, "Memory Replay GANs: learning to generate images from new categories without
forgetting" (arXiv 1809.02058), as its public code has it.

A conditional GAN (:class:`ACGAN`) learns class after class. Before each experience it is copied; the frozen copy
G_{t-1} replays the past, for one of two losses:

    jtr   joint training with replay (section 4.1): what G_{t-1} makes stands in for the past's real images
    ra    replay alignment (section 4.2): G_t is held near G_{t-1}, same z and same c in both
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils.utils import concat_datasets
from torch import Tensor, nn
from torch.nn import functional

from engrams.strategies.arguments import at_least_one, not_negative
from engrams.strategies.generator_training import GeneratorTemplate
from engrams.strategies.generators.acgan import ACGAN
from engrams.strategies.judged import JudgedByClassifier
from engrams.strategies.kept import State
from engrams.strategies.steps import step_of

BATCHES_AHEAD = 20


class Replay(NamedTuple):
    """A batch of every past class."""

    z: Tensor
    """[past classes, n, latent]."""
    labels: Tensor
    """[past classes, n]."""
    images: Tensor
    """G_{t-1}(z, c), in [-1, 1], [past classes, n, *shape]."""


class Memory:
    """Replays past classes without end, drawn in large batches ahead of the steps that use them."""

    def __init__(self, previous: ACGAN, past: list[int], each: int):
        """
        Args:
            previous: G_{t-1}, frozen.
            past: the classes to replay.
            each: images of each in a step, in a batch of their own.
        """
        self.previous = previous
        self.past = past
        self.each = each
        self.ahead: list[Replay] = []

    def __next__(self) -> Replay:
        if not self.ahead:
            z, labels = self.previous.latents(self.past * BATCHES_AHEAD, self.each, self.previous.replay_random)
            with torch.no_grad(), step_of("replay", z.shape):
                images = self.previous.generator(z, labels)
            parts = zip(*(column.split(len(self.past)) for column in (z, labels, images)), strict=True)
            self.ahead = [Replay(*part) for part in parts][::-1]
        return self.ahead.pop()


class ReplayingGAN(ACGAN):
    """Copies itself before each experience, and replays the past with the copy."""

    replay: Memory | None = None
    """None where there is nothing to replay."""

    def __init__(
        self,
        *args: Any,
        replayed_classes: Sequence[int] | None = None,
        replay_batch_size: int | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            args, kwargs: as for :class:`ACGAN`.
            replayed_classes: which past classes are replayed; None for all, as in the paper.
            replay_batch_size: images replayed in a step, shared out evenly among the past classes, at least one each;
                None for as many as the minibatch has, as in the paper.

        Raises:
            ValueError: replay_batch_size below 1; as for :class:`ACGAN`.
        """
        at_least_one(replay_batch_size=replay_batch_size)
        self.replayed_classes = replayed_classes
        self.replay_batch_size = replay_batch_size
        super().__init__(*args, **kwargs)

    def begin(self, classes: list[int]) -> None:
        self.replay = None  # of an experience that was interrupted
        super().begin(classes)
        past = [label for label in self.known if label not in classes]
        if self.replayed_classes is not None:
            past = [label for label in past if label in self.replayed_classes]
        if past:
            each = max(1, (self.replay_batch_size or self.batch_size) // len(past))
            self.replay = Memory(self.frozen_copy(), past, each)

    def end(self) -> None:
        super().end()
        self.replay = None

    def state_dict_within(self) -> State:
        return super().state_dict_within() | {"replay": [list(one) for one in self.replay.ahead] if self.replay else []}

    def go_on_from(self, state: State) -> None:
        super().go_on_from(state)
        if self.replay:
            self.replay.ahead = [Replay(*(part.to(self.low.device) for part in one)) for one in state["replay"]]


class JointReplayGAN(ReplayingGAN):
    """``jtr``: every past class adds its own mean losses, so that it weighs as much as a new one.

    The gradient penalty is taken on the new classes alone.
    """

    def __init__(self, *args: Any, past_weight: float = 1.0, **kwargs: Any):
        """
        Args:
            args, kwargs: as for :class:`ReplayingGAN`.
            past_weight: of a past class against a new one's 1, at least 0.

        Raises:
            ValueError: past_weight below 0; as for :class:`ReplayingGAN`.
        """
        not_negative(past_weight=past_weight)
        self.past_weight = past_weight
        super().__init__(*args, **kwargs)

    def critic_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """+ sum_c (E[D(G_t(z, c))] - E[D(G_{t-1}(z, c))] + lambda_CLS E[-log C(c | G_{t-1}(z, c))])"""
        loss = super().critic_loss(x, labels)
        if self.replay is None:
            return loss
        z, past, old = next(self.replay)
        with torch.no_grad():
            new = self.generator(z, past)
        scores, logits = self.critic(torch.cat([old, new]).flatten(0, 1))
        old_score, new_score = scores.chunk(2)
        classified = functional.cross_entropy(logits[: len(old_score)], past.flatten())
        past_loss = new_score.mean() - old_score.mean() + self.classifier_weight * classified
        return loss + self._weight_of(past) * past_loss

    def generator_loss(self) -> Tensor:
        """+ sum_c (-E[D(G_t(z, c))] + lambda_CLS E[-log C(c | G_t(z, c))])"""
        loss = super().generator_loss()
        if self.replay is None:
            return loss
        z, past, _ = next(self.replay)
        return loss + self._weight_of(past) * self.asked_for(z, past)

    def _weight_of(self, past: Tensor) -> float:
        """Of the mean over all past classes' images.

        Each past class has as many, so the sum of its classes' means is so many times that mean; and the new classes'
        loss is the mean over them, so that a new class weighs 1 / (number of new ones).
        """
        return self.past_weight * len(past) / len(self.learning)


class ReplayAlignmentGAN(ReplayingGAN):
    """``ra``: the critic sees the new classes alone; the generator must make the past as it did."""

    def __init__(self, *args: Any, ra_lambda: float = 1e-3, **kwargs: Any):
        """
        Args:
            args, kwargs: as for :class:`ReplayingGAN`.
            ra_lambda: lambda_RA of :func:`alignment_loss`, at least 0; in the authors' scripts 1e-3 on MNIST, 1e-2 on
                SVHN.

        Raises:
            ValueError: ra_lambda below 0; as for :class:`ReplayingGAN`.
        """
        not_negative(ra_lambda=ra_lambda)
        self.ra_lambda = ra_lambda
        super().__init__(*args, **kwargs)

    def generator_loss(self) -> Tensor:
        """+ lambda_RA E_{z, c}[||G_t(z, c) - G_{t-1}(z, c)||^2]"""
        loss = super().generator_loss()
        if self.replay is None:
            return loss
        z, past, old = next(self.replay)
        return loss + self.ra_lambda * alignment_loss(self.generator(z, past), old)


def alignment_loss(new: Tensor, old: Tensor) -> Tensor:
    """Returns half the squared difference, summed over pixels and images of a class, the mean over past classes.

    This is what the authors' code has for the paper's E_{z, c}[||G_t(z, c) - G_{t-1}(z, c)||^2].

    Args:
        new, old: G_t(z, c) and G_{t-1}(z, c), [past classes, n, *shape].

    Returns:
        A scalar.
    """
    return 0.5 * (new - old).square().sum() / len(new)


class MeRGAN(JudgedByClassifier, GeneratorTemplate):
    """Trains a conditional GAN on a stream of one class, or several, an experience.

    Which of the paper's methods it is, is the generator's: :class:`JointReplayGAN` (``jtr``),
    :class:`ReplayAlignmentGAN` (``ra``), :class:`ACGAN` (sequential fine-tuning), :class:`EWCGAN`. Avalanche's hooks
    around experiences and evaluation are all called, those around steps are not, since a step is the GAN's own; plugins
    hear of its progress by :class:`GeneratorPlugin`.
    """

    generator: ACGAN

    def __init__(
        self, *, generator: ACGAN, classifier: nn.Module | None = None, images_per_class: int = 6400, **template: Any
    ):
        """
        Args:
            generator: learns, in its own minibatches and with its own optimisers.
            classifier, images_per_class: as for :class:`JudgedByClassifier`; 6,400 as in the authors' code.
            template: further arguments of Avalanche's ``SupervisedTemplate``, without model, optimizer and criterion.
        """
        super().__init__(
            classifier=classifier,
            images_per_class=images_per_class,
            model=generator,
            optimizer=None,
            criterion=None,
            **template,
        )
        self.generator = generator

    def made_as(self, label: int, n: int) -> Tensor:
        """A class that there is no room for yet is made as the last one that there is."""
        return self.generator.of_class(min(label, self.generator.classes - 1), n)

    def check_model_and_optimizer(self, **kwargs):
        """The generator has its own optimisers, and grows by itself."""

    def model_adaptation(self, model=None):
        return self.model.to(self.device)

    def criterion(self) -> Tensor:
        return functional.cross_entropy(self.mb_output, self.mb_y)

    def _train_exp(self, experience, eval_streams=None, **kwargs):
        self._train_generator(**kwargs)


class GANJointTraining(MeRGAN):
    """All experiences at once: the paper's JT, the upper bound."""

    def train(self, experiences, eval_streams=None, **kwargs):
        self._experiences = list(experiences)
        return super().train(self._experiences[0], eval_streams, **kwargs)

    def train_dataset_adaptation(self, **kwargs):
        self.adapted_dataset = concat_datasets([experience.dataset for experience in self._experiences]).train()
