"""What a network can do at any time while it learns, not only after each experience.

De Lange, van de Ven & Tuytelaars 2023, "Continual evaluation for lifelong learning: identifying the stability gap",
ICLR, arXiv:2205.13452, section 3; AAA also in Caccia et al. 2022, arXiv:2104.05025.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

MEASURES = ("AAA", "min_ACC", "WC_ACC", "stability_gap")


class Anytime(BaseModel):
    """Accuracies at moments along the stream; fractions in [0, 1].

    At moment m, after ``steps[m]`` steps of the optimiser, while experience ``experience[m]`` is learned,
    ``accuracy[m][i]`` is the accuracy on experience i, for all that have been met. The last moment of every experience
    is its end. ``samples``: test samples of each experience that it was measured on; None for all.
    """

    model_config = ConfigDict(extra="forbid")

    every: int
    samples: int | None = None
    steps: list[int]
    experience: list[int]
    accuracy: list[list[float]]
    measures: dict[str, float | None]


class Prequential(BaseModel):
    """Test, then train: every sample is predicted, in eval mode, before it is learned from for the first time.

    ``accuracy`` is that of all samples of the stream, ``windows`` that of each ``window`` of them one after another.
    """

    model_config = ConfigDict(extra="forbid")

    accuracy: float
    window: int
    windows: list[float]


def measures(experience: Sequence[int], accuracy: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Returns AAA, min-ACC, WC-ACC and the stability gap of a curve.

    With T experiences, A_i(m) the accuracy on experience i at moment m:

    - ``AAA``, average anytime accuracy: the mean over moments of the mean over the experiences met of A_i(m), in [0, 1]
    - ``min_ACC`` = mean_{i<T-1} min_m A_i(m), over the moments after experience i has been learned, in [0, 1]
    - ``WC_ACC`` = A_{T-1}(end) / T + (1 - 1/T) min_ACC, the worst case, in [0, 1]
    - ``stability_gap``: what is lost for a while and comes back. For every experience k and every i < k before it, A_i
      at the end of k less the lowest A_i while k is learned; their mean, in [0, 1]. (The paper names and shows the gap,
      and gives no number for it; this one is ours.)

    Args:
        experience: being learned at each moment, not falling; its last moment is its end.
        accuracy: at each moment, on each experience up to that one.

    Returns:
        The four by name; of a single experience only AAA is defined, the others are None.

    Raises:
        ValueError: there is no moment, or one has not as many accuracies as experiences have been met.
    """
    if not accuracy or [len(now) for now in accuracy] != [index + 1 for index in experience]:
        raise ValueError("at each moment there is one accuracy for each experience met")
    found: dict[str, float | None] = dict.fromkeys(MEASURES)
    found["AAA"] = float(np.mean([np.mean(now) for now in accuracy]))
    last = experience[-1]
    if last == 0:
        return found
    after = [[now[i] for index, now in zip(experience, accuracy, strict=True) if index > i] for i in range(last)]
    lowest = float(np.mean([min(values) for values in after]))
    found["min_ACC"] = lowest
    found["WC_ACC"] = accuracy[-1][last] / (last + 1) + (1 - 1 / (last + 1)) * lowest
    during = [[now for index, now in zip(experience, accuracy, strict=True) if index == k] for k in range(last + 1)]
    found["stability_gap"] = float(
        np.mean([during[k][-1][i] - min(now[i] for now in during[k]) for k in range(1, last + 1) for i in range(k)])
    )
    return found
