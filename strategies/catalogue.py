"""Every strategy by name: what it is, its hyperparameters and their ranges, what to search, how to build it.

The public names are the keys of :data:`CATALOGUE`. A method's own file holds the method; this one only lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from avalanche.training import (
    AGEM,
    EWC,
    GEM,
    MAS,
    Cumulative,
    GDumb,
    JointTraining,
    LwF,
    Naive,
    Replay,
)
from avalanche.training.templates import SupervisedTemplate
from pydantic import BaseModel, ConfigDict, Field

from strategies.avalanche_faults import WorkingSynapticIntelligencePlugin
from strategies.baselines import FrozenBackbonePlugin, L2Plugin, ReplayPlugin
from strategies.ewc import EWCPlugin
from strategies.importance import Fisher, MASVariant
from strategies.mas import MASPlugin

Lambda = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


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
    fisher_samples: Positive | None = None


class OnlineEWCHyperparameters(EWCHyperparameters):
    gamma: Fraction


class AvalancheEWCHyperparameters(Hyperparameters):
    ewc_lambda: Lambda


class AvalancheOnlineEWCHyperparameters(AvalancheEWCHyperparameters):
    decay_factor: Fraction


class MASLocalHyperparameters(Hyperparameters):
    mas_lambda: Lambda


class MASHyperparameters(MASLocalHyperparameters):
    variant: MASVariant = "global"


class ReplayHyperparameters(Hyperparameters):
    mem_size: Positive


class GDumbHyperparameters(ReplayHyperparameters):
    epochs: Positive
    """It learns the buffer from scratch after every experience, so the protocol's epochs are not for it."""


class AvalancheMASHyperparameters(Hyperparameters):
    lambda_reg: Lambda
    alpha: Fraction = 0.5


class AvalancheSIHyperparameters(Hyperparameters):
    si_lambda: Lambda
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AvalancheLwFHyperparameters(Hyperparameters):
    alpha: Lambda
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AvalancheGEMHyperparameters(Hyperparameters):
    patterns_per_exp: Positive
    memory_strength: Lambda


class AvalancheAGEMHyperparameters(Hyperparameters):
    patterns_per_exp: Positive
    sample_size: Positive


class LogUniform(NamedTuple):
    """What a search may choose from: any number between two, evenly spread on a logarithmic scale."""

    low: float
    high: float


@dataclass(frozen=True)
class Strategy:
    """One row of a comparison table.

    ``build`` takes the hyperparameters and the arguments of an Avalanche template (model, optimizer, criterion,
    train_mb_size, train_epochs, eval_mb_size, device, plugins, evaluator) and returns the Avalanche strategy.
    """

    summary: str
    build: Callable[[Any, dict[str, Any]], SupervisedTemplate]
    hyperparameters: type[Hyperparameters] = NoHyperparameters
    search: Mapping[str, LogUniform] = field(default_factory=dict)
    """Hyperparameter -> the range in which one is chosen on the validation stream."""
    counterpart: str = ""
    """Avalanche's strategy of the same method, to compare with."""
    upper_bound: bool = False
    """It sees data that a continual learner would no longer have; tables keep it apart."""
    whole_stream_at_once: bool = False
    """It is trained once, on all experiences together."""


def _plugged(plugin: Callable[[Any], Any]) -> Callable[[Any, dict[str, Any]], SupervisedTemplate]:
    """Plain training (Avalanche's Naive) with one more plugin, made from the hyperparameters."""

    def build(hyperparameters, template):
        return Naive(**template | {"plugins": [*template["plugins"], plugin(hyperparameters)]})

    return build


EWC_LAMBDAS = LogUniform(1e1, 1e6)
# Avalanche's penalty has no 1/2, and the squared gradient of a mean over B samples is about B times smaller than the
# mean of squared gradients.
AVALANCHE_EWC_LAMBDAS = LogUniform(1e2, 1e7)

CATALOGUE: dict[str, Strategy] = {
    "naive": Strategy(
        summary="fine-tuning: train on each experience in turn, do nothing about forgetting",
        build=lambda _, template: SupervisedTemplate(**template),
        counterpart="avalanche-naive",
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
        search={"l2_lambda": LogUniform(1e-3, 1e3)},
    ),
    "ewc-separate": Strategy(
        summary="EWC, one penalty an experience (Kirkpatrick et al. 2017)",
        build=_plugged(lambda h: EWCPlugin(h.ewc_lambda, "separate", h.fisher, h.fisher_samples)),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
        counterpart="avalanche-ewc",
    ),
    "ewc": Strategy(
        summary="EWC, Huszár's multi-task correction: one penalty, the sum of all Fishers (2017)",
        build=_plugged(lambda h: EWCPlugin(h.ewc_lambda, "corrected", h.fisher, h.fisher_samples)),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
    "ewc-online": Strategy(
        summary="EWC with a decaying sum of Fishers (Schwarz et al. 2018)",
        build=_plugged(lambda h: EWCPlugin(h.ewc_lambda, "online", h.fisher, h.fisher_samples, h.gamma)),
        hyperparameters=OnlineEWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
        counterpart="avalanche-ewc-online",
    ),
    "mas": Strategy(
        summary="memory aware synapses: importance to the outputs, without labels (Aljundi et al. 2018)",
        build=_plugged(lambda h: MASPlugin(h.mas_lambda, h.variant)),
        hyperparameters=MASHyperparameters,
        search={"mas_lambda": LogUniform(1e-4, 1e5)},
        counterpart="avalanche-mas",
    ),
    "mas-local": Strategy(
        summary="MAS, its local (Hebbian) form: products of activations, layer by layer",
        build=_plugged(lambda h: MASPlugin(h.mas_lambda, "local")),
        hyperparameters=MASLocalHyperparameters,
        search={"mas_lambda": LogUniform(1e-5, 1e4)},
    ),
    "replay": Strategy(
        summary="rehearsal of a small buffer, as many old samples as new ones in every step",
        # First of all plugins: what is done to a minibatch (flips) is done to the old samples too.
        build=lambda h, template: Naive(**template | {"plugins": [ReplayPlugin(h.mem_size), *template["plugins"]]}),
        hyperparameters=ReplayHyperparameters,
        counterpart="avalanche-replay",
    ),
    "avalanche-naive": Strategy(
        summary="Avalanche's Naive",
        build=lambda _, template: Naive(**template),
    ),
    "avalanche-ewc": Strategy(
        summary="Avalanche's EWC, mode 'separate'",
        build=lambda h, template: EWC(ewc_lambda=h.ewc_lambda, mode="separate", **template),
        hyperparameters=AvalancheEWCHyperparameters,
        search={"ewc_lambda": AVALANCHE_EWC_LAMBDAS},
    ),
    "avalanche-ewc-online": Strategy(
        summary="Avalanche's EWC, mode 'online'",
        build=lambda h, template: EWC(ewc_lambda=h.ewc_lambda, mode="online", decay_factor=h.decay_factor, **template),
        hyperparameters=AvalancheOnlineEWCHyperparameters,
        search={"ewc_lambda": AVALANCHE_EWC_LAMBDAS},
    ),
    "avalanche-mas": Strategy(
        summary="Avalanche's MAS: gradients of mini-batch means, importances averaged with those before",
        build=lambda h, template: MAS(lambda_reg=h.lambda_reg, alpha=h.alpha, **template),
        hyperparameters=AvalancheMASHyperparameters,
        search={"lambda_reg": LogUniform(1e-3, 1e6)},
    ),
    "avalanche-si": Strategy(
        summary="Avalanche's synaptic intelligence (Zenke et al. 2017), mended where it has no effect on a CPU",
        build=_plugged(lambda h: WorkingSynapticIntelligencePlugin(h.si_lambda, h.eps)),
        hyperparameters=AvalancheSIHyperparameters,
        search={"si_lambda": LogUniform(1.0, 1e6)},
    ),
    "avalanche-lwf": Strategy(
        summary="Avalanche's learning without forgetting (Li & Hoiem 2016)",
        build=lambda h, template: LwF(alpha=h.alpha, temperature=h.temperature, **template),
        hyperparameters=AvalancheLwFHyperparameters,
        search={"alpha": LogUniform(1e-2, 1e2)},
    ),
    "avalanche-gem": Strategy(
        summary="Avalanche's gradient episodic memory (Lopez-Paz & Ranzato 2017)",
        build=lambda h, template: GEM(
            patterns_per_exp=h.patterns_per_exp, memory_strength=h.memory_strength, **template
        ),
        hyperparameters=AvalancheGEMHyperparameters,
    ),
    "avalanche-agem": Strategy(
        summary="Avalanche's averaged GEM (Chaudhry et al. 2019)",
        build=lambda h, template: AGEM(patterns_per_exp=h.patterns_per_exp, sample_size=h.sample_size, **template),
        hyperparameters=AvalancheAGEMHyperparameters,
    ),
    "avalanche-replay": Strategy(
        summary="Avalanche's replay of a small buffer",
        build=lambda h, template: Replay(mem_size=h.mem_size, **template),
        hyperparameters=ReplayHyperparameters,
    ),
    "avalanche-replay-large": Strategy(
        summary="the same with a larger buffer",
        build=lambda h, template: Replay(mem_size=h.mem_size, **template),
        hyperparameters=ReplayHyperparameters,
    ),
    "avalanche-gdumb": Strategy(
        summary="Avalanche's GDumb: learn a balanced buffer from scratch (Prabhu et al. 2020)",
        build=lambda h, template: GDumb(mem_size=h.mem_size, **template | {"train_epochs": h.epochs}),
        hyperparameters=GDumbHyperparameters,
    ),
}
