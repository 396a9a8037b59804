"""The baselines."""

from __future__ import annotations

from engrams.strategies.contract import (
    Hyperparameters,
    Lambda,
    LogUniform,
    PenaltyHyperparameters,
    Positive,
    Strategy,
)
from engrams.strategies.entries import Later

baselines = Later("engrams.strategies.baselines")
avalanche = Later("avalanche.training")
templates = Later("avalanche.training.templates")


class L2Hyperparameters(PenaltyHyperparameters):
    """What :class:`~engrams.strategies.baselines.L2Plugin` takes."""

    l2_lambda: Lambda


class ReplayHyperparameters(Hyperparameters):
    """What :class:`~engrams.strategies.baselines.ReplayPlugin` takes."""

    mem_size: Positive


ENTRIES = {
    "naive": Strategy(build=lambda _, template: templates.SupervisedTemplate(**template)),
    "joint": Strategy(build=lambda _, template: avalanche.JointTraining(**template), whole_stream_at_once=True),
    "cumulative": Strategy(build=lambda _, template: avalanche.Cumulative(**template)),
    "frozen": Strategy(plugin=lambda _: baselines.FrozenBackbonePlugin()),
    "l2": Strategy(
        plugin=lambda h: baselines.L2Plugin(h.l2_lambda, penalty_step=h.penalty_step),
        hyperparameters=L2Hyperparameters,
        search={"l2_lambda": LogUniform(1e-3, 1e3)},
    ),
    "replay": Strategy(
        plugin=lambda h: baselines.ReplayPlugin(h.mem_size),
        first_of_plugins=True,
        hyperparameters=ReplayHyperparameters,
    ),
}
