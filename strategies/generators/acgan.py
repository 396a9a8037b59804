"""A conditional GAN: the loss of WGAN-GP with an auxiliary classifier on the critic.

Odena et al. 2017, "Conditional Image Synthesis with Auxiliary Classifier GANs" (arXiv 1610.09585), as Wu et al. 2018,
"Memory Replay GANs" (arXiv 1809.02058), section 3, and its public code have it: real and
generated images go through one critic, which says how real an image is and which class it shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engrams.strategies.arguments import at_least_one, not_negative
from engrams.strategies.contract import ROUND
from engrams.strategies.generators.generator import SAMPLES_AT_ONCE, ImageSpec, NetworkGenerator, Sampler
from engrams.strategies.generators.wgan_gp import (
    SMALLEST_SIDE,
    convolutional_features,
    gradient_penalty,
    step_alone,
    widths_of_maps,
)
from engrams.strategies.kept import State
from engrams.strategies.steps import step_of


class ACGAN(NetworkGenerator):
    """A generator that is asked for a class, and a critic that also classifies.

    Learning goes on from the weights that the last experience left, with fresh optimisers, and nothing is done about
    forgetting: this is the paper's sequential fine-tuning, or, shown all classes at once, its joint training.

    A batch of generated images holds one label, since batch norm takes its statistics from the batch, in training and
    in sampling alike; where several labels are wanted in a step, so many batches go through the networks at once. (So
    the authors' code has it for one class after another; its joint training mixes labels in a batch.) Images lie in
    [-1, 1].
    """

    black = -1.0
    conditional = True

    generator: ConditionalNetwork
    critic: Critic

    def __init__(
        self,
        images: ImageSpec,
        steps: int,
        batch_size: int = 64,
        seed: int | None = None,
        classes: int = 1,
        latent_size: int = 128,
        width: int = 128,
        smallest_side: int = SMALLEST_SIDE,
        critic_steps: int = 5,
        penalty: float = 10.0,
        classifier_weight: float = 1.0,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.0, 0.9),
    ):
        """
        Args:
            images, batch_size, seed: as for every :class:`NetworkGenerator`; images are square, their side
                ``smallest_side`` doubled once or more.
            steps: of the generator in an experience, at least 1.
            classes: how many there are to begin with; those that are met later are added then.
            latent_size: dimensions of z ~ N(0, I).
            width: channels of the smallest maps, halved with every doubling of the side.
            smallest_side: of the maps that the convolutions begin with. Every doubling has a batch norm, and so another
                place where the label is heard: 8x8 images need maps of 2x2 for two.
            critic_steps: of the critic before each step of the generator, at least 1.
            penalty: lambda of the gradient penalty.
            classifier_weight: lambda_CLS, of the auxiliary classifier in both losses.
            learning_rate, betas: of both networks' Adam.

        Raises:
            ValueError: a size or a number of steps below 1, images of another shape or without bounds.
        """
        at_least_one(
            steps=steps,
            classes=classes,
            latent_size=latent_size,
            width=width,
            smallest_side=smallest_side,
            critic_steps=critic_steps,
        )
        self.steps = steps
        self.classes = classes
        self.latent_size = latent_size
        self.width = width
        self.smallest_side = smallest_side
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.classifier_weight = classifier_weight
        self.learning_rate = learning_rate
        self.betas = betas
        self.known: list[int] = []
        """The classes learned so far."""
        super().__init__(images, batch_size, seed)
        if not self.bounded:
            raise ValueError("the conditional GAN makes images between two finite bounds; its ImageSpec has none")
        # Its own, so that what is replayed changes nothing about what else is drawn.
        self.replay_random = self._source(1)

    def build(self) -> None:
        sizes = self.width, self.smallest_side, self.classes
        self.generator = ConditionalNetwork(self.shape, self.latent_size, *sizes)
        self.critic = Critic(self.shape, *sizes)

    # --- learning -------------------------------------------------------------------------------------------------

    def learn(
        self, images: Tensor, replay: Sampler | None = None, r: float = 1.0, labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Learns the classes of new images.

        Args:
            images: the new ones, in [low, high], [N, *shape].
            replay, r: not read. What is replayed, if anything, is a subclass's own.
            labels: their classes, int64 [N].

        Yields:
            After every 100 steps of the generator and after the last, the mean loss of the critic.

        Raises:
            ValueError: there are no labels, or more classes than a minibatch has images; images are not what was
                promised.
        """
        if labels is None:
            raise ValueError("a conditional generator learns images with their labels")
        self.check(images)
        self.begin(sorted(set(labels.tolist())))
        self.done, self.batches = 0, self.minibatches(self.as_learned(images), labels)
        if self._gone_on_from:
            self.go_on_from(self._gone_on_from)
            self._gone_on_from = None
        while self.done < self.steps:
            of_round = range(min(ROUND, self.steps - self.done))
            losses = [self.step(self.batches) for _ in of_round]
            self.done += len(of_round)
            yield torch.stack(losses).mean()
        self.end()

    def state_dict_within(self) -> State:
        """Returns all that :meth:`learn` goes on from, between two rounds."""
        return {"all": self.state_dict(), "done": self.done, "indices": self.batches.ahead}

    def go_on_from(self, state: State) -> None:
        """Goes on from a state; called after an experience has begun."""
        self.load_state_dict(state["all"])
        self.done, self.batches.ahead = state["done"], state["indices"]

    def begin(self, classes: list[int]) -> None:
        """Begins an experience with these classes."""
        self.check_minibatch(len(classes))
        self.grow(classes[-1] + 1)
        self.learning = classes
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(network.parameters(), self.learning_rate, betas=self.betas, fused=True)
            for network in (self.generator, self.critic)
        )

    def check_minibatch(self, classes: int) -> None:
        """
        Raises:
            ValueError: so many classes at once cannot each have an image in a minibatch.
        """
        if classes > self.batch_size:
            raise ValueError(
                f"the conditional GAN's batch_size of {self.batch_size} is too small for {classes} classes at once, "
                "each of which must have an image in a minibatch"
            )

    def end(self) -> None:
        """Ends an experience."""
        self.known = sorted({*self.known, *self.learning})
        del self.generator_optimizer, self.critic_optimizer, self.batches

    def grow(self, classes: int) -> None:
        """Has room for so many classes; what there is for the present ones stays as it is."""
        if classes > self.classes:
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.randint(2**31, (), generator=self.random)))
                self.generator.grow(classes)
                self.critic.grow(classes)
            self.classes = classes

    def minibatches(self, x: Tensor, labels: Tensor) -> Passes:
        """Yields minibatches of images in [-1, 1] and labels."""
        return Passes(x, labels, min(self.batch_size, len(x)), self.random)

    def step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """Takes a step of the generator, after those of the critic; returns the critic's last loss."""
        for _ in range(self.critic_steps):
            with step_of("generator", "its critic's"):
                critic_loss = self.critic_loss(*next(batches))
                self.critic_optimizer.zero_grad()
                critic_loss.backward()
                self.critic_optimizer.step()
        with step_of("generator", "its own"):
            step_alone(self.generator_optimizer, self.generator, self.generator_loss())
        return critic_loss.detach()

    # --- the losses -----------------------------------------------------------------------------------------------

    def critic_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """E[D(G(z, c))] - E[D(x)] + lambda E[(||grad D|| - 1)^2] + lambda_CLS E[-log C(c | x)].

        Args:
            x: real images in [-1, 1], [N, *shape].
            labels: their classes, [N].
        """
        each = len(x) // len(self.learning)
        with torch.no_grad():
            fake = self.generator(*self.latents(self.learning, each)).flatten(0, 1)
        scores, logits = self.critic(torch.cat([x, fake]))
        real_score, fake_score = scores.split([len(x), len(fake)])
        epsilon = torch.rand(len(fake), *[1] * len(self.shape), generator=self.random).to(x)
        between = epsilon * x[: len(fake)] + (1 - epsilon) * fake
        return (
            fake_score.mean()
            - real_score.mean()
            + self.penalty * gradient_penalty(self.critic.score, between)
            + self.classifier_weight * functional.cross_entropy(logits[: len(x)], labels)
        )

    def generator_loss(self) -> Tensor:
        """-E[D(G(z, c))] + lambda_CLS E[-log C(c | G(z, c))], over the classes being learned."""
        return self.asked_for(*self.latents(self.learning, self.batch_size // len(self.learning)))

    def asked_for(self, z: Tensor, labels: Tensor) -> Tensor:
        """Returns the generator's loss on images of some latents, [batches, n, latent], and labels, [batches, n]."""
        scores, logits = self.critic(self.generator(z, labels).flatten(0, 1))
        return -scores.mean() + self.classifier_weight * functional.cross_entropy(logits, labels.flatten())

    def latents(
        self, classes: Sequence[int], each: int, random: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns a batch of each class: z [classes, each, latent] and labels [classes, each]."""
        z = torch.randn(len(classes), each, self.latent_size, generator=random or self.random).to(self.low)
        return z, torch.tensor(classes, device=z.device)[:, None].expand(-1, each)

    # --- sampling -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def of_class(self, label: int, n: int) -> Tensor:
        """Returns ``n`` images asked for as one class, in [low, high], [n, *shape], without gradients.

        Raises:
            ValueError: n below 0, or there is no such class.
        """
        if n < 0 or not 0 <= label < self.classes:
            raise ValueError(f"n must be at least 0, and the class below {self.classes}; got {n} and {label}")
        return self.as_given(self._of_class(label, n))

    @torch.no_grad()
    def sample_labelled(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns ``n`` images of the classes learned so far, drawn uniformly, and the labels asked for.

        Returns:
            In [low, high], [n, *shape], and int64 [n].

        Raises:
            ValueError: n below 0, or nothing has been learned.
        """
        not_negative(n=n)
        x, labels = self._labelled(n)
        return self.as_given(x), labels

    def make(self, n: int) -> Tensor:
        return self._labelled(n)[0]

    def _labelled(self, n: int) -> tuple[Tensor, Tensor]:
        if not self.known:
            raise ValueError("images must have been learned before any can be made")
        drawn = torch.randint(len(self.known), (n,), generator=self.random)
        labels = torch.tensor(self.known)[drawn]
        counts = labels.bincount(minlength=self.classes).tolist()
        by_class = torch.cat([self._of_class(label, count) for label, count in enumerate(counts)])
        x = torch.empty_like(by_class)
        x[labels.argsort(stable=True).to(x.device)] = by_class
        return x, labels.to(x.device)

    def _of_class(self, label: int, n: int) -> Tensor:
        """In whole batches, cut to n; [-1, 1]."""
        if n == 0:
            return self.low.new_empty(0, *self.shape)
        z, labels = self.latents([label] * -(-n // self.batch_size), self.batch_size)
        at_once = max(1, SAMPLES_AT_ONCE // self.batch_size)
        parts = [self.generator(*part) for part in zip(z.split(at_once), labels.split(at_once), strict=True)]
        return torch.cat(parts).flatten(0, 1)[:n]

    # --- saving and loading ---------------------------------------------------------------------------------------

    def in_common(self) -> list[object]:
        return [*super().in_common(), self.replay_random]

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "known": self.known, "replay_random": self.replay_random.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.known = list(state["known"])
        self.replay_random.set_state(state["replay_random"].cpu())

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Loads a state as every module does; this GAN grows to its number of classes.

        Raises:
            ValueError: it has more already.
        """
        classes = len(state_dict["critic.classifier.bias"])
        if classes < self.classes:
            raise ValueError(f"a state of {classes} classes cannot be loaded into a GAN of {self.classes}")
        self.grow(classes)
        return super().load_state_dict(state_dict, *args, **kwargs)


class Passes(Iterator[tuple[Tensor, Tensor]]):
    """Minibatches without end: pass after pass in a new order; what is left over at the end of one is left out."""

    def __init__(self, x: Tensor, labels: Tensor, size: int, random: torch.Generator):
        """
        Args:
            x, labels: what they are of.
            size: of a minibatch, at most as many as there are.
            random: draws the orders.
        """
        self.x, self.labels, self.size, self.random = x, labels, size, random
        self.ahead: list[Tensor] = []
        """The indices of the minibatches that are left of a pass, the next one last."""

    def __next__(self) -> tuple[Tensor, Tensor]:
        if not self.ahead:
            order = torch.randperm(len(self.x), generator=self.random)
            self.ahead = list(order[: len(order) // self.size * self.size].split(self.size))[::-1]
        indices = self.ahead.pop().to(self.x.device)
        return self.x[indices], self.labels[indices]


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a scale and a shift for every label (Dumoulin et al. 2017, arXiv 1610.07629, eq. 5).

    Statistics are always those of the batch; several batches may come at once, each with its own.
    """

    def __init__(self, channels: int, classes: int, eps: float = 1e-5):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(classes, channels))
        self.shift = nn.Parameter(torch.zeros(classes, channels))
        self.eps = eps

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """[batches, n, channels, height, width] and labels [batches, n] -> the shape of x."""
        variance, mean = torch.var_mean(x, dim=(1, 3, 4), correction=0, keepdim=True)
        scale, shift = (table[labels][..., None, None] for table in (self.scale, self.shift))
        scale = scale * (variance + self.eps).rsqrt()
        return torch.addcmul(shift - mean * scale, x, scale)

    def grow(self, classes: int) -> None:
        """Adds labels, with scale 1 and shift 0."""
        for name, value in (("scale", 1.0), ("shift", 0.0)):
            table = getattr(self, name)
            new = table.new_full((classes - len(table), table.shape[1]), value)
            setattr(self, name, nn.Parameter(torch.cat([table, new])))


class ConditionalNetwork(nn.Module):
    """G(z, c): linear to the smallest maps, then 5x5 transposed convolutions of stride 2, as many as it takes."""

    def __init__(self, shape: torch.Size, latent_size: int, width: int, smallest_side: int, classes: int):
        super().__init__()
        widths = widths_of_maps(shape, width, smallest_side)
        self.smallest = (width, smallest_side, smallest_side)
        self.linear = nn.Linear(latent_size, math.prod(self.smallest))
        self.norms = nn.ModuleList(ConditionalBatchNorm(channels, classes) for channels in widths)
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 5, stride=2, padding=2, output_padding=1)
            for wide, narrow in zip(widths, [*widths[1:], shape[0]], strict=True)
        )
        initialise(self)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z [batches, n, latent] and labels [batches, n] -> [batches, n, *shape]; each batch has its own statistics."""
        x = self.linear(z).unflatten(2, self.smallest)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = convolution(functional.relu(norm(x, labels)).flatten(0, 1)).unflatten(0, labels.shape)
        return x.tanh()

    def grow(self, classes: int) -> None:
        for norm in self.norms:
            assert isinstance(norm, ConditionalBatchNorm)
            norm.grow(classes)


class Critic(nn.Module):
    """5x5 convolutions of stride 2 down to the smallest maps, then a score D(x) and the logits of C(c | x)."""

    def __init__(self, shape: torch.Size, width: int, smallest_side: int, classes: int):
        super().__init__()
        self.features = convolutional_features(shape, width, smallest_side)
        self.head = nn.Linear(width * smallest_side**2, 1)
        self.classifier = nn.Linear(width * smallest_side**2, classes)
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, *shape] -> scores [N], logits [N, classes]."""
        features = self.features(x)
        return self.head(features).squeeze(1), self.classifier(features)

    def score(self, x: Tensor) -> Tensor:
        """[N, *shape] -> scores [N, 1]."""
        return self.head(self.features(x))

    def grow(self, classes: int) -> None:
        """Adds classes."""
        old, new = self.classifier, nn.Linear(self.classifier.in_features, classes)
        initialise(new)  # on the CPU, so that the same numbers are drawn wherever the networks are
        new.to(old.weight)
        with torch.no_grad():
            new.weight[: old.out_features], new.bias[: old.out_features] = old.weight, old.bias
        self.classifier = new


def initialise(network: nn.Module) -> None:
    """Uniform weights and biases of zero, as the authors' code has them.

    Linear layers as Glorot & Bengio 2010; convolutions with the standard deviation sqrt(4 / (fan_in + fan_out)), in
    which the fan on the side that the stride thins out is divided by its square.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # PyTorch has the thinned side first in both: a convolution's outputs, a transposed one's inputs.
            thinned, other, height, width = layer.weight.shape
            fans = height * width * (other + thinned / math.prod(layer.stride))
            bound = math.sqrt(3 * 4 / fans)
            nn.init.uniform_(layer.weight, -bound, bound)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
