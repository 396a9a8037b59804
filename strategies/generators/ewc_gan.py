"""Elastic weight consolidation of a conditional GAN's generator: Seff et al. 2017, "Continual Learning in Generative
Adversarial Nets" (arXiv 1705.08395); the baseline of Wu et al. 2018, Table 1.

A GAN has no likelihood, and EWC needs one. Here an image is its generator's output with Gaussian noise on every pixel,

    p(x | z, c, theta) = N(x; G(z, c), I),

the observation model under which Wu et al. 2017 (arXiv 1611.04273) compute likelihoods of GANs. This Fisher is our
choice, as is Huszár's sum of them: the two papers have the penalty. Of Seff et al. only summaries were read, which say
that theirs is of the discriminator's output, a probability that a critic does not give; of Wu et al. the public code
(WuChenshen/MeRGAN), which does not hold this baseline. Neither paper's text has been checked for it.

The Fisher here is the curvature of replay alignment: to second order, E[||G_t(z, c) - G_{t-1}(z, c)||^2] = sum of F_i
(theta_i - theta*_i)^2 and products of different parameters, so EWC is what remains of ``ra`` when nothing is replayed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engrams.strategies.ewc import EWCPlugin
from engrams.strategies.generators.acgan import ACGAN, ConditionalNetwork
from engrams.strategies.steps import step_of


class EWCGAN(ACGAN):
    """Adds (lambda / 2) F (theta - theta*)^2 to the generator's loss, F summed over experiences (Huszár 2017)."""

    def __init__(self, *args: Any, ewc_lambda: float, fisher_samples: int = 6400, **kwargs: Any):
        """
        Args:
            args, kwargs: as for :class:`ACGAN`.
            ewc_lambda: lambda above, at least 0.
            fisher_samples: images a class, made after it was learned, on which its Fisher is measured.

        Raises:
            ValueError: ewc_lambda below 0; as for :class:`ACGAN`.
        """
        self.ewc = EWCPlugin(ewc_lambda, "corrected")
        self.fisher_samples = fisher_samples
        super().__init__(*args, **kwargs)

    def begin(self, classes: list[int]) -> None:
        super().begin(classes)
        self._keep(self.ewc.importances, self.ewc.anchors)  # on the device that the networks are on by now

    def generator_loss(self) -> Tensor:
        return super().generator_loss() + self.ewc.penalty(self.generator)

    def end(self) -> None:
        super().end()
        # As many batches of each class; drawn as replay is, so that with lambda = 0 this is fine-tuning to the bit.
        labels = self.learning * max(1, self.fisher_samples // self.batch_size)
        latents = self.latents(labels, self.batch_size, self.replay_random)
        fisher = generator_fisher(self.generator, *latents, self.replay_random)
        self.ewc.consolidate(fisher, {name: p.detach().clone() for name, p in self.generator.named_parameters()})

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "importances": self.ewc.importances, "anchors": self.ewc.anchors}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._keep(state["importances"], state["anchors"])

    def _keep(self, importances: dict[str, Tensor], anchors: dict[str, Tensor]) -> None:
        self.ewc.importances, self.ewc.anchors = (
            {name: value.to(self.low) for name, value in values.items()} for values in (importances, anchors)
        )


def generator_fisher(
    generator: ConditionalNetwork, z: Tensor, labels: Tensor, random: torch.Generator
) -> dict[str, Tensor]:
    """Returns the diagonal Fisher information of an image under N(x; G(z, c), I), the mean over images.

    Per batch, with one x drawn for every z: E[(d log p(x_1, ..., x_n | z_1, ..., z_n) / d theta_i)^2] / n. The noise of
    different images is independent, so products of different images vanish in the mean, and the square of the *sum* of
    their gradients is an unbiased estimate, whatever batch norm makes them have in common.

    Args:
        generator: in its present state.
        z, labels: [batches, n, latent], [batches, n].
        random: draws the noise.

    Returns:
        Parameter name -> tensor of its shape.
    """
    names, parameters = zip(*generator.named_parameters(), strict=True)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in zip(z.split(1), labels.split(1), strict=True):
        with step_of("importance", batch[0].shape):
            mean = generator(*batch)
            noise = torch.randn(mean.shape, generator=random).to(mean)  # x - mean; d log p / d mean
            for square, gradient in zip(total, torch.autograd.grad((noise * mean).sum(), parameters), strict=True):
                square += gradient**2
    return {name: square / labels.numel() for name, square in zip(names, total, strict=True)}
