"""Generators: what a scholar remembers its inputs with. One file a paper, behind one small contract."""

from strategies.generators.acgan import ACGAN
from strategies.generators.generator import Generator, ImageSpec, TrainedGenerator
from strategies.generators.stand_ins import NoiseImages, PastImages
from strategies.generators.vae import VAE
from strategies.generators.wgan_gp import WGANGP

__all__ = ["ACGAN", "VAE", "WGANGP", "Generator", "ImageSpec", "NoiseImages", "PastImages", "TrainedGenerator"]
