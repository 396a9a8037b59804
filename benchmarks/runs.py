"""One run, before anything is learned: what decides its result, and where its record goes.

Nothing here needs torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engrams.benchmarks.data import names as data_names
from engrams.benchmarks.jobs import sizes
from engrams.benchmarks.jobs.sizes import Data
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.protocol import Protocol
from engrams.benchmarks.protocols.schema import AVALANCHE, Judge, OwnNetwork, Training
from engrams.reports import store
from engrams.strategies import catalogue
from engrams.strategies.contract import Budget, Hyperparameters, Strategy


@dataclass(frozen=True, eq=False)
class Run:
    """One run: what decides its result, and where its record goes."""

    protocol: Protocol
    strategy: Strategy
    seed: int
    hyperparameters: Hyperparameters
    judge: Judge = "test"
    variant: str = ""
    """Tells runs of one strategy apart whose settings are not the protocol's own: ``ewc_lambda=10``."""
    first: int | None = None
    """How many experiences are learned and judged, for a smoke test; None for all."""

    def __reduce__(self):
        # A process that gets it finds the strategy by its name again: its functions cannot be sent.
        values = (self.protocol, self.strategy.reference, self.seed, self.hyperparameters.settings())
        return _received, (*values, self.judge, self.variant, self.first)

    @property
    def name(self) -> str:
        parts = (self.protocol.name, self.strategy.name, self.variant, f"seed {self.seed}")
        return " ".join(part for part in parts if part)

    @property
    def training(self) -> Training:
        """Returns how the strategy is trained under the protocol."""
        return self.protocol.training_of(self.strategy)

    @property
    def budget(self) -> Budget:
        """Returns the epochs of one call of ``train``: the solver's (0 without one) and those of a generator."""
        return self.protocol.budget(self.strategy, self.hyperparameters)

    @property
    def epochs(self) -> int:
        """Returns the epochs of one call of ``train``, the solver's and the generator's together."""
        return (self.budget.epochs or 0) + self.budget.generator_epochs

    @property
    def upper_limit_of_epochs(self) -> int:
        return self.epochs * (1 if self.strategy.whole_stream_at_once else self.experiences)

    @cached_property  # a display asks after every epoch, and data of one's own are looked at each time
    def experiences(self) -> int:
        """Returns how many there are.

        Raises:
            ProtocolError: the classes cannot be split as the protocol says.
            DataError, ProtocolError: as :func:`engrams.benchmarks.jobs.sizes.of`.
        """
        stream = self.protocol.stream
        if stream.kind == "permuted" or stream.kind == "rotated":
            count = stream.experiences
        elif stream.kind == "benchmark":
            count = sizes.of(self.data)
        else:
            try:
                count = len(stream.experiences_of(sizes.of(self.data), self.judge))
            except ProtocolError as error:
                raise ProtocolError(f"{self.protocol.name}: {error}") from error
        return count if self.first is None else min(self.first, count)

    def check(self) -> None:
        """Raises an error for what would stop it, as far as that is known before anything is learned.

        Raises:
            ProtocolError: the strategy cannot learn so many experiences; or as :attr:`experiences`.
            DataError: as :attr:`experiences`.
        """
        try:
            self.strategy.check(self.hyperparameters, self.experiences)
        except ValueError as error:
            raise ProtocolError(f"{self.protocol.name}: {self.strategy.name}: {error}") from error

    @property
    def data(self) -> Data:
        """Returns what it reads."""
        stream = self.protocol.stream
        arguments = json.dumps(stream.arguments, sort_keys=True) if stream.kind == "benchmark" else None
        return Data(self.protocol.dataset, arguments, tasks=arguments is not None and self.protocol.scenario == "task")

    @property
    def has_own_code(self) -> bool:
        """Tells whether it runs code of somebody's own, which may leave something behind in its process."""
        protocol = self.protocol
        dataset = protocol.dataset
        function = data_names.is_own(dataset) and data_names.path_of(dataset) is None
        made = function and not dataset.startswith(f"{AVALANCHE}:")
        return bool(self.strategy.code) or isinstance(protocol.network, OwnNetwork) or made

    def folder(self, out: Path) -> Path:
        return store.folder_of(out, self.protocol.name, self.strategy.name, self.seed, self.variant)

    def deciding(self) -> dict[str, Any]:
        """Returns everything that decides the result but the seed, for the record.

        A file of one's own has the fingerprint that it had when this was first asked for in this process, which is
        before the run learns.
        """
        return dict(self._deciding)

    @cached_property
    def _deciding(self) -> dict[str, Any]:
        decided = {
            **self.protocol.deciding(self.strategy),
            "judge": self.judge,
            "strategy": self.hyperparameters.settings(),
        }
        # Here and not among what is the protocol's: what was chosen for features is kept beside it without one.
        if made := data_names.features_fingerprint(self.protocol.dataset):
            decided["dataset_fingerprint"] = made
        if self.strategy.code:
            decided["code"] = self.strategy.code
        if self.first is not None:
            decided["first_experiences"] = self.first
        return decided


def _received(
    protocol: Protocol,
    reference: str,
    seed: int,
    settings: dict[str, Any],
    judge: Judge,
    variant: str,
    first: int | None,
) -> Run:
    strategy = catalogue.get(reference)
    hyperparameters = strategy.hyperparameters.model_validate(settings)
    return Run(protocol, strategy, seed, hyperparameters, judge, variant, first)
