"""The statistics of all tables and figures: means over seeds, their intervals, and one test.

From ``scipy.special``: reading ``scipy.stats`` takes longer than a table does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95% confidence interval (Student's t); None for a single seed."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        sample = np.asarray(values, dtype=float)
        if len(sample) < 2:
            return cls(float(sample.mean()), None)
        return cls(float(sample.mean()), quantile(len(sample) - 1) * standard_error(sample))

    def percent(self) -> str:
        interval = "" if self.half_width is None else f" ± {100 * self.half_width:.2f}"
        return f"{100 * self.mean:.2f}{interval}"


def quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Returns how many standard errors an interval reaches to either side, with so many degrees of freedom."""
    return float(special.stdtrit(freedom, (1 + confidence) / 2))


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Returns the standard error of the mean of two values or more."""
    sample = np.asarray(values, dtype=float)
    return float(sample.std(ddof=1) / np.sqrt(len(sample)))


def p_value(differences: Sequence[float] | np.ndarray) -> float | None:
    """Returns p of a two-sided paired t-test that the mean difference is zero.

    Args:
        differences: one a seed.

    Returns:
        p in [0, 1]; None where there is no test: fewer than two seeds, or every seed says the same.
    """
    sample = np.asarray(differences, dtype=float)
    if len(sample) < 2 or np.ptp(sample) == 0:
        return None
    t = sample.mean() / standard_error(sample)
    return float(2 * special.stdtr(len(sample) - 1, -abs(t)))
