"""Does a generator give away what it was trained on? Its images beside training images and unseen ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engrams.benchmarks.data.streams import black_and_white, brightness, prepared
from engrams.benchmarks.judging.pictures import drawn
from engrams.benchmarks.judging.quality import features_of
from engrams.benchmarks.judging.real_classifier import RealClassifier
from engrams.benchmarks.protocols.protocol import Protocol
from engrams.reports.figures import sheet_figure
from engrams.reports.privacy import Nearness, Privacy

OF_A_CLASS = 300
"""At most so many generated and so many test images of a class are looked at; of training images all are."""
FEWEST = 10
"""Generated images that a class must have to be a cell of the test."""
RESAMPLES = 200
SEED = 0
"""Of the interval."""
SHOWN = 20

Distances = NDArray[np.float64]


class Cell(NamedTuple):
    """A class in one space: distances of each of its images to the nearest one of another set."""

    generated_to_training: Distances
    generated_to_test: Distances
    test_to_training: Distances


class Nearest(NamedTuple):
    """The generated images that are nearest to a training image, the nearest first, and what is nearest to each."""

    generated: Tensor
    training: Tensor
    test: Tensor


Images = dict[int, Tensor]
"""Class -> images as the stream has them, [n, *shape]."""


def by_class(x: Tensor, labels: Tensor, classes: Iterable[int]) -> Images:
    """Returns the images of some classes that there are any of."""
    found = {label: x[labels.to(x.device) == label] for label in classes}
    return {label: images for label, images in found.items() if len(images)}


def given_away(
    classifier: RealClassifier,
    generated: Images,
    training: Images,
    test: Images,
    pixels: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
) -> tuple[Privacy, Nearest] | None:
    """Measures how near generated images lie to training images, against test images.

    Args:
        classifier: whose features are the second space.
        generated, training, test: by class; a class that one of them lacks is left out.
        pixels: of black and of white, as images have them.

    Returns:
        What the record has, and the nearest pairs, in pixels; None where no class is in all three.
    """
    black, white = map(torch.as_tensor, pixels)
    device = next(classifier.network.parameters()).device
    in_pixels: list[Cell] = []
    in_features: list[Cell] = []
    pairs: list[tuple[Distances, Nearest]] = []
    for label in sorted(generated.keys() & training.keys() & test.keys()):
        made, seen, unseen = (
            images[label][:limit].to(device)
            for images, limit in ((generated, OF_A_CLASS), (training, None), (test, OF_A_CLASS))
        )
        flat = [((x - black.to(x)) / (white.to(x) - black.to(x))).flatten(1) for x in (made, seen, unseen)]
        cell, to_seen, to_unseen = _cell(*flat)
        in_pixels.append(cell)
        in_features.append(_cell(*(features_of(classifier, x) for x in (made, seen, unseen)))[0])
        pairs.append((cell.generated_to_training, Nearest(made.cpu(), seen[to_seen].cpu(), unseen[to_unseen].cpu())))
    if not in_pixels:
        return None
    nearest = np.concatenate([distances for distances, _ in pairs]).argsort(kind="stable")[:SHOWN]
    columns = (torch.cat(column)[nearest] for column in zip(*(pair for _, pair in pairs), strict=True))
    count = sum(len(cell.generated_to_training) for cell in in_pixels)
    return Privacy(images=count, pixels=nearness(in_pixels), features=nearness(in_features)), Nearest(*columns)


def _cell(generated: Tensor, training: Tensor, test: Tensor) -> tuple[Cell, Tensor, Tensor]:
    """Of one class, [n, D] each: the distances, and which training and test image is nearest to each generated one."""
    to_training, which_training = nearest_of(generated, training)
    to_test, which_test = nearest_of(generated, test)
    between, _ = nearest_of(test, training)
    return Cell(to_training, to_test, between), which_training, which_test


def nearest_of(x: Tensor, others: Tensor) -> tuple[Distances, Tensor]:
    """Returns the Euclidean distance of each row to the nearest of other rows, and which it is.

    Args:
        x, others: [N, D], [M, D].
    """
    which = torch.cat([torch.cdist(part, others).argmin(dim=1) for part in x.split(100)])
    return (x - others[which]).double().norm(dim=1).cpu().numpy(), which  # exact: cdist's are sums of products


def nearness(cells: Sequence[Cell]) -> Nearness:
    """Returns what is read off the distances of all classes."""
    to_training, to_test, between = (np.concatenate(column) for column in zip(*cells, strict=True))
    closer = [cell.generated_to_training < cell.test_to_training.min() for cell in cells]
    tested = [
        (cell.generated_to_training, cell.test_to_training)
        for cell in cells
        if len(cell.generated_to_training) >= FEWEST
    ]
    return Nearness(
        to_training=float(np.median(to_training)),
        to_test=float(np.median(to_test)),
        test_to_training=float(np.median(between)),
        closer=float(np.concatenate(closer).mean()),
        copying=data_copying(tested) if tested else None,
        copying_interval=interval(tested) if tested else None,
    )


Tested = Sequence[tuple[Distances, Distances]]
"""For every cell the distances of generated and of test images to the nearest training image."""


def data_copying(cells: Tested) -> float:
    """C_T of Meehan, Chaudhuri & Dasgupta 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models"
    (arXiv 2004.05675), section 3: the mean of Z_U over cells, weighted by the share of test images in each.

    In a cell, U counts the pairs in which the generated image is farther from the training images than the test image
    (a tie is half a pair), and Z_U = (U - n m / 2) / sqrt(n m (n + m + 1) / 12): Mann & Whitney's statistic, which is
    normal, 0 ± 1, where both are alike. Cells with few generated images are left out by the caller. In the paper they
    are clusters of training images; here they are classes.
    """
    weights = np.array([len(test) for _, test in cells], dtype=float)
    scores = [_z(generated, test) for generated, test in cells]
    return float(np.average(scores, weights=weights))


def _z(generated: Distances, test: Distances) -> float:
    m, n = len(generated), len(test)
    order = np.sort(test)
    below = np.searchsorted(order, generated, "left")
    pairs = (below + (np.searchsorted(order, generated, "right") - below) / 2).sum()
    return (pairs - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def interval(cells: Tested) -> tuple[float, float]:
    """Returns the middle 95% of C_T over resamples of the generated and of the test images of every cell (a bootstrap;
    Efron & Tibshirani 1993). The training images stay."""
    random = np.random.default_rng(SEED)
    found = [
        data_copying([(random.choice(made, len(made)), random.choice(test, len(test))) for made, test in cells])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


# --- of a run ---------------------------------------------------------------------------------------------------------

PICTURE = "nearest.png"


def given_away_by_run(
    classifier: RealClassifier,
    protocol: Protocol,
    made: tuple[Tensor, Tensor],
    classes: Sequence[int],
    title: str,
    folder: Path,
) -> Privacy | None:
    """Measures what a run's generator gives away, and draws the nearest pairs; None where no class can be compared.

    Args:
        classifier: of real images.
        protocol: of the run.
        made: generated images and their classes.
        classes: the data set's that were learned.
        title: above the picture.
        folder: the picture goes there.
    """
    data = prepared(protocol.dataset, protocol.images)
    assert isinstance(data.train_x, Tensor)
    assert isinstance(data.test_x, Tensor)
    found = given_away(
        classifier,
        by_class(*made, classes),
        by_class(data.train_x, data.train_y, classes),
        by_class(data.test_x, data.test_y, classes),
        black_and_white(protocol.images),
    )
    if not found:
        return None
    privacy, nearest = found

    def draw() -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rows = torch.stack([brightness(x, protocol.images) for x in nearest]).numpy()
        names = ["generated", "training", "test"]
        sheet_figure(rows, f"{title}: nearest to training images", "", names).savefig(folder / PICTURE)
        return folder / PICTURE

    drawn(draw)
    return privacy
