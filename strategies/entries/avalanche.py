"""Avalanche's own strategies, under ``avalanche-*``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from engrams.strategies.contract import (
    Budget,
    Fraction,
    Hyperparameters,
    Lambda,
    LearningRate,
    LogUniform,
    Positive,
    Sizes,
    Strategy,
)
from engrams.strategies.entries import Later

models = Later("avalanche.models")
training = Later("avalanche.training")
faults = Later("engrams.strategies.avalanche.faults")
generative_replay = Later("engrams.strategies.avalanche.generative_replay")
streaming_lda = Later("engrams.strategies.avalanche.streaming_lda")

# Avalanche's penalty has no 1/2, and the squared gradient of a mean over B samples is about B times smaller than the
# mean of squared gradients.
EWC_LAMBDAS = LogUniform(1e2, 1e7)


class EWCHyperparameters(Hyperparameters):
    ewc_lambda: Lambda


class OnlineEWCHyperparameters(EWCHyperparameters):
    decay_factor: Fraction


class MASHyperparameters(Hyperparameters):
    lambda_reg: Lambda
    alpha: Fraction = 0.5


class SIHyperparameters(Hyperparameters):
    later = frozenset({"clip_to", "negatives"})
    si_lambda: Lambda
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    clip_to: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    """The largest importance: Avalanche cuts them there, which the paper does not. 1e9 cuts none."""
    negatives: bool = True
    """Importances below 0 are kept, as Avalanche has it."""


class RWalkHyperparameters(Hyperparameters):
    ewc_lambda: Lambda
    ewc_alpha: Fraction = 0.9
    """Of the latest minibatch's squared gradients in their moving average."""
    delta_t: Positive = 10
    """Steps after which the path is scored."""


class LwFHyperparameters(Hyperparameters):
    alpha: Lambda
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GEMHyperparameters(Hyperparameters):
    patterns_per_exp: Positive
    memory_strength: Lambda


class AGEMHyperparameters(Hyperparameters):
    patterns_per_exp: Positive
    sample_size: Positive


class ReplayHyperparameters(Hyperparameters):
    mem_size: Positive


class DrawnReplayHyperparameters(ReplayHyperparameters):
    batch_size_mem: Positive
    """Samples drawn from the memory for every minibatch."""

    @model_validator(mode="after")
    def _memory_is_replayed(self) -> Self:
        if self.mem_size < self.batch_size_mem:
            raise ValueError(
                f"mem_size {self.mem_size} is below batch_size_mem {self.batch_size_mem}: of a memory that has fewer "
                f"samples than are drawn, Avalanche replays none"
            )
        return self


class DERHyperparameters(DrawnReplayHyperparameters):
    alpha: Lambda
    """Of the distance from the outputs that are kept with the samples."""


class DERPlusHyperparameters(DERHyperparameters):
    beta: Lambda
    """Of the samples' cross-entropy."""


class MIRHyperparameters(DrawnReplayHyperparameters):
    subsample: Positive
    """Candidates, of which those are replayed that a step would harm most."""

    @model_validator(mode="after")
    def _some_are_left_out(self) -> Self:
        if min(self.mem_size, self.subsample) <= self.batch_size_mem:
            raise ValueError(
                f"mem_size {self.mem_size} and subsample {self.subsample} have to be above batch_size_mem "
                f"{self.batch_size_mem}: of the candidates those are replayed that a step would harm most"
            )
        return self


class GDumbHyperparameters(ReplayHyperparameters):
    epochs: Positive
    """It learns the buffer from scratch after every experience, so the protocol's epochs are not for it."""


class StreamingLDAHyperparameters(Hyperparameters):
    shrinkage: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Of the covariance towards the identity; Hayes & Kanan 2020's."""


class GenerativeReplayHyperparameters(Hyperparameters):
    epochs: Positive
    vae_epochs: Positive | None = None
    """Of the generator, where they are not the solver's."""
    batch_size: Positive
    replay_size: Positive
    latent_size: Positive
    hidden_sizes: Sizes = ()
    generator_learning_rate: LearningRate = 0.01
    generator_weight_decay: Lambda = 0.0001
    """These two are what avalanche.training.GenerativeReplay has."""

    @property
    def generator_epochs(self) -> int:
        return self.vae_epochs or self.epochs


def _each_experience_is_sampled(h: AGEMHyperparameters, experiences: int) -> None:
    if h.sample_size < experiences - 1:
        raise ValueError(
            f"sample_size {h.sample_size} is below {experiences - 1}, the number of earlier experiences: Avalanche's "
            f"A-GEM draws equally many samples of each; raise it"
        )


def _der(h: DERHyperparameters, beta: float, template: dict[str, Any]):
    if any(isinstance(module, models.IncrementalClassifier) for module in template["model"].modules()):
        raise ValueError(
            "Avalanche's DER compares outputs with those it has kept: it needs one classifier that does not grow, as "
            "domain-incremental protocols have it, and class-incremental ones with network.all_classes"
        )
    return training.DER(mem_size=h.mem_size, batch_size_mem=h.batch_size_mem, alpha=h.alpha, beta=beta, **template)


def _streaming_lda(shrinkage: float, streaming_covariance: bool, template: dict[str, Any]):
    once = {"train_epochs": 1}  # it counts samples, which are the same in a second pass
    return streaming_lda.InputStreamingLDA(
        shrinkage=shrinkage, streaming_covariance=streaming_covariance, **template | once
    )


def _generative_replay(h: GenerativeReplayHyperparameters, template: dict[str, Any]):
    images = template.pop("images")
    del template["seed"]  # it draws on torch's global numbers, as the rest of Avalanche
    its_own = {"train_mb_size": h.batch_size, "train_epochs": h.epochs}
    return generative_replay.avalanche_generative_replay(
        images,
        latent_size=h.latent_size,
        replay_size=h.replay_size,
        hidden_sizes=h.hidden_sizes,
        generator_epochs=h.generator_epochs,
        learning_rate=h.generator_learning_rate,
        weight_decay=h.generator_weight_decay,
        template=template | its_own,
    )


REPLAY = Strategy(
    build=lambda h, template: training.Replay(mem_size=h.mem_size, **template), hyperparameters=ReplayHyperparameters
)
GENERATIVE_REPLAY = Strategy(
    build=_generative_replay,
    hyperparameters=GenerativeReplayHyperparameters,
    budget=lambda h, _: Budget(epochs=h.epochs, generator_epochs=h.generator_epochs),
    needs_images=True,
)

ENTRIES = {
    "avalanche-naive": Strategy(build=lambda _, template: training.Naive(**template)),
    "avalanche-ewc": Strategy(
        build=lambda h, template: training.EWC(ewc_lambda=h.ewc_lambda, mode="separate", **template),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
    "avalanche-ewc-online": Strategy(
        build=lambda h, template: training.EWC(
            ewc_lambda=h.ewc_lambda, mode="online", decay_factor=h.decay_factor, **template
        ),
        hyperparameters=OnlineEWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
    "avalanche-mas": Strategy(
        plugin=lambda h: faults.WorkingMASPlugin(h.lambda_reg, h.alpha),
        hyperparameters=MASHyperparameters,
        search={"lambda_reg": LogUniform(1e-3, 1e6)},
    ),
    "avalanche-si": Strategy(
        plugin=lambda h: faults.WorkingSynapticIntelligencePlugin(h.si_lambda, h.eps, h.clip_to, h.negatives),
        hyperparameters=SIHyperparameters,
        search={"si_lambda": LogUniform(1.0, 1e6)},
    ),
    "avalanche-rwalk": Strategy(
        plugin=lambda h: faults.WorkingRWalkPlugin(h.ewc_lambda, h.ewc_alpha, h.delta_t),
        hyperparameters=RWalkHyperparameters,
        search={"ewc_lambda": LogUniform(1e-3, 1e4)},
    ),
    "avalanche-lwf": Strategy(
        build=lambda h, template: training.LwF(alpha=h.alpha, temperature=h.temperature, **template),
        hyperparameters=LwFHyperparameters,
        search={"alpha": LogUniform(1e-2, 1e2)},
    ),
    "avalanche-gem": Strategy(
        build=lambda h, template: training.GEM(
            patterns_per_exp=h.patterns_per_exp, memory_strength=h.memory_strength, **template
        ),
        hyperparameters=GEMHyperparameters,
    ),
    "avalanche-agem": Strategy(
        build=lambda h, template: training.AGEM(
            patterns_per_exp=h.patterns_per_exp, sample_size=h.sample_size, **template
        ),
        hyperparameters=AGEMHyperparameters,
        check=_each_experience_is_sampled,
    ),
    "avalanche-er-ace": Strategy(
        build=lambda h, template: training.ER_ACE(mem_size=h.mem_size, batch_size_mem=h.batch_size_mem, **template),
        hyperparameters=DrawnReplayHyperparameters,
    ),
    "avalanche-der": Strategy(build=lambda h, template: _der(h, 0.0, template), hyperparameters=DERHyperparameters),
    "avalanche-derpp": Strategy(
        build=lambda h, template: _der(h, h.beta, template), hyperparameters=DERPlusHyperparameters
    ),
    "avalanche-mir": Strategy(
        plugin=lambda h: faults.WorkingMIRPlugin(h.batch_size_mem, h.mem_size, h.subsample),
        hyperparameters=MIRHyperparameters,
    ),
    "avalanche-replay": REPLAY,
    "avalanche-replay-large": REPLAY,
    "avalanche-generative-replay": GENERATIVE_REPLAY,
    "avalanche-generative-replay-large": GENERATIVE_REPLAY,
    "avalanche-slda": Strategy(
        build=lambda h, template: _streaming_lda(h.shrinkage, True, template),
        hyperparameters=StreamingLDAHyperparameters,
        search={"shrinkage": LogUniform(1e-5, 1)},
        budget=lambda h, _: Budget(epochs=1),
    ),
    "avalanche-ncm": Strategy(
        build=lambda _, template: _streaming_lda(1.0, False, template),
        budget=lambda h, _: Budget(epochs=1),
    ),
    "avalanche-gdumb": Strategy(
        build=lambda h, template: training.GDumb(mem_size=h.mem_size, **template | {"train_epochs": h.epochs}),
        hyperparameters=GDumbHyperparameters,
        budget=lambda h, _: Budget(epochs=h.epochs),
    ),
}
