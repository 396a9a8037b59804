"""WGAN-GP: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv 1704.00028), algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from engrams.strategies.arguments import at_least_one, one_of
from engrams.strategies.choices import Architecture
from engrams.strategies.generators.generator import ImageSpec, Schedule, TrainedGenerator
from engrams.strategies.steps import step_of

SMALLEST_SIDE = 4
"""Of the maps that convolutions begin or end with."""
LEAK = 0.2
"""Slope of the critics' leaky ReLU."""


class WGANGP(TrainedGenerator):
    """A generator and a critic, the critic's gradient held near norm 1 by a penalty.

    Every minibatch is a step of the critic, and after every ``critic_steps`` of them the generator takes one. Images
    are scaled to [-1, 1], and the generator ends with a tanh. Inputs without bounds are standardised instead, and it
    has none.
    """

    black = -1.0

    generator: nn.Sequential
    critic: nn.Sequential

    def __init__(
        self,
        images: ImageSpec,
        epochs: int,
        batch_size: int = 64,
        seed: int | None = None,
        architecture: Architecture = "mlp",
        latent_size: int = 100,
        width: int = 512,
        critic_steps: int = 5,
        penalty: float = 10.0,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.0, 0.9),
        schedule: Schedule = "constant",
    ):
        """
        Args:
            images, epochs, batch_size, seed, schedule: as for every :class:`TrainedGenerator`.
            architecture: of both networks. ``mlp``: three hidden layers of ``width`` units. ``conv``: 5x5 convolutions
                of stride 2 between the image and maps of 4x4, as many as it takes, transposed in the generator. The
                generator has ReLU and batch norm, the critic leaky ReLU and none, since its penalty is an image's own
                (section 4).
            latent_size: dimensions of z ~ N(0, I).
            width: units of a hidden layer, or channels of the 4x4 maps, halved with every doubling of the side.
            critic_steps: n_critic of algorithm 1, at least 1.
            penalty: lambda of eq. 3.
            learning_rate, betas: of both networks' Adam; algorithm 1 has 1e-4 and (0, 0.9).

        Raises:
            ValueError: a size or critic_steps below 1, a minibatch of a single image, no such architecture, ``conv`` on
                images that are not square with a side of 8, 16, 32, ....
        """
        at_least_one(latent_size=latent_size, width=width, critic_steps=critic_steps)
        one_of(NETWORKS, architecture=architecture)
        if batch_size == 1:
            raise ValueError("batch norm has no statistics of a single image; batch_size must be at least 2")
        self.architecture = architecture
        self.latent_size = latent_size
        self.width = width
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.betas = betas
        super().__init__(images, epochs, batch_size, seed, learning_rate, schedule)

    def build(self) -> None:
        make_generator, make_critic = NETWORKS[self.architecture]
        self.generator = make_generator(self.shape, self.latent_size, self.width)
        if self.bounded:
            self.generator.append(nn.Tanh())
        self.critic = make_critic(self.shape, self.width)
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(network.parameters(), self.learning_rate, betas=self.betas, fused=True)
            for network in (self.generator, self.critic)
        )
        self.steps = 0

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fake = self._fake()[: len(x)]
        epsilon = torch.rand(len(x), *[1] * len(self.shape), generator=self.random).to(x)
        real_score, fake_score = self.critic(torch.cat([x, fake])).chunk(2)
        loss = fake_score.mean() - real_score.mean()
        loss = loss + self.penalty * gradient_penalty(self.critic, epsilon * x + (1 - epsilon) * fake)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        self.steps += 1
        if self.steps % self.critic_steps == 0:
            with step_of("generator", "after its critic's"):
                step_alone(self.generator_optimizer, self.generator, -self.critic(self._fake()).mean())
        return loss.detach()

    def _fake(self) -> Tensor:
        """A whole minibatch, whatever is left of the real one: batch norm takes its statistics from it."""
        return self.generator(self.normal(self.batch_size, self.latent_size))

    def make(self, n: int) -> Tensor:
        return self.generator(self.normal(n, self.latent_size))

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.steps = state["steps"]


def step_alone(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    """Takes a step of one network on a loss that others have a part in, which get no gradient."""
    parameters = list(network.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """E[(||grad_x D(x)||_2 - 1)^2], eq. 3, differentiable by the critic's parameters.

    Args:
        critic: images [N, ...] -> scores [N, 1] or [N], each of its own image alone.
        x: where the gradient is taken, [N, ...].

    Returns:
        A scalar.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def perceptron_generator(shape: torch.Size, latent_size: int, width: int) -> nn.Sequential:
    """Returns three hidden layers with batch norm; what it makes is not squashed yet."""
    layers: list[nn.Module] = []
    for inputs in (latent_size, width, width):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, shape.numel()), nn.Unflatten(1, shape))


def perceptron_critic(shape: torch.Size, width: int) -> nn.Sequential:
    """Returns three hidden layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (shape.numel(), width, width):
        layers += [nn.Linear(inputs, width), nn.LeakyReLU(LEAK)]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def convolutional_generator(shape: torch.Size, latent_size: int, width: int) -> nn.Sequential:
    """Returns layers from 4x4 maps up, with batch norm; each doubles the side. What they make is not squashed yet."""
    widths = widths_of_maps(shape, width)
    layers: list[nn.Module] = [nn.Linear(latent_size, 16 * width), nn.Unflatten(1, (width, 4, 4))]
    for wide, narrow in zip(widths, [*widths[1:], shape[0]], strict=True):
        convolution = nn.ConvTranspose2d(wide, narrow, 5, stride=2, padding=2, output_padding=1)
        layers += [nn.BatchNorm2d(wide), nn.ReLU(), convolution]
    return nn.Sequential(*layers)


def convolutional_critic(shape: torch.Size, width: int) -> nn.Sequential:
    """Returns layers down to 4x4 maps; each halves the side."""
    return nn.Sequential(convolutional_features(shape, width), nn.Linear(16 * width, 1))


def convolutional_features(shape: torch.Size, width: int, smallest_side: int = SMALLEST_SIDE) -> nn.Sequential:
    """Images [N, *shape] -> [N, width * smallest_side^2]."""
    layers: list[nn.Module] = []
    widths = [shape[0], *reversed(widths_of_maps(shape, width, smallest_side))]
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 5, stride=2, padding=2), nn.LeakyReLU(LEAK)]
    return nn.Sequential(*layers, nn.Flatten())


def widths_of_maps(shape: torch.Size, width: int, smallest_side: int = SMALLEST_SIDE) -> list[int]:
    """Channels of the smallest maps, of those twice as large, ... up to half the image's side: halved every time.

    Args:
        shape: of an image.
        width: of the smallest maps.
        smallest_side: theirs.

    Raises:
        ValueError: the images are not square with a side of twice the smallest, or four times, eight times, ....
    """
    side = shape[-1]
    doublings = int(math.log2(side / smallest_side))
    if len(shape) != 3 or shape[1] != side or doublings < 1 or side != smallest_side << doublings:
        sides = ", ".join(str(smallest_side << doubling) for doubling in (1, 2, 3))
        raise ValueError(f"convolutions need square images with a side of {sides}, ...; got {tuple(shape)}")
    return [max(width >> level, 1) for level in range(doublings)]


NETWORKS = {
    "mlp": (perceptron_generator, perceptron_critic),
    "conv": (convolutional_generator, convolutional_critic),
}
