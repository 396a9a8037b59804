"""Continual-learning methods as Avalanche plugins and strategies; each works alone in any Avalanche script."""

from engrams.strategies.dgr import DeepGenerativeReplay
from engrams.strategies.ewc import EWCPlugin
from engrams.strategies.mas import MASPlugin
from engrams.strategies.mergan import MeRGAN

__all__ = ["DeepGenerativeReplay", "EWCPlugin", "MASPlugin", "MeRGAN"]
