"""What is read off a generator's record: how images of each class fare over the stream, how even the classes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ByClass = list[list[float | None]]
"""[experiences, classes]; None where a class was not learned yet."""


class OverTheStream(NamedTuple):
    """Zhang et al. 2024, "CLoG: Benchmarking Continual Learning of Image Generation Models" (arXiv 2406.04584).

    It names three figures of a matrix Q[i, j], the quality (here a Frechet distance, of which less is better) of what
    belongs to task j after learning task i: the average final quality, the average incremental quality and the
    forgetting rate. Of the paper the abstract and the public code (linhaowei1/CLoG) were read, which do not spell them
    out; what is here are the averages that the names have for accuracies. One class is one task: with several classes
    an experience, each counts.
    """

    final: float
    """AFQ = mean_j Q[T-1, j], over all classes."""
    incremental: float
    """AIQ = mean_i (mean_j Q[i, j]), the inner mean over the classes learned by experience i."""
    forgetting: float | None
    """FR = mean_j (Q[T-1, j] - Q[t_j, j]), over the classes learned before the last experience, class j in experience
    t_j: above 0, of distances, where it was forgotten. None where there are none."""


def over_the_stream(by_class: ByClass) -> OverTheStream:
    """Returns the three figures of a matrix.

    Args:
        by_class: at least one row, with at least one class in it; a class that was learned stays.
    """
    matrix = np.array(by_class, dtype=float)  # None becomes NaN
    final = matrix[-1]
    learned_in = np.argmax(~np.isnan(matrix), axis=0)
    earlier = ~np.isnan(final) & (learned_in < len(matrix) - 1)
    lost = final - matrix[learned_in, np.arange(matrix.shape[1])]
    return OverTheStream(
        final=float(np.nanmean(final)),
        incremental=float(np.nanmean(matrix, axis=1).mean()),
        forgetting=float(lost[earlier].mean()) if earlier.any() else None,
    )


class Unevenness(NamedTuple):
    """How far the shares of the classes among a generator's images are from uniform."""

    divergence: float
    """KL(p || u) = sum_c p_c log(p_c k), in nats, 0 to log k: of the shares of the k classes, brought to a sum of 1,
    from the uniform distribution over them; Metz et al. 2017, "Unrolled Generative Adversarial Networks" (arXiv
    1611.02163), section 3.3.1, measure a generator's modes so, by a classifier's answers."""
    distance: float
    """Half the L1 distance, sum_c |p_c - u_c| / 2, in [0, 1]: the total variation distance, the share of images that
    would have to show another class. Images taken for other classes than the k count in it."""


def unevenness(shares: Sequence[float], classes: Sequence[int] | None = None) -> Unevenness:
    """Returns how uneven shares are.

    Args:
        shares: of each class of the data set; they sum to 1.
        classes: those that should be there in equal shares; None for all.
    """
    every = np.array(shares)
    wanted = np.zeros(len(every))
    wanted[list(range(len(every)) if classes is None else classes)] = 1
    wanted /= wanted.sum()
    chosen = every[wanted > 0]
    chosen = chosen / chosen.sum() if chosen.sum() else np.zeros_like(chosen)
    found = chosen[chosen > 0]
    return Unevenness(
        divergence=float((found * np.log(found * len(chosen))).sum()) if len(found) else float(np.log(len(chosen))),
        distance=float(np.abs(every - wanted).sum() / 2),
    )
