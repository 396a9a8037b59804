"""A protocol: the stream, the network, the optimiser and the budget of a comparison, and where each number is from.

The models of what a protocol file may hold. :mod:`engrams.benchmarks.protocols.registry` finds and reads the files.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from datetime import date, time
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from engrams.benchmarks.data import names as data_names
from engrams.reports.errors import UserError
from engrams.strategies import references
from engrams.strategies.contract import (
    Budget,
    GANSettings,
    Hyperparameters,
    LearningRate,
    SolverSchedule,
    Strategy,
    without_usual,
)
from engrams.strategies.references import BadReference

FOLDER = Path(__file__).parent
"""Of the protocols that come with Engrams."""
Scenario = Literal["task", "domain", "class"]
Judge = Literal["test", "validation"]
"""What a run is judged on; it is of a search's trials that the second is asked."""
Augmented = Literal["both", "stream", "buffer"]
Positive = Annotated[int, Field(ge=1)]
Degrees = Annotated[float, Field(allow_inf_nan=False)]


class ProtocolError(UserError):
    """A protocol file says something that cannot be; the message is one line naming the file and the line or key."""


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


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GrownTable(Table):
    """A table that has keys which it did not always have: a record names them only where they are not the default."""

    later: ClassVar[frozenset[str]]
    """Records made before there were these have none."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_usual(self, self.later, serialize(self))


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


Value = TypeVar("Value")
# Told apart by what is given, so that a bad value is complained of once. Tuples, since tables are hashed.
PerChannel = Annotated[
    Annotated[Value, Tag("one")] | Annotated[tuple[Value, ...], Field(strict=False, min_length=1), Tag("several")],
    Discriminator(_one_or_several),
]


class Images(Table):
    """What is done to images in [0, 1] before anything else: x -> (pad(x) - mean) / std.

    ``mean`` and ``std`` are one number, or one for each channel. Vectors are not padded, and may be standardised in
    place of ``mean`` and ``std``: every value by its own mean and standard deviation in the training data of the first
    experience.
    """

    pad: Annotated[int, Field(ge=0)] = 0
    mean: PerChannel[Annotated[float, Field(allow_inf_nan=False)]] = 0.0
    std: PerChannel[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = 1.0
    standardise: Literal["first-experience"] | None = None

    @model_validator(mode="after")
    def _one_of_two_ways(self) -> Images:
        if self.standardise and self.model_fields_set & {"mean", "std"}:
            raise ValueError("standardise goes without mean and std")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Records made before vectors could be learned have no ``standardise``."""
        unused = {"mean", "std"} if self.standardise else {"standardise"}
        return {key: value for key, value in serialize(self).items() if key not in unused}


class AnyStream(GrownTable):
    """``boundaries``: ``sharp``, or ``gradual``: around each boundary between two experiences is a transition.

    It is ``width`` times the smaller of the two experiences long, half of it on each side. Within it, the probability
    that a sample is the next experience's rises evenly from 0 to 1. The samples of an experience are learned in that
    order, in one epoch. What is judged on, and what is held out for choosing, stays as it is.
    """

    later = frozenset({"boundaries", "width"})
    boundaries: Literal["sharp", "gradual"] = "sharp"
    width: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _gradual_has_a_width(self) -> AnyStream:
        if (self.boundaries == "gradual") != (self.width is not None):
            raise ValueError("boundaries = 'gradual' and a width go together")
        return self


class PermutedStream(AnyStream):
    """Every experience is the whole data set under its own permutation of the pixels; the first is the identity.

    ``samples_per_experience``: of the training data, each experience has only so many samples, drawn by the seed for
    each anew: two experiences may have some in common. What is judged on stays whole. None: all.
    """

    later = AnyStream.later | {"samples_per_experience"}
    kind: Literal["permuted"]
    experiences: Annotated[int, Field(ge=2)]
    samples_per_experience: Positive | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]

    @property
    def scenarios(self) -> list[Scenario]:
        return ["domain"]


class RotatedStream(AnyStream):
    """Every experience is the whole data set, its images rotated by an angle of its own.

    The angles are drawn evenly between two, in degrees, counter-clockwise; a pixel is the nearest one of the image, or
    black. ``angles``: ``drawn``: each between the two. ``ascending``: the range has as many equal parts as there are
    experiences, and each one's angle is drawn from its own part (Lopez-Paz & Ranzato 2017).
    ``samples_per_experience``: as for permuted streams.
    """

    later = AnyStream.later | {"angles", "samples_per_experience"}
    kind: Literal["rotated"]
    experiences: Annotated[int, Field(ge=2)]
    samples_per_experience: Positive | None = None
    degrees: Annotated[tuple[Degrees, Degrees], Field(strict=False)]
    angles: Literal["drawn", "ascending"] = "drawn"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]

    @property
    def scenarios(self) -> list[Scenario]:
        return ["domain"]


class SplitStream(AnyStream):
    """Every experience is a few classes.

    ``choosing_experiences``: the first so many are for choosing hyperparameters alone, and a search learns nothing but
    them; a run learns those behind them (Chaudhry et al. 2019, section 5). A seeded order of classes then shuffles the
    classes of either part among themselves. 0: a search learns what a run does.
    """

    later = AnyStream.later | {"choosing_experiences"}
    kind: Literal["split"]
    scenarios: Annotated[list[Scenario], Field(min_length=1)]
    classes_per_experience: Positive
    class_order: Literal["in-order", "seeded"]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    choosing_experiences: Annotated[int, Field(ge=0)] = 0

    def experiences_of(self, classes: int, judge: Judge) -> range:
        """Returns which of the experiences of a data set are learned.

        Args:
            classes: of the data set.
            judge: ``test`` for a run, ``validation`` for a trial of a search.

        Raises:
            ProtocolError: the classes cannot be split so.
        """
        size = self.classes_per_experience
        if classes % size:
            raise ProtocolError(
                f"stream.classes_per_experience: {classes} classes cannot be split into experiences of {size}"
            )
        count, choosing = classes // size, self.choosing_experiences
        if choosing >= count:
            raise ProtocolError(f"stream.choosing_experiences: {choosing} of {count} leave none to be learned")
        if not choosing:
            return range(count)
        return range(choosing) if judge == "validation" else range(choosing, count)

    @field_validator("scenarios")
    @classmethod
    def _each_once(cls, scenarios: list[Scenario]) -> list[Scenario]:
        if len(set(scenarios)) < len(scenarios):
            raise ValueError("a scenario stands there twice")
        return scenarios


AVALANCHE = "avalanche"
"""What stands before the colon in the name of a benchmark of Avalanche's."""


class BenchmarkStream(AnyStream):
    """What somebody else's function makes: one of Avalanche's benchmarks, or one's own.

    The file names it by ``benchmark``, in place of ``dataset``; ``arguments`` are the function's. It prepares images by
    itself: ``images.mean`` and ``images.std`` only tell strategies that make images how.
    """

    kind: Literal["benchmark"]
    scenarios: Annotated[list[Scenario], Field(min_length=1, max_length=1)]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    arguments: dict[str, Any] = {}

    @field_validator("arguments")
    @classmethod
    def _no_dates(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for key, value in flattened(arguments).items():
            if isinstance(value, date | time):
                raise ValueError(f"{key} is a date or a time, which a record cannot hold; give it as a text")
        return arguments


MadeStream = PermutedStream | RotatedStream | SplitStream
"""Made here, of one data set."""
Stream = MadeStream | BenchmarkStream


class AnyNetwork(GrownTable):
    """``all_classes``: there is an output for every class of the stream from the start.

    Of class-incremental learning: none is masked; otherwise the output layer grows with the classes met. Of
    task-incremental learning on a split stream: one head for all tasks, learned as in class-incremental learning, and
    only where it is judged are the outputs of other tasks' classes left out (Buzzega et al. 2020); otherwise every task
    has a head.
    """

    later = frozenset({"all_classes"})
    all_classes: bool = False


class MLP(AnyNetwork):
    """A multi-layer perceptron with ReLU; the kind of network where none is named.

    ``initialisation``: ``pytorch``: of ``nn.Linear``; ``xavier``: weights even between plus and minus
    sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010), biases 0; a head that is added for a task, or grows, stays
    PyTorch's. In one pass at a small learning rate it matters.
    """

    later = AnyNetwork.later | {"initialisation"}
    # Not in the record: records of networks made before there were two kinds have none.
    kind: Literal["mlp"] = Field("mlp", exclude=True)
    hidden_size: Positive
    hidden_layers: Positive
    initialisation: Literal["pytorch", "xavier"] = "pytorch"


class CNN(AnyNetwork):
    """Convolutions 3x3 and max-pooling 2x2 ("M"), as VGG has them, then fully connected layers, all with ReLU."""

    kind: Literal["cnn"]
    convolutions: Annotated[tuple[Positive | Literal["M"], ...], Field(strict=False, min_length=1)]
    hidden_sizes: Annotated[tuple[Positive, ...], Field(strict=False)]


class ReducedResNet18(AnyNetwork):
    """ResNet-18 for images of 32x32 with batch norm and few channels (Lopez-Paz & Ranzato 2017, section 5).

    ``width``: channels of the first stage; the others have two, four and eight times as many. 20 in the source; 64
    makes it the whole ResNet-18 that Buzzega et al. 2020 have for such images.
    ``initialisation``: ``pytorch``: of ``nn.Conv2d``; ``chaudhry2019``: k x k convolutions have weights even between
    plus and minus 1 / sqrt(k * inputs), for 3x3 sqrt(3) times as wide (facebookresearch/agem, utils/resnet_utils.py).
    The batch norm behind takes the size of weights out again, so that a step turns these a third as far.
    ``batch_norm_eps``: what batch norm adds to a variance; 1e-5 in PyTorch, 1e-3 in TensorFlow and there.
    """

    later = AnyNetwork.later | {"initialisation", "batch_norm_eps"}
    kind: Literal["resnet18-reduced"]
    width: Positive
    initialisation: Literal["pytorch", "chaudhry2019"] = "pytorch"
    batch_norm_eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-5


class WideResNet(AnyNetwork):
    """A wide residual network for images of 32x32 (Zagoruyko & Komodakis 2016, arXiv 1605.07146): WRN-depth-widen.

    Three stages of (``depth`` - 4) / 6 blocks, of 16, 32 and 64 times ``widen_factor`` channels, without dropout.
    """

    kind: Literal["wide-resnet"]
    depth: Annotated[int, Field(ge=10)]
    widen_factor: Positive

    @field_validator("depth")
    @classmethod
    def _three_equal_stages(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError("the depth of a wide-resnet is 4 more than a multiple of 6, as in 16, 28 and 40")
        return depth


class OwnNetwork(AnyNetwork):
    """``module:function`` or ``file.py:function``, called with the shape of an input and the number of classes."""

    kind: str


def _kind_of_network(value: Any) -> str:
    kind = value.get("kind", "mlp") if isinstance(value, dict) else getattr(value, "kind", "mlp")
    return "own" if ":" in str(kind) else kind


Network = Annotated[
    Annotated[MLP, Tag("mlp")]
    | Annotated[CNN, Tag("cnn")]
    | Annotated[ReducedResNet18, Tag("resnet18-reduced")]
    | Annotated[WideResNet, Tag("wide-resnet")]
    | Annotated[OwnNetwork, Tag("own")],
    Discriminator(
        _kind_of_network,
        custom_error_type="no_such_kind",
        custom_error_message=(
            "there is no such kind of network; there are 'mlp', 'cnn', 'resnet18-reduced' and 'wide-resnet', and one's "
            "own as 'module:function' or 'file.py:function'"
        ),
    ),
]
KINDS = (
    *("permuted", "rotated", "split", "benchmark"),
    *("mlp", "cnn", "resnet18-reduced", "wide-resnet", "own"),
    *("one", "several"),
)
"""What pydantic puts between the keys of a problem where a table is of one of several kinds."""


class Training(GrownTable):
    """The budget of one experience. PyTorch's defaults but for the learning rate.

    ``schedule``: ``constant``; ``linear``: from the learning rate to zero over every experience; ``steps``: a tenth of
    it from the middle of every experience on, and a hundredth from three quarters on.
    ``reset_optimizer``: whether the optimiser's state (Adam's moments) starts afresh with every experience.
    ``momentum``: of SGD.
    ``horizontal_flips``: every training image is mirrored with probability 1/2 whenever it is used.
    ``random_crops``: it is padded by so many black pixels on all sides, and a window of its size cut out at random.
    ``augmented``: whether that is done to the new images alone (``stream``), to those alone that a buffer replays
    (``buffer``), or to both.
    ``iterations_per_batch``: how many steps in a row the solver takes on every minibatch; what is replayed beside it is
    drawn anew for each.
    ``learning_rate_of``: strategy -> its own learning rate, where a source has chosen one for each.
    ``precision``: ``float32``, or ``bf16``: the network's passes of training minibatches in bfloat16 where that is
    safe; faster on processors that have it, and another result.
    """

    later = frozenset({"momentum", "horizontal_flips", "random_crops", "augmented", "iterations_per_batch"}) | {
        "learning_rate_of",
        "precision",
    }
    optimizer: Literal["adam", "sgd"]
    learning_rate: LearningRate
    batch_size: Positive
    epochs: Positive
    schedule: SolverSchedule
    reset_optimizer: bool
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    horizontal_flips: bool = False
    random_crops: Annotated[int, Field(ge=0)] = 0
    augmented: Augmented = "both"
    iterations_per_batch: Positive = 1
    learning_rate_of: dict[str, LearningRate] = {}
    precision: Literal["float32", "bf16"] = "float32"

    def of_strategy(self, name: str) -> Training:
        """Returns that of one strategy."""
        rate = self.learning_rate_of.get(name, self.learning_rate)
        return self.model_copy(update={"learning_rate": rate, "learning_rate_of": {}})

    @property
    def augments(self) -> bool:
        return self.horizontal_flips or self.random_crops > 0

    @model_validator(mode="after")
    def _something_is_augmented(self) -> Training:
        if self.augmented != "both" and not self.augments:
            raise ValueError(f"augmented = {self.augmented!r} goes with horizontal_flips or random_crops")
        return self

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Training:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"{self.optimizer} takes no momentum")
        return self


class Generation(Table):
    """What is judged is not a solver but a generator: its images, asked for class by class.

    Network and training are then those of the solver that one of the strategies has besides its generator.
    """

    images_per_class: Positive


class Judging(Table):
    """What is measured besides the accuracy after every experience; it changes nothing of what is learned.

    ``every``: the accuracy on all experiences met is measured every so many steps of the optimiser, for the measures of
    De Lange et al. 2023. ``samples``: of how many test samples of each experience; all, if none are named.
    ``prequential``: every minibatch is predicted before it is learned from. ``window``: samples whose prequential
    accuracy is given one after another.
    """

    every: Positive | None = None
    samples: Positive | None = None
    prequential: bool = False
    window: Positive = 1000


class ProtocolFile(Table):
    title: str
    dataset: Annotated[str, Field(min_length=1)]
    """Checked when it is loaded. Of a ``benchmark``, its name."""
    images: Images = Images()
    stream: Annotated[Stream, Field(discriminator="kind")]
    network: Network
    training: Training
    generation: Generation | None = None
    judging: Judging | None = None
    gan: GANSettings | None = None
    strategies: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _benchmark_in_place_of_data_and_stream(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "benchmark" not in content:
            return content
        if "dataset" in content:
            raise ValueError("a protocol has a benchmark or a dataset, not both")
        rest = {key: value for key, value in content.items() if key != "benchmark"}
        stream = rest.get("stream", {})
        if isinstance(stream, dict):
            rest["stream"] = {"kind": "benchmark", **stream}
        return rest | {"dataset": content["benchmark"]}

    @model_validator(mode="after")
    def _benchmark_has_its_own_kind_of_stream(self) -> ProtocolFile:
        if self.stream.kind == "benchmark" and ":" not in self.dataset:
            raise ValueError(
                "stream.kind = 'benchmark' goes with benchmark = 'avalanche:NAME', 'module:function' or "
                "'file.py:function' in place of dataset"
            )
        if self.stream.kind == "benchmark" and self.images.pad:
            raise ValueError("images.pad: a benchmark prepares its images itself")
        return self

    @model_validator(mode="after")
    def _tasks_of_one_head_have_their_own_classes(self) -> ProtocolFile:
        stream = self.stream
        if self.network.all_classes and stream.kind != "split" and "task" in stream.scenarios:
            raise ValueError("network.all_classes with the scenario task goes with stream.kind = 'split'")
        return self

    @model_validator(mode="after")
    def _what_is_gradual_is_passed_once(self) -> ProtocolFile:
        if self.stream.boundaries == "gradual" and self.training.epochs > 1:
            raise ValueError(
                "stream.boundaries = 'gradual' goes with training.epochs = 1: a second epoch would go back to where "
                "the experience began"
            )
        return self

    @model_validator(mode="after")
    def _classes_can_be_asked_for(self) -> ProtocolFile:
        stream = self.stream
        known = isinstance(stream, SplitStream) and stream.scenarios == ["class"] and stream.class_order == "in-order"
        if self.generation and not (known and stream.boundaries == "sharp"):
            raise ValueError("[generation] needs a split stream, class-incremental, in order and with sharp boundaries")
        return self


class Choice(Table):
    """What a search chose for one strategy, and why."""

    hyperparameters: dict[str, Any]
    file: str = Field("", exclude=True)
    """Where it stands."""
    fingerprint: str = ""
    """Of everything else that decided the trials; see :meth:`Protocol.fingerprint`."""
    evidence: dict[str, Any]


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
    changed: dict[str, Any] = {}
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
            problem = problem_of(error)
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
                protocol says nothing, or whose classes do not tell the protocol's experiences apart.
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
        again = self.scenario != "class" or self.stream.boundaries == "gradual"
        if strategy.has_gan and again:  # a class met again is a new one, and nothing is replayed
            raise ProtocolError(f"{self.name}: {name} remembers classes: every experience must bring new ones")

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


def set_below(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Sets ``values[keys[0]][keys[1]]...``; tables on the way that are missing, or are none, are made."""
    *tables, last = keys
    for key in tables:
        inner = values.get(key)
        values[key] = dict(inner) if isinstance(inner, Mapping) else {}  # a copy: the file's own stays as it is
        values = values[key]
    values[last] = value


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flattened(value).items()}
        else:
            flat[key] = value
    return flat


MISSING = "missing"


class Problem(NamedTuple):
    """What is wrong with which settings, by dotted keys; without a key it is about several together."""

    keys: list[str]
    what: str

    def __str__(self) -> str:
        return ": ".join(filter(None, [", ".join(self.keys), self.what]))


def problem_of(error: ValidationError, kinds: Collection[str] = KINDS) -> Problem:
    """Returns one problem that pydantic found: what is wrong and which value was given.

    What is missing comes last, and all of it at once: ``key.key, key.key: missing``.

    Args:
        error: what pydantic raised.
        kinds: the values of ``kind``: pydantic names the chosen one between the keys; it is no key of the file.
    """
    problems = error.errors()
    wrong = next((problem for problem in problems if problem["type"] != "missing"), None)
    if wrong is None:
        return Problem([_key(problem, kinds) for problem in problems], MISSING)
    keys = list(filter(None, [_key(wrong, kinds)]))
    if wrong["type"] == "extra_forbidden":
        return Problem(keys, "unknown key")
    message = wrong["msg"].removeprefix("Value error, ")
    if not keys or isinstance(wrong["input"], dict):  # a file, a table: nobody wants to read all of it
        return Problem(keys, message)
    return Problem(keys, f"{message} (got {wrong['input']!r})")


def _key(problem: ErrorDetails, kinds: Collection[str]) -> str:
    """Returns the dotted key that a problem is about, without the kinds between; empty if it is about several."""
    return ".".join(str(key) for key in problem["loc"] if key not in kinds)
