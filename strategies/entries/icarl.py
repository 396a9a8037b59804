"""Rebuffi et al. 2017, under ``icarl``."""

from __future__ import annotations

from engrams.strategies.contract import Hyperparameters, Positive, Strategy
from engrams.strategies.entries import Later

icarl = Later("engrams.strategies.icarl")


class ICaRLHyperparameters(Hyperparameters):
    mem_size: Positive
    mirrored_means: bool = False


ENTRIES = {
    "icarl": Strategy(
        plugin=lambda h: icarl.ICaRLPlugin(h.mem_size, h.mirrored_means),
        hyperparameters=ICaRLHyperparameters,
        needs_new_classes=True,
    ),
}
