"""The variational autoencoder: Kingma & Welling 2014, "Auto-Encoding Variational Bayes" (arXiv 1312.6114)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from engrams.strategies.arguments import at_least_one, one_of
from engrams.strategies.choices import ImageLikelihood
from engrams.strategies.generators.generator import ImageSpec, Schedule, TrainedGenerator, perceptron

SMALLEST_DEVIATION = 0.01
"""Of a Gaussian pixel: an image learned by heart must not make the loss fall without end."""


class VAE(TrainedGenerator):
    """Encoder q(z|x) = N(mu(x), diag sigma^2(x)), prior N(0, I), and a decoder p(x|z).

    Both are perceptrons with ReLU. Images lie in [0, 1], and the mean of p(x|z) is the sigmoid of the decoder's output;
    what has no bounds is standardised, and the output is the mean itself. Replay is that mean, not a draw from p(x|z).
    """

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        images: ImageSpec,
        epochs: int,
        batch_size: int = 128,
        seed: int | None = None,
        latent_size: int = 100,
        hidden_sizes: tuple[int, ...] = (400, 400),
        learning_rate: float = 1e-3,
        likelihood: ImageLikelihood = "bernoulli",
        schedule: Schedule = "constant",
    ):
        """
        Args:
            images, epochs, batch_size, seed, schedule: as for every :class:`TrainedGenerator`.
            latent_size: dimensions of z.
            hidden_sizes: of the encoder's layers; the decoder has them in reverse.
            learning_rate: of Adam.
            likelihood: p(x|z), see :func:`negative_elbo`. ``bernoulli`` for images that are nearly black and white
                (appendix C.1), ``gaussian`` for grey ones (appendix C.2) and for vectors without bounds: where most
                pixels are grey, their Bernoulli likelihood says little, and what is replayed again and again fades.

        Raises:
            ValueError: a size below 1, no such likelihood, ``bernoulli`` of what has no bounds; as for every
                :class:`TrainedGenerator`.
        """
        at_least_one(latent_size=latent_size, **{f"hidden_sizes[{n}]": size for n, size in enumerate(hidden_sizes)})
        one_of(ImageLikelihood, likelihood=likelihood)
        self.latent_size = latent_size
        self.hidden_sizes = tuple(hidden_sizes)
        self.likelihood = likelihood
        super().__init__(images, epochs, batch_size, seed, learning_rate, schedule)
        if likelihood == "bernoulli" and not self.bounded:
            raise ValueError(
                "likelihood='bernoulli' needs images between two finite bounds, and those of this ImageSpec have none: "
                "take likelihood='gaussian', or give low and high"
            )

    def build(self) -> None:
        pixels = self.shape.numel()
        self.encoder = perceptron(pixels, *self.hidden_sizes, 2 * self.latent_size)
        self.decoder = perceptron(self.latent_size, *reversed(self.hidden_sizes), pixels)
        self.optimizer = torch.optim.Adam(self.parameters(), self.learning_rate, fused=True)

    def step(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * self.normal(*mean.shape)  # the reparameterisation trick, section 2.4
        loss = negative_elbo(x, self.decoder(z), mean, log_variance, self.likelihood, self.bounded)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def make(self, n: int) -> Tensor:
        outputs = self.decoder(self.normal(n, self.latent_size))
        return (outputs.sigmoid() if self.bounded else outputs).unflatten(1, self.shape)


def negative_elbo(
    x: Tensor, outputs: Tensor, mean: Tensor, log_variance: Tensor, likelihood: ImageLikelihood, bounded: bool = True
) -> Tensor:
    """-L of eq. 10 with one z an image: -log p(x|z) + KL(q(z|x) || p(z)), the mean over images.

    Args:
        x: pixels, [N, pixels]; in [0, 1] if bounded.
        outputs: of the decoder, [N, pixels].
        mean: of q(z|x), [N, latent].
        log_variance: log sigma^2 of q(z|x), [N, latent].
        likelihood: ``bernoulli``: of each pixel. ``gaussian``: one standard deviation for all pixels, the most likely
            one of the minibatch (Rybkin et al. 2021, arXiv 2006.13202, section 4), at least 1/100.
        bounded: the mean of p(x|z) is the sigmoid of the outputs; if not, it is the outputs, of a Gaussian.

    Returns:
        Nats an image, a scalar.
    """
    if likelihood == "bernoulli":
        reconstruction = functional.binary_cross_entropy_with_logits(outputs, x, reduction="sum")
    else:
        error = (x - (outputs.sigmoid() if bounded else outputs)).square()
        variance = error.mean().clamp_min(SMALLEST_DEVIATION**2)
        reconstruction = 0.5 * (error / variance + (2 * math.pi * variance).log()).sum()
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()  # appendix B
    return (reconstruction + divergence) / len(x)
