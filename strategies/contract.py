"""What a strategy is to the benchmarks: ours, Avalanche's and anybody's keep the same contract.

Twenty lines make a row of a comparison table::

    from engrams.strategies import Hyperparameters, LogUniform, Strategy

    class MyHyperparameters(Hyperparameters):
        strength: float

    my_strategy = Strategy(
        summary="what it does, in one line",
        hyperparameters=MyHyperparameters,
        search={"strength": LogUniform(1e-2, 1e2)},
        plugin=lambda h: MyPlugin(h.strength),
    )

``engrams run split-digits/class my_module:my_strategy --set strength=1`` runs it. This file imports neither torch nor
Avalanche, so that what only names strategies stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from engrams.strategies.choices import PenaltyStep

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate

Lambda = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sizes = Annotated[tuple[Positive, ...], Field(strict=False)]
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
Schedule = Literal["constant", "linear"]
SolverSchedule = Literal["constant", "linear", "steps"]


def without_usual(model: BaseModel, later: Collection[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record's values of a model without the fields, added ``later``, that have their default: older records
    lack them."""
    usual = {name: field.default for name, field in type(model).model_fields.items() if name in later}
    return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


class Hyperparameters(BaseModel):
    """A strategy's own hyperparameters, checked; a field without a default must come from the protocol or the user."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields added later. A record leaves them out where they have their default, since older records lack them."""

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_usual(self, self.later, serialize(self))

    def settings(self) -> dict[str, Any]:
        """Returns them as a record has them: name -> a value of JSON's kinds."""
        return self.model_dump(mode="json", by_alias=True)


class NoHyperparameters(Hyperparameters):
    """The strategy has nothing to set."""


class LogUniform(NamedTuple):
    """What a search may choose from: any number between two, evenly spread on a logarithmic scale."""

    low: float
    high: float


class PenaltyHyperparameters(Hyperparameters):
    """What every penalty takes in the catalogue."""

    later = frozenset({"penalty_step"})
    penalty_step: PenaltyStep = "gradient"


class GANSettings(Hyperparameters):
    """The conditional GAN that a protocol's strategies share: the arguments of :class:`ACGAN`."""

    steps: Positive
    batch_size: Positive
    latent_size: Positive
    width: Positive
    learning_rate: LearningRate
    smallest_side: Positive = 4
    critic_steps: Positive = 5
    penalty: Lambda = 10.0
    classifier_weight: Lambda = 1.0
    betas: Betas = (0.0, 0.9)
    """These five are Wu et al. 2018's, public code."""


ROUND = 100
"""Steps of a conditional GAN's generator between two signs of life, which count as an epoch."""


class Budget(NamedTuple):
    """What one call of ``train`` takes where that is the strategy's to say and not the protocol's."""

    epochs: int | None = None
    """The solver's epochs; None for the protocol's."""
    generator_epochs: int = 0
    """The epochs (a conditional GAN's rounds) of a generator that is trained besides."""
    schedule: SolverSchedule | None = None
    """The schedule of the solver's learning rate; None for the protocol's."""


Build = Callable[[Any, dict[str, Any]], "SupervisedTemplate"]


@dataclass(frozen=True)
class Strategy:
    """One row of a comparison table: what it is, what can be set and searched, and how it is built.

    Exactly one of ``plugin`` and ``build`` makes what learns (a strategy of the ``generate-*`` protocols alone has
    neither, and ``generate``). A strategy that has a ``plugin`` can be joined with others: ``ewc+replay``.
    """

    summary: str = ""
    """One line for lists. Those in the catalogue have it there."""
    plugin: Callable[[Any], Any] | None = None
    """Hyperparameters -> the Avalanche plugin that is added to plain training."""
    first_of_plugins: bool = False
    """The plugin goes before all others: what is done to a minibatch (flips) is done to what it adds, too."""
    build: Build | None = None
    """Hyperparameters and the arguments of an Avalanche template (model, optimizer, criterion, train_mb_size,
    train_epochs, eval_mb_size, device, plugins, evaluator) -> the Avalanche strategy. The arguments also have, where
    ``needs_images`` is set, ``images``, the :class:`ImageSpec` of the stream, and ``seed``; where ``has_gan`` is,
    ``gan``, the protocol's :class:`GANSettings`, and ``classes``, how many there are."""
    generate: Build | None = None
    """The same where it is a generator that is judged; None if it cannot be asked for a class. Its arguments also have
    ``classifier`` and ``images_per_class`` of :class:`JudgedByClassifier`."""
    network: Callable[[Any, Callable[[], Any]], Any] | None = None
    """Hyperparameters, and what makes the protocol's network with new random values each time (its output layer, an
    nn.Linear called ``classifier``, with as many outputs as the largest label needs) -> the network that learns. None:
    the protocol's, with the heads that its scenario calls for."""
    hyperparameters: type[Hyperparameters] = NoHyperparameters
    search: Mapping[str, LogUniform] = field(default_factory=dict)
    """Hyperparameter -> the range in which one is chosen on the validation stream."""
    budget: Callable[[Any, GANSettings | None], Budget] = lambda h, gan: Budget()
    """Hyperparameters and the protocol's GAN -> what is not the protocol's to say."""
    check: Callable[[Any, int], None] = lambda h, experiences: None
    """Raises a ValueError if it cannot learn so many experiences with these hyperparameters."""
    counterpart: str = ""
    """The name of Avalanche's strategy of the same method, to compare with."""
    upper_bound: bool = False
    """It sees data that a continual learner would no longer have; tables keep it apart.

    Of this package's own strategies the catalogue says it."""
    whole_stream_at_once: bool = False
    """It is trained once, on all experiences together."""
    needs_task_labels: bool = False
    """It must be told the task of every sample, in testing, too."""
    needs_new_classes: bool = False
    """Every experience must bring classes that none before it had."""
    needs_images: bool = False
    """It makes images, and must know what they look like."""
    has_gan: bool = False
    """It trains the protocol's conditional GAN."""
    parts: tuple[Strategy, ...] = ()
    """Those that it joins; empty for one that stands alone."""
    name: str = ""
    """By which tables and records call it."""
    reference: str = ""
    """By which :func:`engrams.strategies.catalogue.get` finds it."""
    revision: int = 1
    """Of what it does: raised by one with a change after which the same seed ends in another record."""
    code: str = ""
    """A fingerprint of the file that an own strategy was read from; empty for those of the catalogue."""

    def __post_init__(self):
        if self.plugin is not None and self.build is not None:
            raise ValueError("a strategy has a plugin or a way to build it, not both")
        if self.plugin is None and self.build is None and self.generate is None:
            raise ValueError("a strategy needs a plugin (plugin=...) or a way to build it (build=...)")
        if not (isinstance(self.hyperparameters, type) and issubclass(self.hyperparameters, Hyperparameters)):
            raise ValueError("hyperparameters must be a subclass of engrams.strategies.Hyperparameters")
        if self.network is not None and self.build is None:
            raise ValueError("a strategy that brings its own network needs a way to build it (build=...)")
        for key, space in self.search.items():
            if not isinstance(space, LogUniform):
                raise ValueError(f"search[{key!r}] must be a LogUniform(low, high); got {space!r}")
            if not 0 < space.low < space.high < math.inf:
                raise ValueError(f"search[{key!r}] must be of numbers with 0 < low < high; got {space!r}")

    @property
    def has_solver(self) -> bool:
        """Tells whether it can learn to classify."""
        return self.plugin is not None or self.build is not None

    def make(self, hyperparameters: Hyperparameters, template: dict[str, Any]) -> SupervisedTemplate:
        """Returns the Avalanche strategy, ready to be trained.

        Args:
            hyperparameters: an instance of :attr:`hyperparameters`.
            template: the arguments of ``build``, above.
        """
        if self.plugin is None:
            assert self.build is not None
            return self.build(hyperparameters, template)
        from avalanche.training import Naive

        return Naive(**template | {"plugins": self.with_plugin(hyperparameters, template["plugins"])})

    def with_plugin(self, hyperparameters: Hyperparameters, plugins: list[Any]) -> list[Any]:
        """Returns ``plugins`` with this strategy's own among them."""
        assert self.plugin is not None
        own = [self.plugin(hyperparameters)]
        return own + plugins if self.first_of_plugins else plugins + own
