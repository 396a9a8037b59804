"""Gradual boundaries between the experiences of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from avalanche.benchmarks.utils import AvalancheDataset

from engrams.benchmarks.protocols.schema import Stream

Data = TypeVar("Data", bound=AvalancheDataset)


def with_boundaries(experiences: Sequence[Data], stream: Stream, seed: int) -> Sequence[Data]:
    """Exchanges samples between neighbouring experiences, where the stream's boundaries are gradual.

    Args:
        experiences: with sharp boundaries.
        stream: ``sharp``, or ``gradual`` and how wide.
        seed: of the order of the samples, and of what is exchanged.

    Returns:
        The training data of every experience.
    """
    if stream.width is None:
        return experiences
    return _exchanged(experiences, stream.width, torch.Generator().manual_seed(seed))


def _exchanged(experiences: Sequence[Data], width: float, generator: torch.Generator) -> list[Data]:
    """Shuffles every experience, and exchanges samples across each boundary, as many in one direction as in the other.

    The sample at distance d before a boundary, 0 at the boundary and 1 where the transition begins, changes places with
    the one at distance d behind it with probability (1 - d) / 2. So the share of the next experience's samples rises
    from 0 over 1/2 at the boundary to 1, evenly. Of two experiences of unequal size, the smaller one says how many
    samples are in reach.
    """
    # Experience -> for every place the (experience, index) of the sample that stands there.
    standing = [
        [(number, index) for index in torch.randperm(len(data), generator=generator).tolist()]
        for number, data in enumerate(experiences)
    ]
    for before, behind in pairwise(standing):
        smaller = min(len(before), len(behind))
        reach = min(round(width / 2 * smaller), smaller // 2)  # a middle sample is in reach of one boundary alone
        distance = (torch.arange(reach) + 0.5) / max(1, reach)
        exchanged = torch.rand(reach, generator=generator) < (1 - distance) / 2
        for place in exchanged.nonzero().flatten().tolist():
            before[-1 - place], behind[place] = behind[place], before[-1 - place]
    return [_taken(experiences, samples) for samples in standing]


def _taken(experiences: Sequence[Data], samples: Sequence[tuple[int, int]]) -> Data:
    """Returns samples of several data sets as one, in the order in which they are named."""
    origins = sorted({number for number, _ in samples})
    parts = [experiences[number].subset([index for origin, index in samples if origin == number]) for number in origins]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.concat(part)
    grouped = [place for number in origins for place, (origin, _) in enumerate(samples) if origin == number]
    return joined.subset(torch.tensor(grouped).argsort().tolist())
