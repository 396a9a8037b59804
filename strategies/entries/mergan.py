"""Memory replay GANs, and what else is done with the same conditional GAN."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engrams.strategies.contract import (
    ROUND,
    Budget,
    Build,
    GANSettings,
    Hyperparameters,
    Lambda,
    LogUniform,
    Positive,
    Strategy,
)
from engrams.strategies.entries import Later
from engrams.strategies.entries.dgr import WGANGPScholarHyperparameters, scholar, wgan_gp

if TYPE_CHECKING:
    from engrams.strategies.generators.acgan import ACGAN

dgr = Later("engrams.strategies.dgr")
mergan = Later("engrams.strategies.mergan")
acgan = Later("engrams.strategies.generators.acgan")
ewc_gan = Later("engrams.strategies.generators.ewc_gan")
judged = Later("engrams.strategies.judged")

# To second order EWC's lambda on a generator is mergan-ra's times the images replayed of a class, divided by the number
# of past classes: ra takes the mean over them, EWC the sum of their Fishers.
GAN_EWC_LAMBDAS = LogUniform(1e-2, 1e4)


class GANJointHyperparameters(Hyperparameters):
    """What training on all classes at once takes."""

    steps: Positive
    """In place of the protocol's, which are an experience's."""


class ReplayingGANHyperparameters(Hyperparameters):
    """What :class:`~engrams.strategies.mergan.ReplayingGAN` takes."""

    replayed_classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] | None = None
    replay_batch_size: Positive | None = None


class JointReplayGANHyperparameters(ReplayingGANHyperparameters):
    """What :class:`~engrams.strategies.mergan.JointReplayGAN` takes."""

    past_weight: Lambda = 1.0


class ReplayAlignmentGANHyperparameters(ReplayingGANHyperparameters):
    """What :class:`~engrams.strategies.mergan.ReplayAlignmentGAN` takes."""

    ra_lambda: Lambda


class EWCGANHyperparameters(Hyperparameters):
    """What :class:`~engrams.strategies.generators.ewc_gan.EWCGAN` takes."""

    ewc_lambda: Lambda
    fisher_samples: Positive


def _conditional_gan(kind: type[ACGAN], h: Hyperparameters, template: dict[str, Any]) -> ACGAN:
    """Of the protocol's settings; hyperparameters of the same name go before them."""
    settings = template.pop("gan").model_dump() | h.model_dump()
    return kind(template.pop("images"), seed=template.pop("seed"), classes=template.pop("classes"), **settings)


def _generating(gan: Callable[[], type[ACGAN]], kind: str = "MeRGAN") -> Build:
    """The generator alone."""

    def build(h, template):
        generator = _conditional_gan(gan(), h, template)
        its_own = {key: value for key, value in template.items() if key not in ("model", "optimizer", "criterion")}
        return getattr(mergan, kind)(generator=generator, **its_own)

    return build


def _remembering(gan: Callable[[], type[ACGAN]]) -> Build:
    """The generator as the memory of a solver, which learns from it as in deep generative replay."""

    def build(h, template):
        return dgr.DeepGenerativeReplay(
            generator=_conditional_gan(gan(), h, template), replay_labels="asked", **template
        )

    return build


def _rounds(h: Hyperparameters, gan: GANSettings | None) -> Budget:
    return Budget(generator_epochs=-(-gan.steps // ROUND) if gan else 0)


ENTRIES = {
    "mergan-jtr": Strategy(
        build=_remembering(lambda: mergan.JointReplayGAN),
        generate=_generating(lambda: mergan.JointReplayGAN),
        hyperparameters=JointReplayGANHyperparameters,
        budget=_rounds,
        needs_images=True,
        has_gan=True,
        needs_new_classes=True,
    ),
    "mergan-ra": Strategy(
        build=_remembering(lambda: mergan.ReplayAlignmentGAN),
        generate=_generating(lambda: mergan.ReplayAlignmentGAN),
        hyperparameters=ReplayAlignmentGANHyperparameters,
        search={"ra_lambda": LogUniform(1e-4, 1e1)},
        budget=_rounds,
        needs_images=True,
        has_gan=True,
        needs_new_classes=True,
    ),
    "gan-joint": Strategy(
        generate=_generating(lambda: acgan.ACGAN, "GANJointTraining"),
        hyperparameters=GANJointHyperparameters,
        budget=lambda h, _: Budget(generator_epochs=-(-h.steps // ROUND)),
        whole_stream_at_once=True,
        needs_images=True,
        has_gan=True,
        needs_new_classes=True,
    ),
    "gan-finetune": Strategy(
        generate=_generating(lambda: acgan.ACGAN),
        budget=_rounds,
        needs_images=True,
        has_gan=True,
        needs_new_classes=True,
    ),
    "gan-ewc": Strategy(
        generate=_generating(lambda: ewc_gan.EWCGAN),
        hyperparameters=EWCGANHyperparameters,
        search={"ewc_lambda": GAN_EWC_LAMBDAS},
        budget=_rounds,
        needs_images=True,
        has_gan=True,
        needs_new_classes=True,
    ),
    "gan-dgr": Strategy(
        generate=scholar(wgan_gp, lambda **template: judged.GANDeepGenerativeReplay(**template)),
        hyperparameters=WGANGPScholarHyperparameters,
        budget=lambda h, _: Budget(generator_epochs=h.generator_epochs),
        needs_images=True,
    ),
}
