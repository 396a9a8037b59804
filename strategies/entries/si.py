"""Zenke et al. 2017, under ``si``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engrams.strategies.choices import Clamped
from engrams.strategies.contract import Lambda, LogUniform, PenaltyHyperparameters, Strategy
from engrams.strategies.entries import Later

si = Later("engrams.strategies.si")


class SIHyperparameters(PenaltyHyperparameters):
    """What :class:`~engrams.strategies.si.SIPlugin` takes."""

    c: Lambda
    xi: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    clamped: Clamped = "sum"


ENTRIES = {
    "si": Strategy(
        plugin=lambda h: si.SIPlugin(h.c, h.xi, h.clamped, penalty_step=h.penalty_step),
        hyperparameters=SIHyperparameters,
        search={"c": LogUniform(1e-1, 1e6)},
    ),
}
