"""Dark experience replay."""

from __future__ import annotations

from engrams.strategies.contract import Hyperparameters, Lambda, LogUniform, Positive, Strategy
from engrams.strategies.entries import Later

dark_replay = Later("engrams.strategies.dark_replay")


class DERHyperparameters(Hyperparameters):
    mem_size: Positive
    alpha: Lambda
    batch_size_mem: Positive | None = None


class DERPlusHyperparameters(DERHyperparameters):
    beta: Lambda


SEARCH = {"alpha": LogUniform(0.01, 10.0)}

ENTRIES = {
    "der": Strategy(
        plugin=lambda h: dark_replay.DERPlugin(h.mem_size, h.alpha, 0.0, h.batch_size_mem),
        first_of_plugins=True,
        hyperparameters=DERHyperparameters,
        search=SEARCH,
    ),
    "derpp": Strategy(
        plugin=lambda h: dark_replay.DERPlugin(h.mem_size, h.alpha, h.beta, h.batch_size_mem),
        first_of_plugins=True,
        hyperparameters=DERPlusHyperparameters,
        search=SEARCH,
    ),
}
