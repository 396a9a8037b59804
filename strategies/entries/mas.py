"""Memory aware synapses."""

from __future__ import annotations

from engrams.strategies.choices import MASVariant
from engrams.strategies.contract import Lambda, LogUniform, PenaltyHyperparameters, Strategy
from engrams.strategies.entries import Later

mas = Later("engrams.strategies.mas")


class MASLocalHyperparameters(PenaltyHyperparameters):
    """What the local form of :class:`~engrams.strategies.mas.MASPlugin` takes."""

    mas_lambda: Lambda


class MASHyperparameters(MASLocalHyperparameters):
    """What :class:`~engrams.strategies.mas.MASPlugin` takes, but for the data that importance is measured on."""

    variant: MASVariant = "global"


ENTRIES = {
    "mas": Strategy(
        plugin=lambda h: mas.MASPlugin(h.mas_lambda, h.variant, penalty_step=h.penalty_step),
        hyperparameters=MASHyperparameters,
        search={"mas_lambda": LogUniform(1e-4, 1e5)},
    ),
    "mas-local": Strategy(
        plugin=lambda h: mas.MASPlugin(h.mas_lambda, "local", penalty_step=h.penalty_step),
        hyperparameters=MASLocalHyperparameters,
        search={"mas_lambda": LogUniform(1e-5, 1e4)},
    ),
}
