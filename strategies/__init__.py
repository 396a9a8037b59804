"""Continual-learning methods as Avalanche plugins and strategies; each works alone in any Avalanche script."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engrams.strategies.contract import Budget, Hyperparameters, LogUniform, Strategy

if TYPE_CHECKING:
    from engrams.strategies.dgr import DeepGenerativeReplay
    from engrams.strategies.ewc import EWCPlugin
    from engrams.strategies.mas import MASPlugin
    from engrams.strategies.mergan import MeRGAN
    from engrams.strategies.si import SIPlugin

__all__ = [
    "Budget",
    "DeepGenerativeReplay",
    "EWCPlugin",
    "Hyperparameters",
    "LogUniform",
    "MASPlugin",
    "MeRGAN",
    "SIPlugin",
    "Strategy",
]
# Read when they are asked for: they import torch and Avalanche, which takes seconds.
_METHODS = {
    "EWCPlugin": "ewc",
    "MASPlugin": "mas",
    "SIPlugin": "si",
    "DeepGenerativeReplay": "dgr",
    "MeRGAN": "mergan",
}


def __getattr__(name: str) -> Any:
    if name in _METHODS:
        return getattr(import_module(f"engrams.strategies.{_METHODS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
