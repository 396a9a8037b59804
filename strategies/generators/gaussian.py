"""One Gaussian a class, in closed form: the plainest generator that can be asked for a class.

Its statistics (a class's number of samples and mean, and the scatter around it) are those of linear discriminant
analysis, and are kept exactly while classes and samples come: Chan, Golub & LeVeque 1979, "Updating formulae and a
pairwise algorithm for computing sample variances", a class's past and its new samples being the pair. Hayes & Kanan
2020 (arXiv 1909.01520) classify by them, in the features of a pre-trained network; here a solver learns from samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engrams.strategies.arguments import at_least_one, not_negative, one_of
from engrams.strategies.choices import Covariance
from engrams.strategies.generators.generator import Generator, ImageSpec, Sampler


class ClassGaussians(Generator):
    """p(x | class) = N(mean of the class, covariance), what lies beyond [low, high] clamped.

    Nothing is forgotten and nothing replayed: what was learned in ten experiences equals what is learned from all their
    data at once, to rounding. It keeps C means of D values, and D x D of scatter (``shared``) or C x D (``diagonal``),
    as float64: 13 MB for the 1,280 features of 100 classes and their shared scatter.
    """

    conditional = True

    def __init__(
        self,
        images: ImageSpec,
        covariance: Covariance = "shared",
        shrinkage: float = 0.1,
        rank: int | None = None,
        seed: int | None = None,
    ):
        """
        Args:
            images: what it learns; taken as a vector of D values each.
            covariance: ``shared``: one for all classes, the scatter around the classes' means over N - C, N samples of
                C classes. ``diagonal``: each class has its own variances, its squared deviations over their number.
            shrinkage: s in [0, 1]: the eigenvalues l (variances, if diagonal) become (1 - s) l + s mean(l), which
                leaves their sum as it is (towards the mean, as Ledoit & Wolf 2004 have it, with s given).
            rank: only so many leading directions of a shared covariance are kept, with one variance for all others,
                the mean of theirs (probabilistic principal components: Tipping & Bishop 1999, eq. 7 and 8); None for
                all.
            seed: as for every :class:`Generator`.

        Raises:
            ValueError: no such covariance, a shrinkage out of range, a rank below 1 or of a diagonal covariance; as for
                every :class:`Generator`.
        """
        one_of(Covariance, covariance=covariance)
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be in [0, 1]; got {shrinkage}")
        at_least_one(rank=rank)
        if rank is not None and covariance == "diagonal":
            raise ValueError("rank is of a shared covariance; a diagonal one has no directions to leave out")
        super().__init__(images, seed)
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.rank = rank
        values = self.shape.numel()
        self.known: list[int] = []
        """The classes learned so far; the rows below are in their order."""
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.means = torch.zeros(0, values, dtype=torch.float64)
        self.scatter = torch.zeros((0 if covariance == "diagonal" else values), values, dtype=torch.float64)
        """The sum of squared deviations from the class's mean: [C, D], or of all classes together [D, D]."""
        self._factor: Tensor | None = None

    # --- learning -------------------------------------------------------------------------------------------------

    def learn(
        self, images: Tensor, replay: Sampler | None = None, r: float = 1.0, labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Takes new images into the statistics of their classes; there are no epochs.

        Args:
            images: the new ones, [N, *shape], of known and new classes.
            replay, r: not used: nothing is forgotten.
            labels: their classes, int64 [N].

        Raises:
            ValueError: there are no labels, an image has a value that is no finite number, or images of another shape
                than promised.
        """
        self.check(images)
        if labels is None:
            raise ValueError("a Gaussian a class needs the classes of the images that it learns")
        x = images.flatten(1).double().cpu()
        if not x.isfinite().all():
            raise ValueError("the images have values that are no finite numbers")
        for label in labels.unique().tolist():
            self._merge(label, x[(labels == label).cpu()])
        self._factor = None
        yield from ()

    def _merge(self, label: int, x: Tensor) -> None:
        """Takes samples [N, D] of one class in: Chan et al. 1979, of a mean and the scatter around it."""
        if label not in self.known:
            self.known.append(label)
            self.counts = torch.cat([self.counts, self.counts.new_zeros(1)])
            self.means = torch.cat([self.means, self.means.new_zeros(1, x.shape[1])])
            if self.covariance == "diagonal":
                self.scatter = torch.cat([self.scatter, self.scatter.new_zeros(1, x.shape[1])])
        row = self.known.index(label)
        before, new = int(self.counts[row]), len(x)
        deviations = x - x.mean(dim=0)
        between = x.mean(dim=0) - self.means[row]
        weight = before * new / (before + new)
        if self.covariance == "diagonal":
            self.scatter[row] += deviations.square().sum(dim=0) + weight * between.square()
        else:
            self.scatter += deviations.T @ deviations + weight * torch.outer(between, between)
        self.means[row] += between * (new / (before + new))
        self.counts[row] += new

    # --- making ---------------------------------------------------------------------------------------------------

    def sample(self, n: int) -> Tensor:
        """Returns ``n`` images in [low, high], [n, *shape], of the classes learned.

        Raises:
            ValueError: n below 0, or nothing has been learned.
        """
        return self.sample_labelled(n)[0]

    def sample_labelled(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns ``n`` images and their classes; a class is as likely as it was frequent in what was learned.

        Returns:
            In [low, high], [n, *shape], and int64 [n].

        Raises:
            ValueError: n below 0, or nothing has been learned.
        """
        not_negative(n=n)
        if not self.known:
            raise ValueError("images must have been learned before any can be made")
        if self._factor is None:
            self._factor = self._square_root()
        which = (
            torch.multinomial(self.counts.double(), n, replacement=True, generator=self.random)
            if n
            else (torch.zeros(0, dtype=torch.int64))
        )
        z = torch.randn(n, self.shape.numel(), generator=self.random, dtype=self._factor.dtype)
        spread = z * self._factor[which] if self.covariance == "diagonal" else z @ self._factor
        x = (self.means.to(spread)[which] + spread).unflatten(1, self.shape).to(self.low)
        labels = torch.tensor(self.known)[which]
        return x.clamp(self.low, self.high), labels.to(self.low.device)

    def _square_root(self) -> Tensor:
        """R with R^T R the shrunk covariance, [D, D]; if diagonal, the classes' standard deviations, [C, D]."""
        if self.covariance == "diagonal":
            return self._shrunk(self.scatter / self.counts[:, None]).sqrt().to(self.low.dtype).cpu()
        within = self.scatter / max(1, int(self.counts.sum()) - len(self.known))
        values, directions = torch.linalg.eigh(within)  # ascending
        values = self._shrunk(values.clamp_min(0.0))
        if self.rank is not None and self.rank < len(values):
            values[: -self.rank] = values[: -self.rank].mean()
        return (values.sqrt()[:, None] * directions.T).to(self.low.dtype).cpu()

    def _shrunk(self, variances: Tensor) -> Tensor:
        return (1 - self.shrinkage) * variances + self.shrinkage * variances.mean(dim=-1, keepdim=True)

    def get_extra_state(self) -> dict[str, Any]:
        statistics = {"known": self.known, "counts": self.counts, "means": self.means, "scatter": self.scatter}
        return {**super().get_extra_state(), **statistics}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.known, self.counts = list(state["known"]), state["counts"].clone()
        self.means, self.scatter = state["means"].clone(), state["scatter"].clone()
        self._factor = None
