"""The contract of a generator: learn from batches, ``sample(n)``, save and load.

A generator brings its own networks, optimisers and source of random numbers, so that training one changes nothing about
how a solver beside it is initialised or trained. ``state_dict`` and ``load_state_dict`` carry all of it: a generator
that is saved, loaded and trained on goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from engrams.strategies.arguments import at_least_one, not_negative, one_of
from engrams.strategies.contract import Schedule
from engrams.strategies.copies import independent_copy
from engrams.strategies.kept import State
from engrams.strategies.steps import step_of

SAMPLES_AT_ONCE = 1000

Sampler = Callable[[int], Tensor]
"""n -> n images, [n, *shape]."""


class ImageSpec(NamedTuple):
    """The inputs of a stream, images or vectors: their shape, and the bounds of their values, as the solver sees them.

    Images lie between the values of black and white. Vectors, the features of another network say, may have no bounds:
    then ``low`` or ``high`` is infinite, and a generator that has networks standardises what it learns (see
    :class:`NetworkGenerator`).
    """

    shape: tuple[int, ...]
    """Of one input: [channels, height, width], [values] or any other."""
    low: float | Tensor = 0.0
    """The smallest value: a number or ``-math.inf``, or a tensor of such that broadcasts with an input."""
    high: float | Tensor = 1.0
    """The largest value, as ``low``."""


class Generator(nn.Module, ABC):
    """Learns images (or vectors: whatever its :class:`ImageSpec` says) and makes new ones like them.

    Both are as the stream has them. A generator of your own needs :meth:`learn` and :meth:`sample`; one that learns by
    minibatches is easier made of :class:`TrainedGenerator`.
    """

    conditional: bool = False
    """Whether it learns classes and can be asked for them. One that is conditional overrides :meth:`sample_labelled`,
    and sees to its own replay in :meth:`learn`, since a :data:`Sampler` knows no labels: ``replay`` and ``r`` are not
    for it."""

    low: Tensor
    high: Tensor

    def __init__(self, images: ImageSpec, seed: int | None = None):
        """
        Args:
            images: what it learns.
            seed: of every random number that it draws; None to draw the seed from torch's global generator, one number
                of which is taken then, so that ``torch.manual_seed`` decides it.

        Raises:
            ValueError: no :class:`ImageSpec`, or one of other types than it promises; an image without pixels, or
                ``low`` not below ``high``.
        """
        super().__init__()
        try:
            shape, low, high = torch.Size(images.shape), images.low, images.high
            low, high = (torch.as_tensor(bound, dtype=torch.get_default_dtype()) for bound in (low, high))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"a generator is made for an ImageSpec: a tuple for the shape of an image, and numbers or tensors for "
                f"low and high, as in ImageSpec((1, 28, 28), 0.0, 1.0) or ImageSpec((784,)); got {images!r}"
            ) from error
        self.shape = shape
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        if self.shape.numel() < 1 or not (self.low < self.high).all():
            raise ValueError(f"images must have pixels, and low must be below high; got {images}")
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        self.random = self._source(0)

    def _source(self, which: int) -> torch.Generator:
        """Returns a source of random numbers that no other (``which`` = 0, 1, ...) has anything in common with."""
        # Not the seed itself: a solver made with it would begin with the same weights, its data in the same order. And
        # on the CPU, so that a run draws the same numbers wherever its networks are.
        state = np.random.SeedSequence(self.seed).generate_state(which + 1)[which]
        return torch.Generator().manual_seed(int(state))

    @abstractmethod
    def learn(
        self, images: Tensor, replay: Sampler | None = None, r: float = 1.0, labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Learns new images mixed with replay in proportion r : 1 - r (Shin et al. 2017, section 3.1).

        The work is done as what is returned is iterated over.

        Args:
            images: the new ones, in [low, high], [N, *shape].
            replay: the previous generator's; not called if r is 1.
            r: share of new images in what is learned, in (0, 1]; below 1 only with a replay.
            labels: classes of the new images, int64 [N]; only what is conditional on them reads them.

        Yields:
            After every epoch, the mean loss of its steps; nothing if there are no epochs.

        Raises:
            ValueError: r is out of range, or below 1 without a replay; images are not what was promised (see
                :meth:`check`).
        """

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Returns ``n`` images in [low, high], [n, *shape], without gradients.

        Raises:
            ValueError: n below 0.
        """

    def sample_labelled(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns ``n`` images of the classes learned so far, and the classes that they were asked for as, int64 [n].

        Raises:
            TypeError: the generator is not conditional.
        """
        raise TypeError(f"{type(self).__name__} is not conditional: it cannot be asked for classes")

    def check(self, images: Tensor) -> None:
        """Refuses images that are not what was promised; every ``learn`` begins with it.

        Raises:
            ValueError: images of another shape than the :class:`ImageSpec`'s.
        """
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"the generator's ImageSpec promises images of shape {tuple(self.shape)}; the stream's have shape "
                f"{tuple(images.shape[1:])}"
            )

    def frozen_copy(self) -> Self:
        """Returns a copy for sampling, without gradients, that does not change; it draws on the same random numbers."""
        copied = independent_copy(self, {id(one): one for one in self.in_common()})
        return copied.eval().requires_grad_(False)

    def in_common(self) -> list[object]:
        """Returns what copies have in common with the original."""
        # A copy of the source of random numbers would repeat those that the original is about to draw.
        return [self.random]

    def normal(self, *shape: int) -> Tensor:
        """Returns standard normal numbers of the generator's own, on the device of its networks and of their type."""
        return torch.randn(*shape, generator=self.random).to(self.low)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what ``state_dict`` keeps besides the networks."""
        return {"random": self.random.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.random.set_state(state["random"].cpu())


class NetworkGenerator(Generator):
    """Has networks, optimisers, and a range of its own.

    A kind of generator sees images, and makes them, in the range that its paper has, which it says by ``black`` and
    ``white``: what lies between two bounds is scaled to it. What has no bounds is standardised instead, every value by
    its mean and standard deviation in the first images that are learned (a constant one by its mean alone), and
    :attr:`bounded` is false: the networks' outputs must not be squashed then.

    It sets its own settings before it calls ``super().__init__``, which builds the networks.
    """

    black = 0.0
    white = 1.0

    mean: Tensor
    deviation: Tensor
    _gone_on_from: State | None = None

    def __init__(self, images: ImageSpec, batch_size: int, seed: int | None):
        """
        Args:
            images: what it learns.
            batch_size: images in a minibatch, at least 1.
            seed: of its initialisation and of every random number that it draws; as for every :class:`Generator`.

        Raises:
            ValueError: batch_size below 1; as for every :class:`Generator`.
        """
        at_least_one(batch_size=batch_size)
        super().__init__(images, seed)
        self.batch_size = batch_size
        self.bounded = bool(self.low.isfinite().all() and self.high.isfinite().all())
        if not self.bounded:
            self.register_buffer("mean", torch.full(self.shape, math.nan))
            self.register_buffer("deviation", torch.ones(self.shape))
        # Not from torch's global generator, whose numbers are the solver's.
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=self.random)))
            self.build()

    @abstractmethod
    def build(self) -> None:
        """Makes the networks and their optimisers."""

    def load_state_dict_within(self, state: State) -> None:
        """Makes the next :meth:`learn`, of the same images, go on from a state, as the interrupted one would have."""
        self._gone_on_from = state

    @abstractmethod
    def make(self, n: int) -> Tensor:
        """Returns ``n`` images in the networks' own range, [n, *shape]; called without gradients and in eval mode."""

    def check(self, images: Tensor) -> None:
        """
        Raises:
            ValueError: images of another shape or type than promised, with values that are no finite numbers, or beyond
                [low, high]: the networks could not make them.
        """
        super().check(images)
        if images.dtype != self.low.dtype:
            raise ValueError(
                f"the generator's networks are {_name(self.low.dtype)} and the stream's images {_name(images.dtype)}; "
                "convert one of them (generator.double() makes a generator float64)"
            )
        slack = (1e-3 * (self.high - self.low)).nan_to_num(posinf=0.0)
        if not (images.isfinite() & (images >= self.low - slack) & (images <= self.high + slack)).all():
            raise ValueError(
                f"images must lie between low and high of the generator's ImageSpec, which are the values of black and "
                f"white as the stream has them after its transforms; got {images.min():.4g} to {images.max():.4g} for "
                f"low = {self.low.min():.4g} and high = {self.high.max():.4g}"
            )

    def _standardise(self, images: Tensor) -> None:
        """Measures the mean and the deviation of the first images that are learned."""
        if not self.bounded and self.mean.isnan().any():
            self.mean.copy_(images.mean(dim=0))
            deviation = images.std(dim=0, correction=0)
            constant = deviation <= 1e-6 * self.mean.abs()  # but for rounding
            self.deviation.copy_(torch.where(constant, 1.0, deviation))

    def as_learned(self, images: Tensor) -> Tensor:
        """Takes images from [low, high] to the networks' own range."""
        if not self.bounded:
            return (images - self.mean) / self.deviation
        return self.black + (images - self.low) / (self.high - self.low) * (self.white - self.black)

    def as_given(self, x: Tensor) -> Tensor:
        """Takes images from the networks' own range to [low, high]."""
        if not self.bounded:
            return (self.mean.nan_to_num() + x * self.deviation).clamp(self.low, self.high)
        return self.low + (x - self.black) / (self.white - self.black) * (self.high - self.low)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        not_negative(n=n)
        was_training = self.training
        self.eval()
        sizes = [SAMPLES_AT_ONCE] * (n // SAMPLES_AT_ONCE) + [n % SAMPLES_AT_ONCE] * bool(n % SAMPLES_AT_ONCE)
        made = [self.as_given(self.make(size)) for size in sizes]
        self.train(was_training)
        return torch.cat(made) if made else self.low.new_empty(0, *self.shape)

    def _apply(self, *args, **kwargs):
        """A move to another device or type, which optimisers that have already stepped must follow."""
        super()._apply(*args, **kwargs)
        for optimizer in self._optimizers().values():
            optimizer.load_state_dict(optimizer.state_dict())
        return self

    def in_common(self) -> list[object]:
        return [*super().in_common(), *self._optimizers().values()]  # it is trained no more

    def get_extra_state(self) -> dict[str, Any]:
        states = {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()}
        return {**super().get_extra_state(), "optimizers": states}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer)}


class TrainedGenerator(NetworkGenerator):
    """Learns by minibatches, an epoch being as many images as there are new ones.

    Optimisers keep their state from one experience to the next.
    """

    def __init__(
        self,
        images: ImageSpec,
        epochs: int,
        batch_size: int,
        seed: int | None,
        learning_rate: float,
        schedule: Schedule = "constant",
    ):
        """
        Args:
            images, batch_size, seed: as for every :class:`NetworkGenerator`.
            epochs: passes of :meth:`learn`, at least 1.
            learning_rate: of the optimisers that :meth:`build` makes.
            schedule: ``constant``, or ``linear``: the learning rate falls to zero in every experience.

        Raises:
            ValueError: epochs below 1, no such schedule; as for every :class:`NetworkGenerator`.
        """
        at_least_one(epochs=epochs)
        one_of(Schedule, schedule=schedule)
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.schedule = schedule
        super().__init__(images, batch_size, seed)

    @abstractmethod
    def step(self, x: Tensor) -> Tensor:
        """Learns one minibatch.

        Args:
            x: images in the networks' own range, [batch, *shape].

        Returns:
            The loss before the step, a scalar.
        """

    def learn(
        self, images: Tensor, replay: Sampler | None = None, r: float = 1.0, labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        self.check(images)
        self._standardise(images)
        new = self.as_learned(images)
        old = None if replay is None else lambda n: self.as_learned(replay(n))
        self.train()
        self._done = 0
        if self._gone_on_from:
            self.load_state_dict(self._gone_on_from["all"])
            self._done, self._gone_on_from = self._gone_on_from["done"], None
        for epoch in range(self._done, self.epochs):
            batches = mixed(new, old, r, self.random).split(self.batch_size)
            losses = []
            for done, batch in enumerate(batches):
                if self.schedule == "linear":
                    self._set_learning_rate(1 - (epoch + done / len(batches)) / self.epochs)
                with step_of("generator", len(batch)):
                    losses.append(self.step(batch))
            self._done = epoch + 1
            yield torch.stack(losses).mean()

    def state_dict_within(self) -> State:
        """Returns all that :meth:`learn` goes on from, between two epochs."""
        return {"all": self.state_dict(), "done": self._done}

    def _set_learning_rate(self, factor: float) -> None:
        for optimizer in self._optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * factor


def perceptron(*sizes: int) -> nn.Sequential:
    """Returns linear layers of these sizes with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def check_share(r: float, replay: Sampler | None) -> None:
    """
    Raises:
        ValueError: r is out of range, or below 1 without a replay.
    """
    if not 0 < r <= 1 or (replay is None and r < 1):
        raise ValueError(f"r must be in (0, 1], and 1 where there is no replay; got {r}")


def mixed(images: Tensor, replay: Sampler | None, r: float, random: torch.Generator) -> Tensor:
    """Returns as many images as there are new ones, in random order: a share r new, the rest replay.

    Args:
        images: the new ones, [N, *shape].
        replay: makes the others.
        r: in (0, 1]; the number of new images is r N, rounded, and at least 1.
        random: draws the choice and the order.

    Returns:
        [N, *shape].

    Raises:
        ValueError: r is out of range, or below 1 without a replay.
    """
    check_share(r, replay)
    order = torch.randperm(len(images), generator=random).to(images.device)
    new = max(1, round(r * len(images)))
    if replay is None or new == len(images):
        return images[order]
    with step_of("replay", len(images) - new):
        replayed = replay(len(images) - new)
    pool = torch.cat([images[order[:new]], replayed])
    return pool[torch.randperm(len(pool), generator=random).to(pool.device)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
