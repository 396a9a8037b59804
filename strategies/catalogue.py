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
from engrams.strategies.avalanche.faults import WorkingSynapticIntelligencePlugin
from engrams.strategies.avalanche.generative_replay import avalanche_generative_replay
from engrams.strategies.baselines import FrozenBackbonePlugin, L2Plugin, ReplayPlugin
from engrams.strategies.dgr import DeepGenerativeReplay, NewShare, ReplayLabels
from engrams.strategies.ewc import EWCPlugin
from engrams.strategies.generators import ACGAN, VAE, WGANGP, Generator, ImageSpec, NoiseImages, PastImages
from engrams.strategies.generators.ewc_gan import EWCGAN
from engrams.strategies.generators.generator import Schedule
from engrams.strategies.generators.vae import ImageLikelihood
from engrams.strategies.generators.wgan_gp import Architecture
from engrams.strategies.importance import Fisher, MASVariant
from engrams.strategies.judged import GANDeepGenerativeReplay
from engrams.strategies.mas import MASPlugin
from engrams.strategies.mergan import (
    GANJointTraining,
    JointReplayGAN,
    MeRGAN,
    ReplayAlignmentGAN,
)
from pydantic import BaseModel, ConfigDict, Field

Lambda = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sizes = Annotated[tuple[Positive, ...], Field(strict=False)]


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


class ScholarHyperparameters(Hyperparameters):
    r: NewShare | PositiveFraction = "experiences"
    replay_labels: ReplayLabels = "hard"


class TrainedScholarHyperparameters(ScholarHyperparameters):
    generator_epochs: Positive
    generator_batch_size: Positive
    generator_learning_rate: LearningRate
    generator_schedule: Schedule = "constant"
    latent_size: Positive


class VAEScholarHyperparameters(TrainedScholarHyperparameters):
    hidden_sizes: Sizes
    likelihood: ImageLikelihood
    solver_schedule: Schedule | None = None
    """In place of the protocol's. At a constant rate, how much is left of the past depends on the order of the last
    minibatches: see split-mnist's sources."""


class WGANGPScholarHyperparameters(TrainedScholarHyperparameters):
    architecture: Architecture
    width: Positive
    critic_steps: Positive = 5
    penalty: Lambda = 10.0
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.0, 0.9)
    """These three are Gulrajani et al. 2017's, algorithm 1."""


class GANSettings(Hyperparameters):
    """The conditional GAN that a protocol's strategies share: :class:`ACGAN`'s arguments."""

    steps: Positive
    batch_size: Positive
    latent_size: Positive
    width: Positive
    learning_rate: LearningRate
    smallest_side: Positive = 4
    critic_steps: Positive = 5
    penalty: Lambda = 10.0
    classifier_weight: Lambda = 1.0
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.0, 0.9)
    """These five are Wu et al. 2018's, public code."""


class GANJointHyperparameters(Hyperparameters):
    steps: Positive
    """In place of the protocol's, which are an experience's."""


class ReplayingGANHyperparameters(Hyperparameters):
    replayed_classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] | None = None
    replay_batch_size: Positive | None = None


class JointReplayGANHyperparameters(ReplayingGANHyperparameters):
    past_weight: Lambda = 1.0


class ReplayAlignmentGANHyperparameters(ReplayingGANHyperparameters):
    ra_lambda: Lambda


class EWCGANHyperparameters(Hyperparameters):
    ewc_lambda: Lambda
    fisher_samples: Positive


class AvalancheGenerativeReplayHyperparameters(Hyperparameters):
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


class LogUniform(NamedTuple):
    """What a search may choose from: any number between two, evenly spread on a logarithmic scale."""

    low: float
    high: float


Build = Callable[[Any, dict[str, Any]], SupervisedTemplate]


@dataclass(frozen=True)
class Strategy:
    """One row of a comparison table.

    ``build`` takes the hyperparameters and the arguments of an Avalanche template (model, optimizer, criterion,
    train_mb_size, train_epochs, eval_mb_size, device, plugins, evaluator) and returns the Avalanche strategy. Where
    ``needs_images`` is set, the arguments also have ``images``, the :class:`ImageSpec` of the stream, and ``seed``;
    where ``has_gan`` is, ``gan``, the protocol's :class:`GANSettings`, and ``classes``, how many there are.
    ``generate`` does the same where it is a generator that is judged; its arguments also have ``classifier`` and
    ``images_per_class`` of :class:`JudgedByClassifier`.
    """

    summary: str
    build: Build | None = None
    """None if it has no solver."""
    generate: Build | None = None
    """None if it cannot be asked for a class."""
    hyperparameters: type[Hyperparameters] = NoHyperparameters
    search: Mapping[str, LogUniform] = field(default_factory=dict)
    """Hyperparameter -> the range in which one is chosen on the validation stream."""
    counterpart: str = ""
    """Avalanche's strategy of the same method, to compare with."""
    upper_bound: bool = False
    """It sees data that a continual learner would no longer have; tables keep it apart."""
    whole_stream_at_once: bool = False
    """It is trained once, on all experiences together."""
    needs_images: bool = False
    """It makes images, and must know what they look like."""
    has_gan: bool = False
    """It trains the protocol's conditional GAN."""


def _plugged(plugin: Callable[[Any], Any]) -> Build:
    """Plain training (Avalanche's Naive) with one more plugin, made from the hyperparameters."""

    def build(hyperparameters, template):
        return Naive(**template | {"plugins": [*template["plugins"], plugin(hyperparameters)]})

    return build


def _scholar(
    generator: Callable[[Any, ImageSpec, int], Generator], kind: type[DeepGenerativeReplay] = DeepGenerativeReplay
) -> Build:
    """Deep generative replay with a generator made from the hyperparameters, the images and the seed."""

    def build(h, template):
        images, seed = template.pop("images"), template.pop("seed")
        return kind(generator=generator(h, images, seed), r=h.r, replay_labels=h.replay_labels, **template)

    return build


def _conditional_gan(kind: type[ACGAN], h: Hyperparameters, template: dict[str, Any]) -> ACGAN:
    """Of the protocol's settings; hyperparameters of the same name go before them."""
    settings = template.pop("gan").model_dump() | h.model_dump()
    return kind(template.pop("images"), seed=template.pop("seed"), classes=template.pop("classes"), **settings)


def _generating(gan: type[ACGAN], kind: type[MeRGAN] = MeRGAN) -> Build:
    """The generator alone."""

    def build(h, template):
        generator = _conditional_gan(gan, h, template)
        its_own = {key: value for key, value in template.items() if key not in ("model", "optimizer", "criterion")}
        return kind(generator=generator, **its_own)

    return build


def _remembering(gan: type[ACGAN]) -> Build:
    """The generator as the memory of a solver, which learns from it as in deep generative replay."""

    def build(h, template):
        return DeepGenerativeReplay(generator=_conditional_gan(gan, h, template), replay_labels="asked", **template)

    return build


def _vae(h: VAEScholarHyperparameters, images: ImageSpec, seed: int) -> VAE:
    return VAE(
        images,
        epochs=h.generator_epochs,
        batch_size=h.generator_batch_size,
        seed=seed,
        latent_size=h.latent_size,
        hidden_sizes=h.hidden_sizes,
        learning_rate=h.generator_learning_rate,
        likelihood=h.likelihood,
        schedule=h.generator_schedule,
    )


def _wgan_gp(h: WGANGPScholarHyperparameters, images: ImageSpec, seed: int) -> WGANGP:
    return WGANGP(
        images,
        epochs=h.generator_epochs,
        batch_size=h.generator_batch_size,
        seed=seed,
        architecture=h.architecture,
        latent_size=h.latent_size,
        width=h.width,
        critic_steps=h.critic_steps,
        penalty=h.penalty,
        learning_rate=h.generator_learning_rate,
        betas=h.betas,
        schedule=h.generator_schedule,
    )


def _avalanche_generative_replay(h: AvalancheGenerativeReplayHyperparameters, template: dict[str, Any]):
    images = template.pop("images")
    del template["seed"]  # it draws on torch's global numbers, as the rest of Avalanche
    its_own = {"train_mb_size": h.batch_size, "train_epochs": h.epochs}
    return avalanche_generative_replay(
        images,
        latent_size=h.latent_size,
        replay_size=h.replay_size,
        hidden_sizes=h.hidden_sizes,
        generator_epochs=h.generator_epochs,
        learning_rate=h.generator_learning_rate,
        weight_decay=h.generator_weight_decay,
        template=template | its_own,
    )


EWC_LAMBDAS = LogUniform(1e1, 1e6)
# Avalanche's penalty has no 1/2, and the squared gradient of a mean over B samples is about B times smaller than the
# mean of squared gradients.
AVALANCHE_EWC_LAMBDAS = LogUniform(1e2, 1e7)
# To second order EWC's on a generator is mergan-ra's lambda times the images replayed of a class, divided by the number
# of past classes: ra takes the mean over them, EWC the sum of their Fishers.
GAN_EWC_LAMBDAS = LogUniform(1e-2, 1e4)

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
    "dgr": Strategy(
        summary="deep generative replay: a scholar of a WGAN-GP and a solver (Shin et al. 2017)",
        build=_scholar(_wgan_gp),
        hyperparameters=WGANGPScholarHyperparameters,
        needs_images=True,
    ),
    "dgr-vae": Strategy(
        summary="deep generative replay with a variational autoencoder",
        build=_scholar(_vae),
        hyperparameters=VAEScholarHyperparameters,
        counterpart="avalanche-generative-replay",
        needs_images=True,
    ),
    "exact-replay": Strategy(
        summary="the same scholar with past real images for a generator: the upper bound of generative replay",
        build=_scholar(lambda _, images, seed: PastImages(images, seed)),
        hyperparameters=ScholarHyperparameters,
        upper_bound=True,
        needs_images=True,
    ),
    "noise-replay": Strategy(
        summary="the same scholar with noise for a generator",
        build=_scholar(lambda _, images, seed: NoiseImages(images, seed)),
        hyperparameters=ScholarHyperparameters,
        needs_images=True,
    ),
    "mergan-jtr": Strategy(
        summary="memory replay GAN, joint training with replay (Wu et al. 2018); with a solver: its memory",
        build=_remembering(JointReplayGAN),
        generate=_generating(JointReplayGAN),
        hyperparameters=JointReplayGANHyperparameters,
        needs_images=True,
        has_gan=True,
    ),
    "mergan-ra": Strategy(
        summary="memory replay GAN, replay alignment (Wu et al. 2018); with a solver: its memory",
        build=_remembering(ReplayAlignmentGAN),
        generate=_generating(ReplayAlignmentGAN),
        hyperparameters=ReplayAlignmentGANHyperparameters,
        search={"ra_lambda": LogUniform(1e-4, 1e1)},
        needs_images=True,
        has_gan=True,
    ),
    "gan-joint": Strategy(
        summary="the same conditional GAN trained on all classes at once: the upper bound",
        generate=_generating(ACGAN, GANJointTraining),
        hyperparameters=GANJointHyperparameters,
        upper_bound=True,
        whole_stream_at_once=True,
        needs_images=True,
        has_gan=True,
    ),
    "gan-finetune": Strategy(
        summary="the same conditional GAN, nothing done about forgetting",
        generate=_generating(ACGAN),
        needs_images=True,
        has_gan=True,
    ),
    "gan-ewc": Strategy(
        summary="the same conditional GAN, EWC on its generator (Seff et al. 2017)",
        generate=_generating(EWCGAN),
        hyperparameters=EWCGANHyperparameters,
        search={"ewc_lambda": GAN_EWC_LAMBDAS},
        needs_images=True,
        has_gan=True,
    ),
    "gan-dgr": Strategy(
        summary="deep generative replay as a generator: an unconditional GAN, its images labelled by the solver",
        generate=_scholar(_wgan_gp, GANDeepGenerativeReplay),
        hyperparameters=WGANGPScholarHyperparameters,
        needs_images=True,
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
    "avalanche-generative-replay": Strategy(
        summary="Avalanche's generative replay, its VAE as released",
        build=_avalanche_generative_replay,
        hyperparameters=AvalancheGenerativeReplayHyperparameters,
        needs_images=True,
    ),
    "avalanche-generative-replay-large": Strategy(
        summary="the same with a VAE of the size and the epochs of dgr-vae's, and its solver's epochs",
        build=_avalanche_generative_replay,
        hyperparameters=AvalancheGenerativeReplayHyperparameters,
        needs_images=True,
    ),
    "avalanche-gdumb": Strategy(
        summary="Avalanche's GDumb: learn a balanced buffer from scratch (Prabhu et al. 2020)",
        build=lambda h, template: GDumb(mem_size=h.mem_size, **template | {"train_epochs": h.epochs}),
        hyperparameters=GDumbHyperparameters,
    ),
}
