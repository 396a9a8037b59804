"""Rusu et al. 2016, under ``pnn``."""

from __future__ import annotations

from engrams.strategies.contract import Strategy
from engrams.strategies.entries import Later

pnn = Later("engrams.strategies.pnn")
templates = Later("avalanche.training.templates")


ENTRIES = {
    "pnn": Strategy(
        network=lambda _, network: pnn.ProgressiveNetwork(network),
        build=lambda _, template: templates.SupervisedTemplate(**template),
        needs_task_labels=True,
    ),
}
