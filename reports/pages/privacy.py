"""What replay gives away: how near generated images lie to those that the generator was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engrams.reports.estimates import Estimate
from engrams.reports.pages.comparison import by_protocol, complete_by_row
from engrams.reports.privacy import Nearness, Privacy
from engrams.reports.render import Sheet
from engrams.reports.store import Record

LEGEND = (
    "At the end of the stream, means over seeds, in pixels (black 0, white 1) and in the features of a classifier of "
    "real images. 'C_T': the data-copying test of Meehan et al. 2020: far below 0 where images are copies of training "
    "images, near 0 where they are as new real ones would be (with ten classes of which nothing is copied, within "
    "0.6), far above 0 where they are unlike any; ± is the 95% confidence interval over seeds, brackets are a single "
    "run's own. 'closer': the share of images that are closer to a training image than any test image of the class "
    "is. 'train', 'test': the median distance to the nearest training and test image; of training images there are "
    "more, so compare with 'new': from test images to the nearest training image."
)
SPACES = ("pixels", "features")


@dataclass(frozen=True)
class GivenAway:
    """One strategy under one protocol."""

    protocol: str
    strategy: str
    runs: list[Privacy]

    def of(self, space: str) -> list[Nearness]:
        """Returns what every run has in a space."""
        return [getattr(run, space) for run in self.runs]


def compare(records: Iterable[Record]) -> list[GivenAway]:
    """Returns the complete records whose generators were measured, the least copied first."""
    rows = []
    for (protocol, strategy), group in complete_by_row(records).items():
        if runs := [one.generated.privacy for one in group if one.generated and one.generated.privacy]:
            rows.append(GivenAway(protocol, strategy, runs))
    return sorted(rows, key=lambda row: (row.protocol, -_mean([one.copying or 0.0 for one in row.of("pixels")])))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _copying(runs: list[Nearness]) -> str:
    tested = [one for one in runs if one.copying is not None]
    if not tested:
        return "-"
    if len(tested) == 1 and tested[0].copying_interval:
        low, high = tested[0].copying_interval
        return f"{tested[0].copying:.1f} [{low:.1f}, {high:.1f}]"
    found = Estimate.of([one.copying for one in tested if one.copying is not None])
    return f"{found.mean:.1f} ± {found.half_width:.1f}"


def _cells(row: GivenAway) -> dict[str, str]:
    cells = {"strategy": row.strategy}
    for space in SPACES:
        cells[f"C_T, {space}"] = _copying(row.of(space))
    for space in SPACES:
        cells[f"closer, {space}"] = f"{100 * _mean(one.closer for one in row.of(space)):.1f}"
    for space in SPACES:
        cells[f"train, {space}"] = f"{_mean(one.to_training for one in row.of(space)):.2f}"
        cells[f"test, {space}"] = f"{_mean(one.to_test for one in row.of(space)):.2f}"
        cells[f"new, {space}"] = f"{_mean(one.test_to_training for one in row.of(space)):.2f}"
    return cells | {"seeds": str(len(row.runs))}


def sheets(rows: Iterable[GivenAway]) -> list[Sheet]:
    """Returns one table a protocol; none if no generator was measured."""
    distances = [f"{what}, {space}" for space in reversed(SPACES) for what in ("test", "new", "train")]
    return [
        Sheet(f"{protocol}: what replay gives away", [_cells(row) for row in group], spare=("seeds", *distances))
        for protocol, group in by_protocol(rows).items()
    ]
