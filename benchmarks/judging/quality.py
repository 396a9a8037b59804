"""How real generated images are, in the features of a classifier of real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from engrams.benchmarks.judging.real_classifier import AT_ONCE, RealClassifier

NEIGHBOURS = 3
"""k of :func:`precision_and_recall`, as the paper takes it."""
COMPARED = 2000
"""At most so many real and so many generated images are compared pair by pair."""


@torch.no_grad()
def features_of(classifier: RealClassifier, x: Tensor) -> Tensor:
    """Returns the classifier's last hidden layer, [N, features], of images [N, *shape]."""
    layers = classifier.network.get_submodule("features")
    return torch.cat([layers(part) for part in x.split(AT_ONCE)])


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Returns the distance of Heusel et al. 2017 (arXiv 1706.08500), eq. 6, in other features than Inception's.

    Args:
        real, generated: features, [N, F] and [M, F]. Few images make it larger: only distances of the same N and M can
            be compared.
    """
    as_they_are = nn.Identity()
    as_they_are.num_features = real.shape[1]  # type: ignore[assignment]  # what torchmetrics asks for
    distance = FrechetInceptionDistance(as_they_are).to(generated.device)
    for features, is_real in ((real.to(generated.device), True), (generated, False)):
        for part in features.split(AT_ONCE):
            distance.update(part, real=is_real)
    return distance.compute().item()


def precision_and_recall(real: Tensor, generated: Tensor) -> tuple[float | None, float | None]:
    """Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models" (arXiv
    1904.06991), eqs. 1 and 2.

    A set of images stands for all that lies within the distance from one of them to its k-th nearest neighbour in the
    set. Precision: the share of generated images that lie in what the real ones stand for, how many are real enough.
    Recall: the share of real images that lie in what the generated ones stand for, how much of what there is is made.

    Args:
        real, generated: features, [N, F] and [M, F]; as many of each if they are to be compared with other such
            figures.

    Returns:
        Both in [0, 1]; None of images that are too few to have so many neighbours.
    """
    if min(len(real), len(generated)) <= NEIGHBOURS:
        return None, None
    return _share_within(real, generated), _share_within(generated, real)


def _share_within(of: Tensor, asked: Tensor) -> float:
    """The share of some features that lie in what others stand for."""
    radii = torch.cdist(of, of).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is itself
    return (torch.cdist(asked, of) <= radii).any(dim=1).double().mean().item()


def first_of_each(columns: Sequence[Tensor], each: int) -> Tensor:
    """Returns the first so many rows of every class, but no more than can be compared pair by pair."""
    return torch.cat([rows[: min(each, COMPARED // len(columns))] for rows in columns])
