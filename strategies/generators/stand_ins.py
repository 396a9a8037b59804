"""The controls of Shin et al. 2017 that stand in for a generator: a perfect one, and one that knows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from engrams.strategies.arguments import not_negative
from engrams.strategies.generators.generator import Generator, ImageSpec, Sampler, check_share


class PastImages(Generator):
    """Exact replay: past real images, the perfect generator and so the upper bound.

    It samples from the distribution that a perfect generator would have learned: of p_{t-1}, the past, and of the new
    images, r p_new + (1 - r) p_{t-1}. It keeps every image.
    """

    def __init__(self, images: ImageSpec, seed: int | None = None):
        super().__init__(images, seed)
        self.images: list[Tensor] = []
        self.shares: list[float] = []
        """The share of each part of the images in what is sampled."""
        self._past: list[float] = []
        """The shares as the previous experience left them."""

    def learn(
        self, images: Tensor, replay: Sampler | None = None, r: float = 1.0, labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Keeps the images; there are no epochs. One that starts afresh keeps as much replay besides.

        An experience may come in pieces, whose images together have the share r: it is another one where a frozen copy
        has been made since, or where the replay is this generator's own. With r = 1 and no frozen copy since, all that
        was learned counts as one experience.
        """
        self.check(images)
        check_share(r, replay)
        if r < 1 and replay and not self.images:
            self.images, self.shares = [replay(len(images))], [1.0]
        if r < 1 and (not self._past or replay == self.sample):
            self._past = self.shares
        self.images = [*self.images, images]
        new = [len(piece) for piece in self.images[len(self._past) :]]
        self.shares = [share * (1 - r) for share in self._past] + [r * size / sum(new) for size in new]
        yield from ()

    def sample(self, n: int) -> Tensor:
        """Returns ``n`` past images, drawn with replacement.

        Raises:
            ValueError: n below 0, or nothing has been learned.
        """
        if n < 0 or not self.images:
            raise ValueError(f"n must be at least 0, and images must have been learned; got {n}")
        shares = torch.tensor(self.shares, dtype=torch.double)
        experiences = torch.rand(n, generator=self.random, dtype=torch.double).mul_(shares.sum())
        counts = torch.searchsorted(shares.cumsum(0), experiences, right=True).clamp_max(len(shares) - 1)
        drawn = [
            images[torch.randint(len(images), (count,), generator=self.random).to(images.device)].to(self.low.device)
            for images, count in zip(self.images, counts.bincount(minlength=len(shares)).tolist(), strict=True)
        ]
        return torch.cat(drawn)[torch.randperm(n, generator=self.random).to(self.low.device)]

    def in_common(self) -> list[object]:
        return [*super().in_common(), self.images]  # learning makes a new list

    def frozen_copy(self) -> Self:
        """Returns a copy, as every generator does; what is learned after it belongs to another experience."""
        self._past = self.shares
        return super().frozen_copy()

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "images": self.images, "shares": self.shares}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.images, self.shares = state["images"], state["shares"]
        self._past = self.shares


class NoiseImages(Generator):
    """Noise replay: every pixel normal, with the mean and the standard deviation of all pixels learned last."""

    mean: Tensor
    std: Tensor

    def __init__(self, images: ImageSpec, seed: int | None = None):
        super().__init__(images, seed)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def learn(
        self, images: Tensor, replay: Sampler | None = None, r: float = 1.0, labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Measures mean and standard deviation; there are no epochs."""
        self.check(images)
        self.mean, self.std = images.mean(), images.std()
        yield from ()

    def sample(self, n: int) -> Tensor:
        """Returns ``n`` images of noise; they may leave [low, high]."""
        not_negative(n=n)
        return self.mean + self.std * self.normal(n, *self.shape).to(self.mean)
