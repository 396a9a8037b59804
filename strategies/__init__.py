"""Continual-learning methods as Avalanche plugins and strategies; each works alone in any Avalanche script."""

from strategies.dgr import DeepGenerativeReplay
from strategies.ewc import EWCPlugin
from strategies.mas import MASPlugin

__all__ = ["DeepGenerativeReplay", "EWCPlugin", "MASPlugin"]
