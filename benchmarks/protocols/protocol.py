"""A protocol: the stream, the network, the optimiser and the budget of a comparison, and where each number is from."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from datetime import date, time
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from engrams.benchmarks.data import names as data_names
from engrams.benchmarks.protocols.dotted import flattened, set_below
from engrams.benchmarks.protocols.problems import MISSING, ProtocolError, problem_of
from engrams.benchmarks.protocols.schema import (
    AVALANCHE,
    KINDS,
    Choice,
    Generation,
    Images,
    Judging,
    Network,
    OwnNetwork,
    Scenario,
    Stream,
    Table,
    Training,
)
from engrams.strategies import references
from engrams.strategies.contract import Budget, GANSettings, Hyperparameters, Strategy
from engrams.strategies.references import BadReference

FOLDER = Path(__file__).parent
"""Of the protocols that come with Engrams."""


class MissingHyperparameters(ProtocolError):
    """A protocol sets no value for what some strategies cannot do without."""

    def __init__(self, protocol: Protocol, missing: Sequence[tuple[Strategy, str]]):
        """
        Args:
            protocol: which sets none.
            missing: strategies, and dotted keys of theirs.
        """
        self.missing = missing
        values = ", ".join(f"strategies.{strategy.name}.{key}" for strategy, key in missing)
        advice = f"set {'it' if len(missing) == 1 else 'them'} in the protocol or with "
        advice += " ".join(f"--set {key}=..." for key in dict.fromkeys(key for _, key in missing))
        searched = {strategy.reference: strategy for strategy, key in missing if key in strategy.search}
        if searched:
            advice += f", or run '{searching(protocol, *searched.values())}'"
            if not all(key in strategy.search for strategy, key in missing):
                advice += " for those that a search chooses"
        super().__init__(f"{protocol.reference}: {values}: missing; {advice}")


class Protocol(Table):
    """Everything that a run needs besides a strategy and a seed."""

    name: str
    title: str
    dataset: str
    scenario: Scenario
    images: Images
    stream: Stream
    network: Network
    training: Training
    generation: Generation | None
    gan: GANSettings | None
    judging: Judging | None = None
    strategies: dict[str, dict[str, Any]]
    """Name -> the hyperparameters that the file sets for it."""
    chosen: dict[str, Choice]
    """Name -> what a search chose for it; goes before what the file sets."""
    sources: dict[str, str]
    file: Path
    """The file that it was read from; what a search chooses is written beside it."""
    changed: dict[str, Any] = Field(default_factory=dict)
    """Dotted key -> value of what was set besides the file."""

    def hyperparameters_of(self, strategy: Strategy, settings: Mapping[str, Any] | None = None) -> Hyperparameters:
        """Returns the strategy's hyperparameters under this protocol, checked.

        Args:
            strategy: of the catalogue, or one's own.
            settings: dotted key -> value, to use in place of the protocol's. Strategies that are joined have their keys
                below their names: ``ewc.ewc_lambda``.

        Raises:
            MissingHyperparameters: some have no value.
            ProtocolError: one is unknown or out of range; or as :meth:`check`.
        """
        self.check(strategy)
        parts = [part.name for part in strategy.parts]
        values: dict[str, Any] = {part: self._values_of(part) for part in parts}
        for key, value in {**flattened(self._values_of(strategy.name)), **(settings or {})}.items():
            # A part's name may have a dot of its own: package.module:name.
            part = next((part for part in parts if key.startswith(f"{part}.")), "")
            set_below(values, [part, *key[len(part) + 1 :].split(".")] if part else key.split("."), value)
        try:
            found = strategy.hyperparameters.model_validate(values)
        except ValidationError as error:
            problem = problem_of(error, KINDS)
            if problem.what == MISSING:
                raise MissingHyperparameters(self, [(strategy, key) for key in problem.keys]) from error
            if any(key in (settings or {}) for key in problem.keys):
                raise ProtocolError(f"{self.name}: {strategy.name}: {problem}") from error
            chosen = self.chosen.get(strategy.name)
            was_chosen = chosen is not None and any(key in chosen.hyperparameters for key in problem.keys)
            where = f"{chosen.file if chosen and was_chosen else self.reference}: strategies.{strategy.name}"
            if not problem.keys:
                raise ProtocolError(f"{where}: {problem}") from error
            raise ProtocolError(f"{where}.{problem}") from error
        self._check_kept(strategy, found)
        return found

    def _check_kept(self, strategy: Strategy, hyperparameters: Hyperparameters) -> None:
        """Raises a ProtocolError for a value that a record could not give back."""
        written = flattened(hyperparameters.settings())
        for key, value in flattened(hyperparameters.model_dump(by_alias=True)).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ProtocolError(
                    f"{self.name}: {strategy.name}.{key}: a record cannot hold {value}; set it to a finite number"
                )
            if isinstance(value, date | time):
                raise ProtocolError(
                    f"{self.name}: {strategy.name}.{key}: a record would hold {written[key]!r} as a text; set it to one"
                )

    def _values_of(self, name: str) -> dict[str, Any]:
        chosen = self.chosen[name].hyperparameters if name in self.chosen else {}
        return self.strategies.get(name, {}) | chosen

    @property
    def masks_tasks(self) -> bool:
        """Tells whether tasks are told apart where the network is judged, and nowhere else."""
        return self.scenario == "task" and self.network.all_classes

    @property
    def learned_as(self) -> Scenario:
        """Returns the scenario that the learner sees."""
        return "class" if self.masks_tasks else self.scenario

    @property
    def reference(self) -> str:
        """Returns what the command line calls it: its name, or the path of somebody's own file."""
        if self.file.parent == FOLDER:
            return self.name
        _, several, scenario = self.name.partition("/")
        return f"{self.file}{several}{scenario}"

    def check(self, strategy: Strategy) -> None:
        """Says what would keep a strategy from being built under this protocol.

        Raises:
            ProtocolError: it has no solver, or no generator that can be asked for a class, where it is this that is
                judged; it needs task labels where the learner gets none; it trains a conditional GAN of which the
                protocol says nothing; it needs new classes where some come again.
        """
        name = strategy.name
        if self.generation and strategy.generate is None:
            raise ProtocolError(
                f"{self.name}: {name} has not got a generator that can be asked for a class; mergan-jtr, mergan-ra and "
                f"gan-* have one"
            )
        if not self.generation and not strategy.has_solver:
            raise ProtocolError(f"{self.name}: {name} has not got a solver; it runs under the generate-* protocols")
        if strategy.needs_task_labels and self.learned_as != "task":
            without = " without network.all_classes" if self.masks_tasks else ""
            raise ProtocolError(
                f"{self.name}: {name} must be told the task of every sample, which this protocol does not tell; it "
                f"runs in the scenario task{without}"
            )
        if strategy.has_gan and self.gan is None:
            raise ProtocolError(f"{self.name}: {name} needs the settings of its GAN; add a table [gan]")
        if self.scenario == "task" and self.stream.boundaries == "gradual":  # Avalanche's heads mask by one of them
            raise ProtocolError(
                f"{self.name}: stream.boundaries = 'gradual' goes with the scenarios domain and class: an experience "
                f"would have several task labels"
            )
        again = self.learned_as != "class" or self.stream.boundaries == "gradual"
        if strategy.needs_new_classes and again:  # a class met again is a new one, and nothing is replayed
            raise ProtocolError(
                f"{self.name}: {name} remembers classes: every experience must bring new ones, as in the scenario "
                f"class, or task with network.all_classes, with sharp boundaries"
            )

    def budget(self, strategy: Strategy, hyperparameters: Hyperparameters) -> Budget:
        """Returns the epochs of one call of ``train`` under this protocol, and the schedule of the solver's rate.

        ``epochs`` is 0 where there is no solver to train.
        """
        own = strategy.budget(hyperparameters, self.gan)
        training = self.training_of(strategy)
        epochs = training.epochs if own.epochs is None else own.epochs
        if self.generation and strategy.has_gan:
            epochs = 0
        return Budget(epochs, own.generator_epochs, own.schedule or training.schedule)

    def training_of(self, strategy: Strategy) -> Training:
        """Returns how one strategy is trained."""
        return self.training.of_strategy(strategy.name)

    def deciding(self, strategy: Strategy) -> dict[str, Any]:
        """Returns the part of the protocol that decides a strategy's result, for the record."""
        decides = {"dataset", "scenario", "images", "stream", "network", "training"}
        if self.generation:
            decides.add("generation")
        if strategy.has_gan:
            decides.add("gan")
        # As JSON has it: a tuple in a record read back is a list.
        decided = self.model_dump(mode="json", include=decides)
        decided["training"] = self.training_of(strategy).model_dump(mode="json")
        decided["stream"].pop("scenarios", None)  # the file's others; this one's is in "scenario"
        return decided | self._own()

    def _own(self) -> dict[str, Any]:
        """What is one's own, by a name that says nothing of where it lies, and by a fingerprint of its content."""
        own: dict[str, Any] = {}
        if self.stream.kind == "benchmark":
            own["dataset"] = references.short(self.dataset)
            if not self.dataset.startswith(f"{AVALANCHE}:"):
                try:
                    own["dataset_fingerprint"] = references.fingerprint(self.dataset)
                except BadReference as error:
                    raise ProtocolError(f"{self.name}: benchmark: {error}") from error
        elif data_names.is_own(self.dataset):
            own["dataset"] = data_names.short(self.dataset)
            own["dataset_fingerprint"] = data_names.fingerprint(self.dataset)
        if isinstance(self.network, OwnNetwork):
            kind = self.network.kind
            try:
                own["network"] = {
                    **self.network.model_dump(mode="json"),
                    **{"kind": references.short(kind), "fingerprint": references.fingerprint(kind)},
                }
            except BadReference as error:
                raise ProtocolError(f"{self.name}: network.kind: {error}") from error
        return own

    def fingerprint(self, strategy: Strategy) -> str:
        """Returns 12 hexadecimal digits for all that decides what a search finds but the ranges that it looks in.

        That is the protocol's part of :meth:`deciding` and those of the strategy's hyperparameters that are not
        searched.
        """
        lowest = {key: space.low for key, space in strategy.search.items()}
        fixed = flattened(self.hyperparameters_of(strategy, lowest).settings())
        kept = {key: value for key, value in fixed.items() if key not in strategy.search}
        text = json.dumps([self.deciding(strategy), kept, strategy.code], sort_keys=True)
        return sha256(text.encode()).hexdigest()[:12]

    def stale(self, strategy: Strategy, by_hand: Collection[str] = ()) -> str | None:
        """Returns one line where what was chosen for a strategy was chosen under other settings, else None.

        Args:
            strategy: of the catalogue, or one's own. What was chosen for the parts of a joined one is theirs to say.
            by_hand: hyperparameters that were set in place of what was chosen.
        """
        choice = self.chosen.get(strategy.name)
        if choice is None or not choice.fingerprint or choice.fingerprint == self.fingerprint(strategy):
            return None
        keys = [key for key in choice.hyperparameters if key not in by_hand]
        if not keys:
            return None
        if self.changed:
            advice = "set it by hand, or put these settings into a file that extends the protocol and search that"
        else:
            advice = f"'{searching(self, strategy)}' chooses anew"
        return f"{self.name}: {', '.join(keys)} of {strategy.name} was chosen under other settings than these; {advice}"


def searching(protocol: Protocol, *strategies: Strategy) -> str:
    """Returns the command that chooses the hyperparameters of strategies, as a shell takes it."""
    return shlex.join(["engrams", "search", protocol.reference, *(strategy.reference for strategy in strategies)])
