"""The contract of a generator: learn from batches, ``sample(n)``, save and load.

A generator brings its own networks, optimisers and source of random numbers, so that training one changes nothing about
how a solver beside it is initialised or trained. ``state_dict`` and ``load_state_dict`` carry all of it: a generator
that is saved, loaded and trained on goes on as if it had never stopped.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SAMPLES_AT_ONCE = 1000

Sampler = Callable[[int], Tensor]
"""n -> n images, [n, *shape]."""


class ImageSpec(NamedTuple):
    """The images of a stream: their shape, and the values of black and white as they go into the solver."""

    shape: tuple[int, ...]
    """[channels, height, width], or any other."""
    low: float | Tensor = 0.0
    """The smallest value; a number, or a tensor that broadcasts with an image."""
    high: float | Tensor = 1.0
    """The largest value, as ``low``."""


class Generator(nn.Module, ABC):
    """Learns images and makes new ones like them.

    Images come and go as the stream has them, in [low, high]; a kind of generator sees them, and makes them, in the
    range that its paper has, which it says by ``black`` and ``white``.
    """

    black = 0.0
    white = 1.0
    low: Tensor
    high: Tensor

    def __init__(self, images: ImageSpec, epochs: int, batch_size: int, seed: int):
        """
        Args:
            images: what it learns.
            epochs: passes of :meth:`learn`, each as long as the new images are many; at least 1.
            batch_size: images in a minibatch, at least 1.
            seed: of its initialisation and of every random number that it draws.

        Raises:
            ValueError: epochs or batch_size below 1.
        """
        super().__init__()
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.shape = torch.Size(images.shape)
        self.epochs = epochs
        self.batch_size = batch_size
        self.register_buffer("low", torch.as_tensor(images.low, dtype=torch.float32))
        self.register_buffer("high", torch.as_tensor(images.high, dtype=torch.float32))
        # On the CPU, so that a run draws the same numbers wherever its networks are.
        self.random = torch.Generator().manual_seed(seed)
        # Not from torch's global generator, whose numbers are the solver's.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.build()

    @abstractmethod
    def build(self) -> None:
        """Make the networks and their optimisers."""

    @abstractmethod
    def step(self, x: Tensor) -> Tensor:
        """Learn one minibatch.

        Args:
            x: images in [black, white], [batch, *shape].

        Returns:
            The loss before the step, a scalar.
        """

    @abstractmethod
    def make(self, n: int) -> Tensor:
        """``n`` images in [black, white], [n, *shape]; called without gradients and in eval mode."""

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` new images in [low, high], [n, *shape], made in large batches; the mode (train, eval) is kept.

        Raises:
            ValueError: n below 0.
        """
        if n < 0:
            raise ValueError(f"n must be at least 0; got {n}")
        was_training = self.training
        self.eval()
        sizes = [SAMPLES_AT_ONCE] * (n // SAMPLES_AT_ONCE) + [n % SAMPLES_AT_ONCE] * bool(n % SAMPLES_AT_ONCE)
        made = [self.make(size) for size in sizes] or [torch.empty(0, *self.shape, device=self.low.device)]
        self.train(was_training)
        share = (torch.cat(made) - self.black) / (self.white - self.black)
        return self.low + share * (self.high - self.low)

    def learn(self, images: Tensor, replay: Sampler | None = None, r: float = 1.0) -> Iterator[Tensor]:
        """Learn new images mixed with replay in proportion r : 1 - r (Shin et al. 2017, section 3.1).

        Args:
            images: the new ones, in [low, high], [N, *shape].
            replay: the previous generator's; not called if r is 1.
            r: share of new images in what is learned, in (0, 1]; below 1 only with a replay.

        Yields:
            After every epoch, the mean loss of its steps.
        """
        self.train()
        for _ in range(self.epochs):
            mixture = mixed(images, replay, r, self.random)
            share = (mixture - self.low) / (self.high - self.low)
            x = self.black + share * (self.white - self.black)
            yield torch.stack([self.step(batch) for batch in x.split(self.batch_size)]).mean()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of the generator's own, on the device of its networks."""
        return torch.randn(*shape, generator=self.random).to(self.low.device)

    def frozen_copy(self) -> Generator:
        """As it is now, for sampling: no gradient, no further change. Draws on the same random numbers."""
        # A copy of their source would repeat the numbers that the original is about to draw.
        copied = copy.deepcopy(self, memo={id(self.random): self.random})
        return copied.eval().requires_grad_(False)

    def get_extra_state(self) -> dict[str, Any]:
        """What ``state_dict`` keeps besides the networks."""
        return {
            "random": self.random.get_state(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers()},
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.random.set_state(state["random"])
        for name, optimizer in self._optimizers():
            optimizer.load_state_dict(state["optimizers"][name])

    def _optimizers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer)]


def mixed(images: Tensor, replay: Sampler | None, r: float, random: torch.Generator) -> Tensor:
    """As many images as there are new ones, in random order: a share r of them new, chosen at random, the rest replay.

    Args:
        images: the new ones, [N, *shape].
        replay: makes the others.
        r: in (0, 1]; the number of new images is r N, rounded.
        random: draws the choice and the order.

    Returns:
        [N, *shape].
    """
    order = torch.randperm(len(images), generator=random).to(images.device)
    new = round(r * len(images))
    if new == len(images):
        return images[order]
    assert replay is not None
    pool = torch.cat([images[order[:new]], replay(len(images) - new)])
    return pool[torch.randperm(len(pool), generator=random).to(pool.device)]
