"""What a protocol's file may hold: its tables, checked by pydantic.

:mod:`engrams.benchmarks.protocols.registry` finds and reads the files, and makes a
:class:`engrams.benchmarks.protocols.protocol.Protocol` of each.
"""

from __future__ import annotations

from datetime import date, time
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from engrams.benchmarks.protocols.dotted import flattened
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.strategies.contract import (
    GANSettings,
    LearningRate,
    SolverSchedule,
    without_usual,
)

Scenario = Literal["task", "domain", "class"]
Judge = Literal["test", "validation"]
"""What a run is judged on; it is of a search's trials that the second is asked."""
Augmented = Literal["both", "stream", "buffer"]
Positive = Annotated[int, Field(ge=1)]
Degrees = Annotated[float, Field(allow_inf_nan=False)]


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
    ``prequential``: every sample is predicted before it is learned from for the first time. ``window``: samples whose
    prequential accuracy is given one after another.
    """

    every: Positive | None = None
    samples: Positive | None = None
    prequential: bool = False
    window: Positive = 1000

    @model_validator(mode="after")
    def _samples_are_looked_at(self) -> Judging:
        if self.samples is not None and self.every is None:
            raise ValueError("samples are those that are looked at every so many steps: set every, too")
        if self.window != type(self).model_fields["window"].default and not self.prequential:
            raise ValueError("window is of the prequential accuracy: set prequential, too")
        return self


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
        if self.stream.kind == "benchmark" and (self.images.pad or self.images.standardise):
            which = "pad" if self.images.pad else "standardise"
            raise ValueError(f"images.{which}: a benchmark prepares its images itself")
        return self

    @model_validator(mode="after")
    def _tasks_of_one_head_have_their_own_classes(self) -> ProtocolFile:
        stream = self.stream
        if self.network.all_classes and stream.kind != "split" and "task" in stream.scenarios:
            raise ValueError("network.all_classes with the scenario task goes with stream.kind = 'split'")
        return self

    @model_validator(mode="after")
    def _generators_are_not_judged_while_they_learn(self) -> ProtocolFile:
        if self.generation is not None and self.judging is not None:
            raise ValueError("judging is of what a classifier answers; a protocol with generation has none")
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
    """Of everything else that decided the trials, as ``Protocol.fingerprint`` returns it."""
    evidence: dict[str, Any]

    def end_of_range(self, key: str) -> str:
        """Returns which end of what was tried a chosen value lies at, ``lower`` or ``upper``; empty if at neither.

        A better one may lie beyond. At an end is what lies within a factor of two of it.

        Args:
            key: of the hyperparameter.
        """
        value = self.hyperparameters[key]
        tried = [trial[key] for trial in self.evidence.get("validation_ACC", []) if key in trial]
        if len(set(tried)) < 2:
            return ""
        return "lower" if value < 2 * min(tried) else "upper" if 2 * value > max(tried) else ""
