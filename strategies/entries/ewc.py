"""Elastic weight consolidation."""

from __future__ import annotations

from engrams.strategies.choices import Fisher
from engrams.strategies.contract import Fraction, Lambda, LogUniform, PenaltyHyperparameters, Positive, Strategy
from engrams.strategies.entries import Later

ewc = Later("engrams.strategies.ewc")

EWC_LAMBDAS = LogUniform(1e1, 1e6)


class EWCHyperparameters(PenaltyHyperparameters):
    """What :class:`~engrams.strategies.ewc.EWCPlugin` takes, but for how tasks are consolidated."""

    ewc_lambda: Lambda
    fisher: Fisher = "exact"
    fisher_samples: Positive | None = None


class OnlineEWCHyperparameters(EWCHyperparameters):
    """The same, and the decay of the running sum."""

    gamma: Fraction


ENTRIES = {
    "ewc-separate": Strategy(
        plugin=lambda h: ewc.EWCPlugin(
            h.ewc_lambda, "separate", h.fisher, h.fisher_samples, penalty_step=h.penalty_step
        ),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
    "ewc": Strategy(
        plugin=lambda h: ewc.EWCPlugin(
            h.ewc_lambda, "corrected", h.fisher, h.fisher_samples, penalty_step=h.penalty_step
        ),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
    "ewc-online": Strategy(
        plugin=lambda h: ewc.EWCPlugin(
            h.ewc_lambda, "online", h.fisher, h.fisher_samples, h.gamma, penalty_step=h.penalty_step
        ),
        hyperparameters=OnlineEWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
}
