"""Memory aware synapses.

Aljundi et al. 2018, "Memory Aware Synapses: Learning what (not) to forget", ECCV, arXiv:1711.09601, eq. 4:

    L(theta) = L_n(theta) + lambda sum_ij Omega_ij (theta_ij - theta*_ij)^2

with theta* the parameters at the end of the last experience and Omega summed over all experiences so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import Dataset

from engrams.strategies.contract import Hyperparameters, Lambda, LogUniform, Strategy
from engrams.strategies.importance import MASVariant, check_mas_variant, mas_importance
from engrams.strategies.quadratic_penalty import QuadraticPenaltyPlugin


class MASPlugin(QuadraticPenaltyPlugin):
    """Memory aware synapses for any Avalanche strategy.

    At the end of every experience the importance of each parameter to the network's *outputs* is measured, in eval
    mode and without labels, on the experience's own data or on any other; from the next experience on,
    lambda Omega (theta - theta*)^2 is added to the loss. Heads and units that are new start with importance 0.

    Memory and time a step are O(parameters), however many experiences there have been.
    """

    def __init__(
        self,
        mas_lambda: float,
        variant: MASVariant = "global",
        importance_data: Dataset | AvalancheDataset | Sequence | None = None,
    ):
        """
        Args:
            mas_lambda: lambda above, >= 0.
            variant: ``global``, ``local`` or ``batched``; see :func:`mas_importance`. ``batched`` uses the strategy's
                training mini-batch size.
            importance_data: what Omega is measured on. None: the training data of the experience just learned. An
                Avalanche stream (``benchmark.test_stream``), or any sequence of experiences or datasets: its t-th
                entry after experience t. A dataset: the same after every experience; a subset of classes, say. See
                :func:`mas_importance` for what a dataset yields; a network with several heads needs task labels.

        Raises:
            ValueError: an argument outside its range; after an experience, if ``importance_data`` is empty or has no
                entry for it, or ``local`` meets a layer that it is not defined for.
        """
        super().__init__(mas_lambda)
        check_mas_variant(variant)
        self.mas_lambda = mas_lambda
        self.variant: MASVariant = variant
        self.importance_data = importance_data

    def importance(self, strategy) -> dict[str, Tensor]:
        """Omega of the experience just learned."""
        data = self._importance_data(strategy)
        return mas_importance(strategy.model, data, self.variant, batch_size=strategy.train_mb_size)

    def _importance_data(self, strategy) -> Dataset:
        if self.importance_data is None:
            return strategy.experience.dataset.eval()
        if isinstance(self.importance_data, (Dataset, AvalancheDataset)):  # Avalanche's is no torch Dataset
            data = self.importance_data
        else:
            index = strategy.clock.train_exp_counter
            if index >= len(self.importance_data):
                raise ValueError(
                    f"importance_data has {len(self.importance_data)} entries; there is none for experience {index}"
                )
            entry = self.importance_data[index]
            data = getattr(entry, "dataset", entry)
        return data.eval() if hasattr(data, "eval") else data


# --- in the catalogue -------------------------------------------------------------------------------------------------


class MASLocalHyperparameters(Hyperparameters):
    """What the local form of :class:`MASPlugin` takes."""

    mas_lambda: Lambda


class MASHyperparameters(MASLocalHyperparameters):
    """What :class:`MASPlugin` takes, but for the data that importance is measured on."""

    variant: MASVariant = "global"


ENTRIES = {
    "mas": Strategy(
        plugin=lambda h: MASPlugin(h.mas_lambda, h.variant),
        hyperparameters=MASHyperparameters,
        search={"mas_lambda": LogUniform(1e-4, 1e5)},
    ),
    "mas-local": Strategy(
        plugin=lambda h: MASPlugin(h.mas_lambda, "local"),
        hyperparameters=MASLocalHyperparameters,
        search={"mas_lambda": LogUniform(1e-5, 1e4)},
    ),
}
