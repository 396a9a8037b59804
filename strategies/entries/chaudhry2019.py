"""Lists EWC and MAS of Chaudhry et al. 2019's public code."""

from __future__ import annotations

from engrams.strategies.contract import Hyperparameters, Lambda, LogUniform, Positive, Strategy
from engrams.strategies.entries import Later

chaudhry2019 = Later("engrams.strategies.chaudhry2019")


class ChaudhryEWCHyperparameters(Hyperparameters):
    """What :class:`~engrams.strategies.chaudhry2019.ChaudhryEWCPlugin` takes."""

    ewc_lambda: Lambda
    every: Positive = 50


class ChaudhryMASHyperparameters(Hyperparameters):
    """What :class:`~engrams.strategies.chaudhry2019.ChaudhryMASPlugin` takes."""

    mas_lambda: Lambda


ENTRIES = {
    "chaudhry2019-ewc": Strategy(
        plugin=lambda h: chaudhry2019.ChaudhryEWCPlugin(h.ewc_lambda, h.every),
        hyperparameters=ChaudhryEWCHyperparameters,
        search={"ewc_lambda": LogUniform(1e-1, 1e4)},
    ),
    "chaudhry2019-mas": Strategy(
        plugin=lambda h: chaudhry2019.ChaudhryMASPlugin(h.mas_lambda),
        hyperparameters=ChaudhryMASHyperparameters,
        search={"mas_lambda": LogUniform(1e-4, 1e5)},
    ),
}
