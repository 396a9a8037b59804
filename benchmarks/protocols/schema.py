"""A protocol: the stream, the network, the optimiser and the budget of a comparison, and where each number is from.

``protocols/NAME.toml`` holds one protocol, or one for each of several scenarios (``NAME/task``, ...). Beside it,
``chosen/NAME.toml`` or ``chosen/NAME/SCENARIO.toml`` holds the hyperparameters that ``python -m benchmarks search``
chose on the validation stream, with their evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from engrams.benchmarks.data import names as data_names
from engrams.benchmarks.errors import UnknownName
from engrams.strategies import references
from engrams.strategies.catalogue import CATALOGUE, Build, GANSettings, Hyperparameters
from engrams.strategies.references import BadReference
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

FOLDER = Path(__file__).parent
Scenario = Literal["task", "domain", "class"]
Positive = Annotated[int, Field(ge=1)]


class ProtocolError(Exception):
    """A protocol file says something that cannot be; the message is one line naming the file and the line or key."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


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
        return {key: value for key, value in serialize(self).items() if key != "standardise" or value}


class PermutedStream(Table):
    """Every experience is the whole data set under its own permutation of the pixels; the first is the identity."""

    kind: Literal["permuted"]
    experiences: Annotated[int, Field(ge=2)]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]

    @property
    def scenarios(self) -> list[Scenario]:
        return ["domain"]


class SplitStream(Table):
    """Every experience is a few classes."""

    kind: Literal["split"]
    scenarios: Annotated[list[Scenario], Field(min_length=1)]
    classes_per_experience: Positive
    class_order: Literal["in-order", "seeded"]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]

    @field_validator("scenarios")
    @classmethod
    def _each_once(cls, scenarios: list[Scenario]) -> list[Scenario]:
        if len(set(scenarios)) < len(scenarios):
            raise ValueError("a scenario stands there twice")
        return scenarios


class MLP(Table):
    """A multi-layer perceptron with ReLU; the kind of network where none is named."""

    # Not in the record: records of networks made before there were two kinds have none.
    kind: Literal["mlp"] = Field("mlp", exclude=True)
    hidden_size: Positive
    hidden_layers: Positive


class CNN(Table):
    """Convolutions 3x3 and max-pooling 2x2 ("M"), as VGG has them, then fully connected layers, all with ReLU."""

    kind: Literal["cnn"]
    convolutions: Annotated[tuple[Positive | Literal["M"], ...], Field(strict=False, min_length=1)]
    hidden_sizes: Annotated[tuple[Positive, ...], Field(strict=False)]


class ReducedResNet18(Table):
    """ResNet-18 for images of 32x32 with batch norm and few channels (Lopez-Paz & Ranzato 2017, section 5).

    ``width``: channels of the first stage; the others have two, four and eight times as many.
    """

    kind: Literal["resnet18-reduced"]
    width: Positive


class OwnNetwork(Table):
    """``module:function`` or ``file.py:function``, called with the shape of an input and the number of classes."""

    kind: str


def _kind_of_network(value: Any) -> str:
    kind = value.get("kind", "mlp") if isinstance(value, dict) else getattr(value, "kind", "mlp")
    return "own" if ":" in str(kind) else kind


Network = Annotated[
    Annotated[MLP, Tag("mlp")]
    | Annotated[CNN, Tag("cnn")]
    | Annotated[ReducedResNet18, Tag("resnet18-reduced")]
    | Annotated[OwnNetwork, Tag("own")],
    Discriminator(
        _kind_of_network,
        custom_error_type="no_such_kind",
        custom_error_message=(
            "there is no such kind of network; there are 'mlp', 'cnn' and 'resnet18-reduced', and one's own as "
            "'module:function' or 'file.py:function'"
        ),
    ),
]
KINDS = ("permuted", "split", "mlp", "cnn", "resnet18-reduced", "own", "one", "several")
"""What pydantic puts between the keys of a problem where a table is of one of several kinds."""


class Training(Table):
    """The budget of one experience. PyTorch's defaults but for the learning rate.

    ``schedule``: ``constant``, or ``linear``: from the learning rate to zero over every experience.
    ``reset_optimizer``: whether the optimiser's state (Adam's moments) starts afresh with every experience.
    ``momentum``: of SGD.
    ``horizontal_flips``: every training image is mirrored with probability 1/2 whenever it is used.
    """

    optimizer: Literal["adam", "sgd"]
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    batch_size: Positive
    epochs: Positive
    schedule: Literal["constant", "linear"]
    reset_optimizer: bool
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    horizontal_flips: bool = False

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Training:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"{self.optimizer} takes no momentum")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Records made before there were these two have neither."""
        later = ("momentum", "horizontal_flips")
        return {key: value for key, value in serialize(self).items() if value or key not in later}


class Generation(Table):
    """What is judged is not a solver but a generator: its images, asked for class by class.

    Network and training are then those of the solver that one of the strategies has besides its generator.
    """

    images_per_class: Positive


class ProtocolFile(Table):
    title: str
    dataset: Annotated[str, Field(min_length=1)]
    """Checked when it is loaded."""
    images: Images = Images()
    stream: Annotated[PermutedStream | SplitStream, Field(discriminator="kind")]
    network: Network
    training: Training
    generation: Generation | None = None
    gan: GANSettings | None = None
    strategies: dict[str, dict[str, Any]] = {}
    sources: dict[str, str]

    @model_validator(mode="after")
    def _classes_can_be_asked_for(self) -> ProtocolFile:
        stream = self.stream
        known = isinstance(stream, SplitStream) and stream.scenarios == ["class"] and stream.class_order == "in-order"
        if self.generation and not known:
            raise ValueError("[generation] needs a split stream, class-incremental and in order")
        return self


class Choice(Table):
    """What a search chose for one strategy, and why."""

    hyperparameters: dict[str, Any]
    evidence: dict[str, Any]


class Protocol(Table):
    """One line of ``python -m benchmarks list``: everything that a run needs besides a strategy and a seed."""

    name: str
    title: str
    dataset: str
    scenario: Scenario
    images: Images
    stream: PermutedStream | SplitStream
    network: Network
    training: Training
    generation: Generation | None
    gan: GANSettings | None
    strategies: dict[str, dict[str, Any]]
    sources: dict[str, str]

    def hyperparameters_of(self, strategy: str, overrides: dict[str, Any] | None = None) -> Hyperparameters:
        """The strategy's hyperparameters under this protocol, checked.

        Args:
            strategy: a name in the catalogue.
            overrides: values to use in place of the protocol's (a search does).

        Raises:
            ProtocolError: one is missing, unknown or out of range; or as :meth:`builder`.
        """
        self.builder(strategy)
        values = self.strategies.get(strategy, {}) | (overrides or {})
        try:
            return CATALOGUE[strategy].hyperparameters.model_validate(values)
        except ValidationError as error:
            problem = first_problem(error)
            searched = problem.partition(":")[0] in CATALOGUE[strategy].search
            raise ProtocolError(
                f"{self.name}: strategies.{strategy}.{problem}; set it in the protocol"
                + (f" or run 'python -m benchmarks search {self.name} {strategy}'" if searched else "")
            ) from error

    def builder(self, strategy: str) -> Build:
        """How the strategy is built under this protocol.

        Raises:
            ProtocolError: it cannot be: it has no solver, or no generator that can be asked for a class, where it is
                this that is judged; it trains a conditional GAN of which the protocol says nothing, or whose classes
                do not tell the protocol's experiences apart.
        """
        entry = CATALOGUE[strategy]
        build = entry.generate if self.generation else entry.build
        if build is None:
            what = "a generator that can be asked for a class" if self.generation else "a solver"
            others = ", ".join(name for name, one in CATALOGUE.items() if one.generate)
            hint = f"; these have one: {others}" if self.generation else "; it runs under the generate-* protocols"
            raise ProtocolError(f"{self.name}: {strategy} has not got {what}{hint}")
        if entry.has_gan and self.gan is None:
            raise ProtocolError(f"{self.name}: {strategy} needs the settings of its GAN; add a table [gan]")
        if entry.has_gan and self.scenario != "class":  # a class met again is a new one, and nothing of it is replayed
            raise ProtocolError(f"{self.name}: {strategy} remembers classes: every experience must bring new ones")
        return build

    def deciding(self, strategy: str) -> dict[str, Any]:
        """The part that decides a strategy's result, for the record."""
        decides = {"dataset", "scenario", "images", "stream", "network", "training"}
        if self.generation:
            decides.add("generation")
        if CATALOGUE[strategy].has_gan:
            decides.add("gan")
        # As JSON has it: a tuple in a record read back is a list.
        chosen = self.model_dump(mode="json", include=decides)
        chosen["stream"].pop("scenarios", None)  # the file's others; this one's is in "scenario"
        return chosen | self._own()

    def _own(self) -> dict[str, Any]:
        """What is one's own, by a name that says nothing of where it lies, and by a fingerprint of its content."""
        own: dict[str, Any] = {}
        if data_names.is_own(self.dataset):
            own["dataset"] = data_names.short(self.dataset)
            own["dataset_fingerprint"] = data_names.fingerprint(self.dataset)
        if isinstance(self.network, OwnNetwork):
            kind = self.network.kind
            try:
                own["network"] = {"kind": references.short(kind), "fingerprint": references.fingerprint(kind)}
            except BadReference as error:
                raise ProtocolError(f"{self.name}: network.kind: {error}") from error
        return own


COPIED = ("title", "dataset", "images", "stream", "network", "training", "generation", "gan")
"""From a file to each of its protocols."""


def names() -> list[str]:
    """Every protocol's name, sorted."""
    return sorted(protocols())


def get(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        UnknownName: there is no such protocol; a near name is suggested.
        ProtocolError: a protocol file is wrong.
    """
    if name not in protocols():
        raise UnknownName("protocol", name, names())
    return protocols()[name]


@cache
def protocols() -> dict[str, Protocol]:
    return {protocol.name: protocol for path in sorted(FOLDER.glob("*.toml")) for protocol in read(path)}


def read(path: Path) -> list[Protocol]:
    """The protocols of one file, one a scenario; of a single scenario the name says nothing.

    Raises:
        ProtocolError: the file is no TOML, has an unknown key, a value of the wrong type or out of range, a
            strategy that does not exist, or a number without a source.
    """
    try:
        file = ProtocolFile.model_validate(with_own_paths(read_toml(path), path))
    except ValidationError as error:
        raise ProtocolError(f"{path}: {first_problem(error)}") from error
    found = []
    for scenario in file.stream.scenarios:
        name = path.stem if len(file.stream.scenarios) == 1 else f"{path.stem}/{scenario}"
        chosen_file = chosen_path(name, path.parent)
        chosen = {strategy: choice.hyperparameters for strategy, choice in read_chosen(chosen_file).items()}
        _check_strategies(chosen_file, chosen)
        protocol = Protocol(
            name=name,
            scenario=scenario,
            strategies={
                strategy: file.strategies.get(strategy, {}) | chosen.get(strategy, {})
                for strategy in file.strategies | chosen
            },
            **{key: getattr(file, key) for key in COPIED},
            sources=file.sources,
        )
        found.append(protocol)
    _check_strategies(path, file.strategies)
    _check_sources(path, file)
    return found


def with_own_paths(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a protocol file's content with the paths of one's own data and network relative to the file's folder.

    Raises:
        ProtocolError: what should name a function cannot.
    """
    changed = dict(content)
    dataset, network = content.get("dataset"), content.get("network")
    try:
        if isinstance(dataset, str):
            changed["dataset"] = data_names.absolute(dataset, path.parent)
        if isinstance(network, dict) and ":" in str(network.get("kind")):
            changed["network"] = network | {"kind": references.absolute(str(network["kind"]), path.parent)}
    except BadReference as error:
        raise ProtocolError(f"{path}: {error}") from error
    return changed


def chosen_path(protocol: str, folder: Path = FOLDER) -> Path:
    """Where the hyperparameters chosen on a protocol's validation stream are kept."""
    return folder / "chosen" / f"{protocol}.toml"


def read_chosen(path: Path) -> dict[str, Choice]:
    """Strategy -> what was chosen for it; empty if nothing was yet.

    Raises:
        ProtocolError: the file is not what a search writes.
    """
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, Choice]).validate_python(read_toml(path))
    except ValidationError as error:
        raise ProtocolError(f"{path}: {first_problem(error)}; delete it and search again") from error


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content.

    Raises:
        ProtocolError: it is no TOML, or cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:  # its message names line and column
        raise ProtocolError(f"{path}: not valid TOML: {error}") from error
    except (UnicodeDecodeError, OSError) as error:
        raise ProtocolError(f"{path}: cannot be read: {error}") from error


def first_problem(error: ValidationError, kinds: Collection[str] = KINDS) -> str:
    """``key.key: what is wrong (got VALUE)`` of one problem that pydantic found; what is missing comes last.

    Args:
        error: what pydantic raised.
        kinds: the values of ``kind``: pydantic names the chosen one between the keys; it is no key of the file.
    """
    problem = min(error.errors(), key=lambda problem: problem["type"] == "missing")
    keys = [str(key) for key in problem["loc"] if key not in kinds]
    got = "" if problem["type"] in ("missing", "extra_forbidden") else f" (got {problem['input']!r})"
    message = {"extra_forbidden": "unknown key", "missing": "missing"}.get(problem["type"], problem["msg"])
    return f"{'.'.join(keys)}: {message}{got}"


def _check_sources(path: Path, file: ProtocolFile) -> None:
    """Every number has a source: an entry for its dotted key or for a table above it."""
    tables = file.model_dump(
        mode="json",
        include={"images", "stream", "network", "training", "generation", "gan", "strategies"},
        exclude_unset=True,
    )
    numbers = list(_numbers(tables))
    for key in numbers:
        if not any(key == source or key.startswith(f"{source}.") for source in file.sources):
            raise ProtocolError(f"{path}: {key} has no source; say in [sources] where the number comes from")
    for source in file.sources:
        if not any(key == source or key.startswith(f"{source}.") for key in [*numbers, "dataset"]):
            raise ProtocolError(f"{path}: sources.{source}: unknown key: there is no such number in this file")


def _numbers(value: Any, key: str = ""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        yield from {key for inner in value if isinstance(inner, int | float)}
    elif isinstance(value, int | float):
        yield key


def _check_strategies(path: Path, strategies: dict[str, dict[str, Any]]) -> None:
    """What is given must exist and be in range; what is missing is missed only when the strategy is run."""
    for strategy, values in strategies.items():
        if strategy not in CATALOGUE:
            unknown = UnknownName("strategy", strategy, CATALOGUE)
            raise ProtocolError(f"{path}: strategies.{strategy}: {unknown}")
        try:
            CATALOGUE[strategy].hyperparameters.model_validate(values)
        except ValidationError as error:
            if any(problem["type"] != "missing" for problem in error.errors()):
                raise ProtocolError(f"{path}: strategies.{strategy}.{first_problem(error)}") from error
