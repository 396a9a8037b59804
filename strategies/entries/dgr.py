"""Deep generative replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engrams.strategies.choices import Architecture, Covariance, ImageLikelihood, NewShare, ReplayLabels
from engrams.strategies.contract import (
    Betas,
    Budget,
    Build,
    Fraction,
    Hyperparameters,
    Lambda,
    LearningRate,
    LogUniform,
    Positive,
    PositiveFraction,
    Schedule,
    Sizes,
    Strategy,
)
from engrams.strategies.entries import Later

if TYPE_CHECKING:
    from engrams.strategies.generators import VAE, WGANGP, Generator, ImageSpec

dgr = Later("engrams.strategies.dgr")
generators = Later("engrams.strategies.generators")


class ScholarHyperparameters(Hyperparameters):
    """What :class:`~engrams.strategies.dgr.DeepGenerativeReplay` takes besides its generator."""

    r: NewShare | PositiveFraction = "experiences"
    replay_labels: ReplayLabels = "hard"


class TrainedScholarHyperparameters(ScholarHyperparameters):
    """The same, with a generator that is trained."""

    generator_epochs: Positive
    generator_batch_size: Positive
    generator_learning_rate: LearningRate
    generator_schedule: Schedule = "constant"
    latent_size: Positive


class VAEScholarHyperparameters(TrainedScholarHyperparameters):
    """The generator is a :class:`~engrams.strategies.generators.VAE`."""

    hidden_sizes: Sizes
    likelihood: ImageLikelihood
    solver_schedule: Schedule | None = None
    """In place of the protocol's. At a constant rate, how much is left of the past depends on the order of the last
    minibatches: see split-mnist's sources."""


class WGANGPScholarHyperparameters(TrainedScholarHyperparameters):
    """The generator is a :class:`~engrams.strategies.generators.WGANGP`."""

    architecture: Architecture
    width: Positive
    critic_steps: Positive = 5
    penalty: Lambda = 10.0
    betas: Betas = (0.0, 0.9)
    """These three are Gulrajani et al. 2017's, algorithm 1."""


class GaussianScholarHyperparameters(ScholarHyperparameters):
    """The generator is :class:`~engrams.strategies.generators.ClassGaussians`."""

    replay_labels: ReplayLabels = "asked"
    covariance: Covariance = "shared"
    shrinkage: Fraction = 0.1
    rank: Positive | None = None


def scholar(
    generator: Callable[[Any, ImageSpec, int], Generator],
    kind: Callable[..., Any] = lambda **template: dgr.DeepGenerativeReplay(**template),
) -> Build:
    """Returns deep generative replay with a generator made from the hyperparameters, the images and the seed."""

    def build(h, template):
        images, seed = template.pop("images"), template.pop("seed")
        return kind(generator=generator(h, images, seed), r=h.r, replay_labels=h.replay_labels, **template)

    return build


def _of_training(h: TrainedScholarHyperparameters) -> dict[str, Any]:
    """What every generator that is trained takes."""
    return {
        "epochs": h.generator_epochs,
        "batch_size": h.generator_batch_size,
        "latent_size": h.latent_size,
        "learning_rate": h.generator_learning_rate,
        "schedule": h.generator_schedule,
    }


def _vae(h: VAEScholarHyperparameters, images: ImageSpec, seed: int) -> VAE:
    return generators.VAE(images, seed=seed, hidden_sizes=h.hidden_sizes, likelihood=h.likelihood, **_of_training(h))


def wgan_gp(h: WGANGPScholarHyperparameters, images: ImageSpec, seed: int) -> WGANGP:
    """Returns the WGAN-GP of the hyperparameters."""
    return generators.WGANGP(
        images,
        seed=seed,
        architecture=h.architecture,
        width=h.width,
        critic_steps=h.critic_steps,
        penalty=h.penalty,
        betas=h.betas,
        **_of_training(h),
    )


ENTRIES = {
    "dgr": Strategy(
        build=scholar(wgan_gp),
        hyperparameters=WGANGPScholarHyperparameters,
        budget=lambda h, _: Budget(generator_epochs=h.generator_epochs),
        needs_images=True,
    ),
    "dgr-vae": Strategy(
        build=scholar(_vae),
        hyperparameters=VAEScholarHyperparameters,
        budget=lambda h, _: Budget(generator_epochs=h.generator_epochs, schedule=h.solver_schedule),
        needs_images=True,
    ),
    "dgr-gaussian": Strategy(
        build=scholar(
            lambda h, images, seed: generators.ClassGaussians(images, h.covariance, h.shrinkage, h.rank, seed)
        ),
        hyperparameters=GaussianScholarHyperparameters,
        search={"shrinkage": LogUniform(1e-3, 1)},
        needs_images=True,
    ),
    "exact-replay": Strategy(
        build=scholar(lambda _, images, seed: generators.PastImages(images, seed)),
        hyperparameters=ScholarHyperparameters,
        needs_images=True,
    ),
    "noise-replay": Strategy(
        build=scholar(lambda _, images, seed: generators.NoiseImages(images, seed)),
        hyperparameters=ScholarHyperparameters,
        needs_images=True,
    ),
}
