"""WGAN-GP: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv 1704.00028), algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from strategies.generators.generator import ImageSpec, TrainedGenerator, at_least_one, perceptron

Architecture = Literal["mlp", "conv"]


class WGANGP(TrainedGenerator):
    """A generator and a critic, the critic's gradient held near norm 1 by a penalty.

    Every minibatch is a step of the critic, and after every ``critic_steps`` of them the generator takes one. Images
    lie in [-1, 1].
    """

    black = -1.0

    generator: nn.Module
    critic: nn.Module

    def __init__(
        self,
        images: ImageSpec,
        epochs: int,
        batch_size: int = 64,
        seed: int = 0,
        architecture: Architecture = "mlp",
        latent_size: int = 100,
        width: int = 512,
        critic_steps: int = 5,
        penalty: float = 10.0,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.0, 0.9),
    ):
        """
        Args:
            images, epochs, batch_size, seed: as for every :class:`TrainedGenerator`.
            architecture: ``mlp``: three hidden layers of ``width`` units with ReLU in both networks (the paper's
                perceptron, a generator only, has four). ``conv``: 5x5 convolutions of stride 2 between the image and
                maps of 4x4, as many as it takes, transposed in the generator.
            latent_size: dimensions of z ~ N(0, I).
            width: units of a hidden layer, or channels of the 4x4 maps, halved with every doubling of the side.
            critic_steps: n_critic of algorithm 1, at least 1.
            penalty: lambda of eq. 3.
            learning_rate, betas: of both networks' Adam; algorithm 1 has 1e-4 and (0, 0.9).

        Raises:
            ValueError: a size or critic_steps below 1, no such architecture, ``conv`` on images that are not square
                with a side of 8, 16, 32, ....
        """
        at_least_one(latent_size=latent_size, width=width, critic_steps=critic_steps)
        if architecture not in NETWORKS:
            raise ValueError(f"architecture must be one of {tuple(NETWORKS)}; got {architecture!r}")
        self.architecture = architecture
        self.latent_size = latent_size
        self.width = width
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.learning_rate = learning_rate
        self.betas = betas
        super().__init__(images, epochs, batch_size, seed)

    def build(self) -> None:
        self.generator, self.critic = NETWORKS[self.architecture](self.shape, self.latent_size, self.width)
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(network.parameters(), self.learning_rate, betas=self.betas, fused=True)
            for network in (self.generator, self.critic)
        )
        self.steps = 0

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fake = self.generator(self.normal(len(x), self.latent_size))
        epsilon = torch.rand(len(x), *[1] * len(self.shape), generator=self.random).to(x.device)
        real_score, fake_score = self.critic(torch.cat([x, fake])).chunk(2)
        loss = fake_score.mean() - real_score.mean()
        loss = loss + self.penalty * gradient_penalty(self.critic, epsilon * x + (1 - epsilon) * fake)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        self.steps += 1
        if self.steps % self.critic_steps == 0:
            self._generator_step(len(x))
        return loss.detach()

    def _generator_step(self, n: int) -> None:
        loss = -self.critic(self.generator(self.normal(n, self.latent_size))).mean()
        parameters = list(self.generator.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient  # and none for the critic's
        self.generator_optimizer.step()

    def make(self, n: int) -> Tensor:
        return self.generator(self.normal(n, self.latent_size))

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.steps = state["steps"]


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


def _perceptrons(shape: torch.Size, latent_size: int, width: int) -> tuple[nn.Module, nn.Module]:
    pixels = shape.numel()
    generator = nn.Sequential(*perceptron(latent_size, width, width, width, pixels), nn.Tanh(), nn.Unflatten(1, shape))
    return generator, nn.Sequential(nn.Flatten(), *perceptron(pixels, width, width, width, 1))


def _convolutional(shape: torch.Size, latent_size: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Each layer doubles or halves the side. No batch norm, which would tie a critic's images together (section 4)."""
    channels, height, side = shape
    doublings = int(math.log2(side / 4))
    if height != side or doublings < 1 or side != 4 << doublings:
        raise ValueError(f"architecture='conv' needs square images with a side of 8, 16, 32, ...; got {tuple(shape)}")
    widths = [max(width >> level, 1) for level in range(doublings)]  # from the smallest map to the largest
    generator: list[nn.Module] = [nn.Linear(latent_size, 16 * width), nn.ReLU(), nn.Unflatten(1, (width, 4, 4))]
    critic: list[nn.Module] = []
    for wide, narrow in zip(widths, [*widths[1:], channels], strict=True):
        generator += [nn.ConvTranspose2d(wide, narrow, 5, stride=2, padding=2, output_padding=1), nn.ReLU()]
        critic = [nn.Conv2d(narrow, wide, 5, stride=2, padding=2), nn.LeakyReLU(0.2), *critic]
    generator[-1] = nn.Tanh()
    return nn.Sequential(*generator), nn.Sequential(*critic, nn.Flatten(), nn.Linear(16 * width, 1))


NETWORKS = {"mlp": _perceptrons, "conv": _convolutional}
