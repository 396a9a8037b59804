"""Avalanche's GenerativeReplay on images of any shape and range, with its own generator or one of the size of ours.

As released it makes its generator for 28x28 images, normalised as its own Split MNIST is. Left as it is: its VAE draws
z with the standard deviation exp(log variance) / 2, where exp(log variance / 2) is meant.
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.logging import BaseLogger
from avalanche.models import MultiTaskModule
from avalanche.models.generator import MlpVAE
from avalanche.training import GenerativeReplay, VAETraining
from avalanche.training.plugins import EvaluationPlugin, GenerativeReplayPlugin
from torch import Tensor, nn

from engrams.strategies.generators import ImageSpec
from engrams.strategies.generators.generator import perceptron


def avalanche_generative_replay(
    images: ImageSpec,
    *,
    latent_size: int,
    replay_size: int,
    hidden_sizes: tuple[int, ...],
    generator_epochs: int,
    learning_rate: float,
    weight_decay: float,
    template: dict[str, Any],
) -> GenerativeReplay:
    """
    Args:
        images: of the stream.
        latent_size: dimensions of the VAE's z; Avalanche has 2.
        replay_size: replayed images a step.
        hidden_sizes: of the encoder, and in reverse of the decoder, in place of Avalanche's own layers; empty to keep
            those.
        generator_epochs: of the generator.
        learning_rate, weight_decay: of the generator's Adam.
        template: the arguments of an Avalanche template, for the solver. The generator takes its minibatch.

    Raises:
        ValueError: the solver has several heads, or the inputs have no bounds.
    """
    if not (torch.isfinite(torch.as_tensor(images.low)) & torch.isfinite(torch.as_tensor(images.high))).all():
        raise ValueError(
            "Avalanche's VAE makes values between two bounds, and these inputs (vectors) have none; dgr-vae learns them"
        )
    if isinstance(template["model"], MultiTaskModule):
        raise ValueError(
            "Avalanche's generative replay asks the old solver without a task label, so it cannot do several heads; "
            "run it domain- or class-incremental"
        )
    vae = MlpVAE(images.shape, nhid=latent_size, device=template["device"])
    if hidden_sizes:
        pixels = torch.Size(images.shape).numel()
        vae.encoder = nn.Sequential(nn.Flatten(), perceptron(pixels, *hidden_sizes), nn.ReLU())
        vae.calc_mean, vae.calc_logvar = (nn.Linear(hidden_sizes[-1], latent_size) for _ in range(2))
        vae.decoder.decode = nn.Sequential(perceptron(latent_size, *reversed(hidden_sizes), pixels), nn.Sigmoid())
    vae.decoder.invTrans = _Spread(images)
    generator = VAETraining(
        model=vae,
        optimizer=torch.optim.Adam(vae.parameters(), lr=learning_rate, weight_decay=weight_decay),
        plugins=[GenerativeReplayPlugin(replay_size=replay_size)],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        train_epochs=generator_epochs,
        **{key: template[key] for key in ("train_mb_size", "eval_mb_size", "device")},
    )
    return GenerativeReplay(generator_strategy=generator, replay_size=replay_size, **template)


class _Spread(nn.Module):
    """[0, 1] -> the range of the stream's images; Avalanche's decoder has that of its own Split MNIST."""

    low: Tensor
    high: Tensor

    def __init__(self, images: ImageSpec):
        super().__init__()
        self.register_buffer("low", torch.as_tensor(images.low, dtype=torch.float32))
        self.register_buffer("high", torch.as_tensor(images.high, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.low + x * (self.high - self.low)
