"""Generators: what a scholar remembers its inputs with. One file a paper, behind one small contract."""

from engrams.strategies.generators.acgan import ACGAN
from engrams.strategies.generators.gaussian import ClassGaussians
from engrams.strategies.generators.generator import Generator, ImageSpec, TrainedGenerator
from engrams.strategies.generators.stand_ins import NoiseImages, PastImages
from engrams.strategies.generators.vae import VAE
from engrams.strategies.generators.wgan_gp import WGANGP

__all__ = [
    "ACGAN",
    "VAE",
    "WGANGP",
    "ClassGaussians",
    "Generator",
    "ImageSpec",
    "NoiseImages",
    "PastImages",
    "TrainedGenerator",
]
