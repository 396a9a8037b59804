"""Every strategy by name: what it is, its hyperparameters and their ranges, what to search, how to build it.

The public names are the keys of :data:`CATALOGUE`. A method's own file holds the method; this one only lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from avalanche.training import EWC, Cumulative, JointTraining, Naive
from avalanche.training.templates import SupervisedTemplate
from pydantic import BaseModel, ConfigDict, Field

from strategies.baselines import FrozenBackbonePlugin, L2Plugin
from strategies.ewc import EWCPlugin
from strategies.importance import Fisher

Lambda = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Hyperparameters(BaseModel):
    """A strategy's own hyperparameters; a field without a default must come from the protocol."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NoHyperparameters(Hyperparameters):
    pass


class L2Hyperparameters(Hyperparameters):
    l2_lambda: Lambda


class EWCHyperparameters(Hyperparameters):
    ewc_lambda: Lambda
    fisher: Fisher = "exact"
    fisher_samples: Annotated[int, Field(ge=1)] | None = None


class OnlineEWCHyperparameters(EWCHyperparameters):
    gamma: Annotated[float, Field(ge=0, le=1)]


class AvalancheEWCHyperparameters(Hyperparameters):
    ewc_lambda: Lambda


class AvalancheOnlineEWCHyperparameters(AvalancheEWCHyperparameters):
    decay_factor: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Strategy:
    """One row of a comparison table.

    ``build`` takes the hyperparameters and the arguments of an Avalanche template (model, optimizer, criterion,
    train_mb_size, train_epochs, eval_mb_size, device, plugins, evaluator) and returns the Avalanche strategy.
    """

    summary: str
    build: Callable[[Any, dict[str, Any]], SupervisedTemplate]
    hyperparameters: type[Hyperparameters] = NoHyperparameters
    search: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Hyperparameter -> the values tried on the validation stream."""
    upper_bound: bool = False
    """It sees data that a continual learner would no longer have; tables keep it apart."""
    whole_stream_at_once: bool = False
    """It is trained once, on all experiences together."""


def _plugged(plugin: Callable[[Any], Any]) -> Callable[[Any, dict[str, Any]], SupervisedTemplate]:
    """Plain training (Avalanche's Naive) with one more plugin, made from the hyperparameters."""

    def build(hyperparameters, template):
        return Naive(**template | {"plugins": [*template["plugins"], plugin(hyperparameters)]})

    return build


LAMBDAS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
# Avalanche's penalty has no 1/2, and the squared gradient of a mean over B samples is about B times smaller than the
# mean of squared gradients.
AVALANCHE_LAMBDAS = (1e2, 3e2, 1e3, 3e3, 1e4, 1e5, 1e6)

CATALOGUE: dict[str, Strategy] = {
    "naive": Strategy(
        summary="fine-tuning: train on each experience in turn, do nothing about forgetting",
        build=lambda _, template: SupervisedTemplate(**template),
    ),
    "joint": Strategy(
        summary="all experiences at once (offline): the upper bound",
        build=lambda _, template: JointTraining(**template),
        upper_bound=True,
        whole_stream_at_once=True,
    ),
    "cumulative": Strategy(
        summary="each experience together with all before it: an upper bound that sees the stream",
        build=lambda _, template: Cumulative(**template),
        upper_bound=True,
    ),
    "frozen": Strategy(
        summary="only the classifier learns after the first experience",
        build=_plugged(lambda _: FrozenBackbonePlugin()),
    ),
    "l2": Strategy(
        summary="quadratic penalty around the latest optimum, all importances 1",
        build=_plugged(lambda h: L2Plugin(h.l2_lambda)),
        hyperparameters=L2Hyperparameters,
        search={"l2_lambda": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)},
    ),
    "ewc-separate": Strategy(
        summary="EWC, one penalty an experience (Kirkpatrick et al. 2017)",
        build=_plugged(lambda h: EWCPlugin(h.ewc_lambda, "separate", h.fisher, h.fisher_samples)),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": LAMBDAS},
    ),
    "ewc": Strategy(
        summary="EWC, Huszár's multi-task correction: one penalty, the sum of all Fishers (2017)",
        build=_plugged(lambda h: EWCPlugin(h.ewc_lambda, "corrected", h.fisher, h.fisher_samples)),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": LAMBDAS},
    ),
    "ewc-online": Strategy(
        summary="EWC with a decaying sum of Fishers (Schwarz et al. 2018)",
        build=_plugged(lambda h: EWCPlugin(h.ewc_lambda, "online", h.fisher, h.fisher_samples, h.gamma)),
        hyperparameters=OnlineEWCHyperparameters,
        search={"ewc_lambda": LAMBDAS},
    ),
    "avalanche-naive": Strategy(
        summary="Avalanche's Naive",
        build=lambda _, template: Naive(**template),
    ),
    "avalanche-ewc": Strategy(
        summary="Avalanche's EWC, mode 'separate'",
        build=lambda h, template: EWC(ewc_lambda=h.ewc_lambda, mode="separate", **template),
        hyperparameters=AvalancheEWCHyperparameters,
        search={"ewc_lambda": AVALANCHE_LAMBDAS},
    ),
    "avalanche-ewc-online": Strategy(
        summary="Avalanche's EWC, mode 'online'",
        build=lambda h, template: EWC(ewc_lambda=h.ewc_lambda, mode="online", decay_factor=h.decay_factor, **template),
        hyperparameters=AvalancheOnlineEWCHyperparameters,
        search={"ewc_lambda": AVALANCHE_LAMBDAS},
    ),
}
