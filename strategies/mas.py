"""Memory aware synapses.

Aljundi et al. 2018, "Memory Aware Synapses: Learning what (not) to forget", ECCV, arXiv:1711.09601, eq. 4:

    L(theta) = L_n(theta) + lambda sum_ij Omega_ij (theta_ij - theta*_ij)^2

with theta* the parameters at the end of the last experience and Omega summed over all experiences so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from engrams.strategies.anchors import ByName
from engrams.strategies.arguments import at_least_one, not_negative, one_of
from engrams.strategies.choices import MASVariant, PenaltyStep
from engrams.strategies.importance import mas_importance
from engrams.strategies.kept import State
from engrams.strategies.networks import asked
from engrams.strategies.quadratic_penalty import (
    Excluded,
    QuadraticPenaltyPlugin,
    first_samples,
    strength,
    without_complex,
)


class MASPlugin(QuadraticPenaltyPlugin):
    """Memory aware synapses for any Avalanche strategy.

    At the end of every experience the importance of each parameter to the network's *outputs* is measured, in eval
    mode and without labels, on the experience's own data or on any other; from the next experience on,
    lambda Omega (theta - theta*)^2 is added to the loss. Heads and units that are new start with importance 0. Before
    anything is trained, three samples are measured, and what cannot work is refused.

    The experience's own data are what the strategy trains on (its ``adapted_dataset``), with the transformations of
    evaluation; what other plugins do to minibatches (normalise them, mix them) is no part of what is measured.

    Memory and time a step are O(parameters), however many experiences there have been.
    """

    def __init__(
        self,
        mas_lambda: float,
        variant: MASVariant = "global",
        importance_data: Dataset | AvalancheDataset | Sequence | None = None,
        *,
        penalty_step: PenaltyStep = "gradient",
        exclude: Excluded | None = (),
        consolidate_every: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ):
        """
        Args:
            mas_lambda: lambda above, >= 0.
            variant: ``global``, ``local`` or ``batched``; see :func:`mas_importance`.
            importance_data: what Omega is measured on. None: the training data of the experience just learned. An
                Avalanche stream (``benchmark.test_stream``), or any sequence of experiences or datasets: its t-th
                entry after the t-th experience. A dataset: the same after every experience; a subset of classes, say.
                See :func:`mas_importance` for what a dataset yields; a network with several heads needs task labels.
            penalty_step: ``gradient`` or ``proximal``, which is stable for every lambda; see
                :class:`QuadraticPenaltyPlugin`.
            exclude: parameters that are not penalised, by name, pattern or kind of module; likewise.
            consolidate_every: samples after which to consolidate, for streams that hide where experiences end.
            batch_size: samples in one pass (for ``batched``, in a mini-batch). None: for ``batched``, the strategy's
                training mini-batch; else as many as take no more memory than two training steps.
            num_workers: processes that load the data; None: as many as ``strategy.train`` was given.

        Raises:
            ValueError: an argument outside its range; before an experience is trained, if ``importance_data`` is empty
                or has no entry for it, or if the network cannot be measured (``local`` meets a layer that it is not
                defined for); after an experience, parameters or importances that are not finite.
        """
        not_negative(mas_lambda=mas_lambda)
        super().__init__(mas_lambda, penalty_step=penalty_step, exclude=exclude, consolidate_every=consolidate_every)
        one_of(MASVariant, variant=variant)
        at_least_one(batch_size=batch_size)
        _refuse_what_is_no_dataset(importance_data)
        self.variant: MASVariant = variant
        self.importance_data = importance_data
        self.batch_size = batch_size
        self.num_workers = num_workers

    mas_lambda = strength("mas_lambda", 1)

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._latest: ByName = {}
        """Omega of the latest experience."""
        self._latest_samples = 0
        """The number of samples that it is a mean over."""

    def _by_name(self) -> list[dict[str, Any]]:
        return [*super()._by_name(), self._latest]

    def state_dict(self) -> State:
        """Returns the state of every quadratic penalty, and the Omega that :meth:`observe` adds to."""
        return super().state_dict() | {"latest": deepcopy(self._latest), "latest_samples": self._latest_samples}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._latest, self._latest_samples = deepcopy(state["latest"]), state["latest_samples"]

    def importance(self, strategy) -> ByName:
        """Returns Omega of the experience just learned."""
        data = self._importance_data(strategy)
        self._latest, self._latest_samples = self._measured(strategy, data), len(data)  # type: ignore[arg-type]
        return dict(self._latest)

    def observe(self, model: nn.Module, data: Dataset) -> None:
        """Takes in unlabelled data that the network meets in deployment, after its latest experience.

        Omega of that experience becomes the mean over its own samples and all that were observed since: what it would
        be if it had been measured on both together (Aljundi et al. 2018, sections 4.1 and 5.3: importance follows the
        data that the network is used on). Anchors stay where they are. Between training, not during it.

        Args:
            model: the network as the latest experience left it.
            data: as for :func:`mas_importance`; labels are not read.

        Raises:
            ValueError: before the first experience has ended; the network has no parameter that is held; as
                :func:`mas_importance`.
        """
        if not self.consolidated:
            raise ValueError("there is no importance to add to before the first experience has ended")
        with without_complex(model):
            found = mas_importance(
                model, data, self.variant, batch_size=self.batch_size or 32, samples_at_once=self.batch_size
            )
        self._followed_into(model)  # under whatever names its parameters are now
        both = self._latest.keys() & self.importances.keys() & found.keys()
        if not both:
            raise ValueError("the network has no parameter under a name of which there is an importance")
        before, new = self._latest_samples, len(data)  # type: ignore[arg-type]
        for name in both:
            old = self._latest[name].to(found[name])
            mean = (before * old + new * found[name]) / (before + new)
            self.importances[name] = self.importances[name].to(mean) + (mean - old)
            self._latest[name] = mean
        self._latest_samples = before + new

    def check(self, strategy) -> None:
        self._measured(strategy, first_samples(self._importance_data(strategy)))

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self._importance_data(strategy)  # there is some for this experience, or it is refused before it is trained

    def _measured(self, strategy, data: Dataset) -> dict[str, Tensor]:
        return mas_importance(
            asked(strategy), data, self.variant, **self._loading(strategy, self.batch_size, self.num_workers)
        )

    def _importance_data(self, strategy) -> Dataset:
        if self.importance_data is None:
            return self.data_since(strategy)
        if isinstance(self.importance_data, (Dataset, AvalancheDataset)):  # Avalanche's is no torch Dataset
            data = self.importance_data
        else:
            index = self.consolidated
            if index >= len(self.importance_data):
                raise ValueError(
                    f"importance_data has {len(self.importance_data)} entries; there is none for experience {index}"
                )
            entry = self.importance_data[index]
            data = getattr(entry, "dataset", entry)
        if len(data) == 0:  # type: ignore[arg-type]
            raise ValueError("an importance needs at least one sample; the dataset is empty")
        return data.eval() if hasattr(data, "eval") else data


def _refuse_what_is_no_dataset(data: object) -> None:
    """Raises a ValueError that says what to give instead."""
    if isinstance(data, DataLoader):
        raise ValueError("importance_data is a DataLoader; give the data set that it loads (its .dataset)")
    if isinstance(data, Tensor):
        raise ValueError("importance_data is a tensor; give torch.utils.data.TensorDataset(tensor)")
    if hasattr(data, "dataset") and not isinstance(data, Dataset):
        raise ValueError("importance_data is one experience; give its .dataset, or a stream of experiences")
    if not (data is None or isinstance(data, (Dataset, AvalancheDataset)) or hasattr(data, "__getitem__")):
        raise ValueError(f"importance_data must be a data set or a sequence of them; got a {type(data).__name__}")
    for entry in data if isinstance(data, list | tuple) else ():
        if isinstance(entry, DataLoader | Tensor | tuple):
            raise ValueError(f"importance_data has a {type(entry).__name__} among its entries; give data sets")
