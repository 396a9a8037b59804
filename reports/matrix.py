"""The accuracy matrix and what is read off it.

R[i, j] is the accuracy on experience j after training on experience i, a fraction in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

METRICS = ("ACC", "BWT", "FWT", "forgetting", "learning_accuracy")


def accuracy_row(avalanche_metrics: Mapping[str, float]) -> list[float]:
    """Returns one row of R: the accuracy on every experience, in order, from what Avalanche's ``eval`` returns.

    Args:
        avalanche_metrics: metric name -> value; ``Top1_Acc_Exp/eval_phase/.../Exp003`` are read, the rest is not.
    """
    found = {}
    for name, value in avalanche_metrics.items():
        match = re.fullmatch(r"Top1_Acc_Exp/eval_phase/.*/Exp(\d+)", name)
        if match:
            found[int(match[1])] = float(value)
    return [found[experience] for experience in sorted(found)]


def metrics(
    accuracy_matrix: Sequence[Sequence[float]], accuracy_at_initialisation: Sequence[float] | None = None
) -> dict[str, float | None]:
    """ACC, BWT, FWT (Lopez-Paz & Ranzato 2017), forgetting (Chaudhry et al. 2018) and learning accuracy.

    With T experiences and b[j] the accuracy on experience j at random initialisation:

    - ``ACC`` = mean_j R[T-1, j], in [0, 1]
    - ``BWT`` = mean_{j<T-1} (R[T-1, j] - R[j, j]), in [-1, 1]
    - ``FWT`` = mean_{j>0} (R[j-1, j] - b[j]), in [-1, 1]
    - ``forgetting`` = mean_{j<T-1} (max_{i<T-1} R[i, j] - R[T-1, j]), in [-1, 1]
    - ``learning_accuracy`` = mean_j R[j, j], in [0, 1]

    Args:
        accuracy_matrix: R, T rows of T; or the single row of a strategy trained once on the whole stream.
        accuracy_at_initialisation: b, T numbers.

    Returns:
        The five by name. None stands for what is not defined: all but ACC for a single row, FWT without b.

    Raises:
        ValueError: R is neither square nor a single row, or b has another length.
    """
    matrix = np.asarray(accuracy_matrix, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] not in (1, matrix.shape[1]):
        raise ValueError(f"an accuracy matrix is square or a single row; got shape {matrix.shape}")
    baseline = None if accuracy_at_initialisation is None else np.asarray(accuracy_at_initialisation, dtype=float)
    if baseline is not None and baseline.shape != matrix.shape[1:]:
        raise ValueError(f"accuracy_at_initialisation has {baseline.size} entries for {matrix.shape[1]} experiences")
    last = matrix[-1]
    undefined: dict[str, float | None] = dict.fromkeys(METRICS)
    result = undefined | {"ACC": float(last.mean())}
    if matrix.shape[0] == 1:
        return result
    diagonal = matrix.diagonal()
    result["BWT"] = float((last - diagonal)[:-1].mean())
    result["forgetting"] = float((matrix[:-1].max(axis=0) - last)[:-1].mean())
    result["learning_accuracy"] = float(diagonal.mean())
    if baseline is not None:
        result["FWT"] = float((matrix.diagonal(offset=1) - baseline[1:]).mean())
    return result


def undefined(
    accuracy_matrix: Sequence[Sequence[float]], accuracy_at_initialisation: Sequence[float] | None = None
) -> dict[str, str]:
    """Returns why each metric is not defined that is not; the arguments are those of :func:`metrics`."""
    if len(accuracy_matrix) == 1 and len(accuracy_matrix[0]) > 1:
        why = "the whole stream is learned at once: there is no accuracy along the way"
    elif len(accuracy_matrix) == 1:
        why = "there is one experience: nothing comes before it, and nothing after"
    else:
        why = "the accuracy before training was not measured"
    found = metrics(accuracy_matrix, accuracy_at_initialisation)
    return {name: why for name, value in found.items() if value is None}


def seen_so_far(matrix: Sequence[Sequence[float]]) -> dict[str, float]:
    """``ACC`` and, from the second experience on, ``forgetting``, over the experiences trained on so far."""
    trained = len(matrix)
    square = [row[:trained] for row in matrix]
    values = metrics(square)
    return {name: value for name in ("ACC", "forgetting") if (value := values[name]) is not None}
