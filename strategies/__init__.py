"""Continual-learning methods as Avalanche plugins and strategies; each works alone in any Avalanche script."""

from strategies.ewc import EWCPlugin
from strategies.mas import MASPlugin

__all__ = ["EWCPlugin", "MASPlugin"]
