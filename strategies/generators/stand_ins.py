"""The controls of Shin et al. 2017 that stand in for a generator: a perfect one, and one that knows nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from strategies.generators.generator import Generator, ImageSpec, Sampler


class StandIn(Generator):
    """Has no networks: nothing to build, and nothing to learn step by step."""

    def __init__(self, images: ImageSpec, seed: int):
        super().__init__(images, epochs=1, batch_size=1, seed=seed)

    def build(self) -> None:
        pass

    def step(self, x: Tensor) -> Tensor:
        raise NotImplementedError("a stand-in learns no minibatches; it is given all images at once")


class PastImages(StandIn):
    """Exact replay: past real images, the perfect generator and so the upper bound.

    It samples from the distribution that a perfect generator would have learned: of p_{t-1}, the past, and of the new
    images, r p_new + (1 - r) p_{t-1}.
    """

    def build(self) -> None:
        self.images: list[Tensor] = []
        self.shares: list[float] = []

    def learn(self, images: Tensor, replay: Sampler | None = None, r: float = 1.0) -> Iterator[Tensor]:
        """Keep the images; there is nothing to yield."""
        self.shares = [share * (1 - r) for share in self.shares] + [r]
        self.images = [*self.images, images]
        return iter(())

    def sample(self, n: int) -> Tensor:
        """``n`` past images, drawn with replacement, in [low, high], [n, *shape]."""
        shares = torch.tensor(self.shares, dtype=torch.double)
        experiences = torch.multinomial(shares, n, replacement=True, generator=self.random)
        counts = experiences.bincount(minlength=len(shares))
        drawn = [
            images[torch.randint(len(images), (count,), generator=self.random).to(images.device)]
            for images, count in zip(self.images, counts.tolist(), strict=True)
        ]
        return torch.cat(drawn)[torch.randperm(n, generator=self.random).to(drawn[0].device)]

    def make(self, n: int) -> Tensor:
        raise NotImplementedError("sample() has the images as they came")

    def get_extra_state(self):
        return {**super().get_extra_state(), "images": self.images, "shares": self.shares}

    def set_extra_state(self, state) -> None:
        super().set_extra_state(state)
        self.images, self.shares = state["images"], state["shares"]


class NoiseImages(StandIn):
    """Noise replay: every pixel normal, with the mean and the standard deviation of all pixels learned last."""

    def build(self) -> None:
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def learn(self, images: Tensor, replay: Sampler | None = None, r: float = 1.0) -> Iterator[Tensor]:
        """Measure mean and standard deviation; there is nothing to yield."""
        self.mean, self.std = images.mean(), images.std()
        return iter(())

    def sample(self, n: int) -> Tensor:
        """``n`` images of noise, [n, *shape]; they may leave [low, high]."""
        return self.mean + self.std * self.normal(n, *self.shape)

    def make(self, n: int) -> Tensor:
        raise NotImplementedError("sample() has the noise as it is")
