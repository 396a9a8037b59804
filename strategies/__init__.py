"""Continual-learning methods as Avalanche plugins and strategies; each works alone in any Avalanche script."""

from strategies.dgr import DeepGenerativeReplay
from strategies.ewc import EWCPlugin
from strategies.mas import MASPlugin
from strategies.mergan import MeRGAN

__all__ = ["DeepGenerativeReplay", "EWCPlugin", "MASPlugin", "MeRGAN"]
