"""Records on disk: OUT/PROTOCOL/STRATEGY/SEED/record.json.

What a file says is believed only if it is whole (its checksum is that of its content), if it can be (the accuracy
matrix has the shape and the range of one, and the metrics are those of the matrix), and if it lies where the run that
it names lies.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from engrams.reports import wandb
from engrams.reports.anytime import Anytime, Prequential
from engrams.reports.costs import Costs
from engrams.reports.errors import UserError
from engrams.reports.files import found_below, write_json
from engrams.reports.generators import ByClass
from engrams.reports.matrix import METRICS, metrics
from engrams.reports.privacy import Privacy

if TYPE_CHECKING:
    import pandas as pd

RECORD = "record.json"
CHECKPOINT = "checkpoint"
"""Beside where the record will be, of a run that goes on."""
LONGEST_NAME = 120
"""Bytes of one part of a path; file systems take 255, and temporary files add to it."""
SCHEMA = 2
"""Of the files written here. Files of version 1 have no checksum, and nobody wrote down which version they are."""
MEND = "move it away, or give the command that made it again: it keeps the file beside and does the run anew"
TOLERANCE = 1e-9
"""Of a metric against its matrix: another NumPy may add in another order."""
Model = TypeVar("Model", bound=BaseModel)


class RecordError(UserError):
    """A record cannot be read; the message is one line that names the file and says what to do."""


class NewerRecord(RecordError):
    """A record was written by a later Engrams: nothing is wrong with it."""


class Generated(BaseModel):
    """What a classifier trained on real data makes of a generator's images.

    ``classifier_accuracy`` is the classifier's own on real test images. ``class_shares[i][c]``, of the replay of a
    solver, is the share of images taken for class c after experience i, in [0, 1]. Where the generator itself is
    judged (its accuracy matrix has what it was asked for), ``frechet_distance[i]`` is the distance from the real test
    images of the classes so far, in the classifier's features, and ``reverse_accuracy`` that of a classifier trained
    on what was generated in the end, on real test images; ``frechet_by_class[i][c]`` and ``reverse_by_class[i][c]``
    say both after experience i for the real test images of class c alone, None where it was not learned yet.

    ``precision[i]`` and ``recall[i]`` are Kynkäänniemi et al. 2019's, in [0, 1], of the classes learned by experience
    i (None of too few images); ``privacy`` says how near its images lie, in the end, to those that it was trained on.
    Older records have none of these. Of vectors, ``spread[i]`` is the variance of what is made after experience i, the
    mean over its values, relative to that of the training data of the classes so far; 1 where nothing fades.
    """

    model_config = ConfigDict(extra="forbid")

    class_shares: list[list[float]] = []
    frechet_distance: list[float] = []
    reverse_accuracy: float | None = None
    frechet_by_class: ByClass = []
    reverse_by_class: ByClass = []
    precision: list[float | None] = []
    recall: list[float | None] = []
    privacy: Privacy | None = None
    spread: list[Annotated[float, Field(ge=0)]] = []
    classifier_accuracy: float

    @model_serializer(mode="wrap")
    def _without_what_there_is_not(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value not in ([], None)}


class Record(BaseModel):
    """Everything one run leaves: what decided it, what came out, and on what it ran.

    ``accuracy_matrix`` holds fractions in [0, 1]; it and ``metrics`` are empty where the run failed, and ``reason``
    then says why. ``undefined`` says why a metric is None. ``variant`` names the settings that are not the protocol's
    own (``ewc_lambda=10``); ``upper_bound`` is set where the strategy sees data that a continual learner would no
    longer have. ``generated`` is there where the strategy has a generator, ``anytime`` and ``prequential`` where the
    protocol's ``[judging]`` asks for them. ``seconds`` is the wall-clock time of training and evaluation; what else it
    took is in ``costs``, which older records have none of. ``experiences`` says how many are judged. ``revisions`` has
    the revision of every part of the code that decided the result (strategies by name, ``classifier`` for the judge of
    generated images); those that it does not name are of revision 1.
    """

    model_config = ConfigDict(extra="forbid")

    protocol: str
    strategy: str
    variant: str = ""
    seed: int
    upper_bound: bool = False
    experiences: int | None = None
    status: str
    reason: str | None = None
    accuracy_matrix: list[list[float]] = []
    accuracy_at_initialisation: list[float] = []
    metrics: dict[str, float | None] = {}
    undefined: dict[str, str] = {}
    generated: Generated | None = None
    anytime: Anytime | None = None
    prequential: Prequential | None = None
    costs: Costs | None = None
    hyperparameters: dict[str, Any]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    environment: dict[str, Any]
    revisions: dict[str, int] = {}

    @model_validator(mode="after")
    def _complete(self) -> Record:
        if self.status not in ("complete", "failed"):
            raise ValueError(f"status must be complete or failed, got {self.status!r}")
        if self.complete and (
            not self.accuracy_matrix or set(self.metrics) != set(METRICS) or self.metrics["ACC"] is None
        ):
            raise ValueError("a complete record has an accuracy matrix and all metrics")
        if not isinstance(self.environment.get("versions", {}), dict):
            raise ValueError("environment.versions must be a table")
        return self

    @model_serializer(mode="wrap")
    def _without_what_there_is_not(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = {
            "variant": "",
            "upper_bound": False,
            "experiences": None,
            "undefined": {},
            "generated": None,
            "anytime": None,
            "prequential": None,
            "costs": None,
            "revisions": {},
        }
        return {key: value for key, value in serialize(self).items() if left_out.get(key, ...) != value}

    @property
    def row(self) -> str:
        """Returns what tables call the strategy with these settings."""
        return f"{self.strategy} {self.variant}".strip()

    @property
    def device(self) -> str:
        """Returns the device of the run, ``cpu`` or a GPU's name, and ``not recorded`` for old records."""
        return str(self.environment.get("device", "not recorded"))

    @property
    def along_the_way(self) -> dict[str, float]:
        """Returns what was measured while the stream was learned, by name; empty where nothing was."""
        found = dict(self.anytime.measures) if self.anytime else {}
        if self.prequential:
            found["prequential"] = self.prequential.accuracy
        return {name: value for name, value in found.items() if value is not None}

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def acc(self) -> float:
        """ACC of a complete record."""
        acc = self.metrics["ACC"]
        assert acc is not None
        return acc

    @property
    def on_test_data(self) -> bool:
        """False for a trial of a search, which is judged on validation data."""
        return self.hyperparameters.get("judge", "test") == "test"


def folder_of(out: Path, protocol: str, strategy: str, seed: int, variant: str = "") -> Path:
    """Returns where a run's record and its W&B files lie."""
    return out / protocol / _as_name(strategy) / _as_name(variant) / str(seed)


def _as_name(text: str) -> str:
    """The text as one part of a path; what is too long for a file system is cut, and told apart by a digest."""
    name = text.replace("/", "-").replace(":", ".")
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME // 2]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# --- one file ---------------------------------------------------------------------------------------------------------


def write(record: Record, folder: Path) -> Path:
    """Writes a record whole or not at all: a run cut short leaves the old file, never half a new one.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    content = {"schema_version": SCHEMA, **record.model_dump()}
    write_json(path, content | {"checksum": checksum(content)})
    return path


def checksum(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a file's values, however they are laid out, but for the checksum itself."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(path: Path) -> Record:
    """Reads one record.

    Raises:
        NewerRecord: it was written by a later Engrams.
        RecordError: it is cut short, not a record, or not to be believed; see :func:`record_of`.
    """
    content = _read_json(path, MEND)
    try:
        record = record_of(content)
    except NewerRecord as error:
        raise NewerRecord(f"{path} {error}") from None
    except ValueError as error:
        raise RecordError(f"{path} is no record ({_problem(error)}); {MEND}") from error
    folders, its_own = path.absolute().parent.parts, _run_folder(record)
    if "schema_version" not in content and not record.variant and folders[-len(its_own) :] != its_own:
        # Records of studies did not say their variant then: the folder alone did.
        record = record.model_copy(update={"variant": folders[-2]})
        its_own = _run_folder(record)
    if folders[-len(its_own) :] != its_own:
        raise RecordError(f"{path} is of another run ({'/'.join(its_own)}); {MEND}")
    return record


def _run_folder(record: Record) -> tuple[str, ...]:
    return folder_of(Path(), record.protocol, record.strategy, record.seed, record.variant).parts


def record_of(content: Any) -> Record:
    """Returns the record that a file's content is, checked.

    Raises:
        NewerRecord: it is of a later version.
        ValueError: it is no record, its checksum is another's, its accuracy matrix is ragged, of the wrong size, or has
            what is no fraction, or its metrics are not those of the matrix.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no table")
    version = content.get("schema_version", 1)
    if type(version) is not int or version < 1:
        raise ValueError(f"its schema_version is {version!r}")
    if version > SCHEMA:
        raise NewerRecord(f"is of schema version {version}, this Engrams reads up to {SCHEMA}; install a later one")
    if version != 1 and content.get("checksum") != checksum(content):
        raise ValueError("its checksum is not that of its content")
    record = Record.model_validate({k: v for k, v in content.items() if k not in ("schema_version", "checksum")})
    if record.complete:
        _check_result(record)
    return record


def _check_result(record: Record) -> None:
    lengths = {len(row) for row in record.accuracy_matrix}
    if len(lengths) != 1:
        raise ValueError("accuracy_matrix is ragged")
    matrix = np.array(record.accuracy_matrix)
    baseline = np.array(record.accuracy_at_initialisation)
    for name, values in (("accuracy_matrix", matrix), ("accuracy_at_initialisation", baseline)):
        if not ((values >= 0) & (values <= 1)).all():  # no NaN is
            raise ValueError(f"{name} has values outside [0, 1]")
    promised = _experiences(record)
    if promised is not None and matrix.shape[1] != promised:
        raise ValueError(f"accuracy_matrix judges {matrix.shape[1]} experiences, the protocol has {promised}")
    for name, value in metrics(record.accuracy_matrix, record.accuracy_at_initialisation or None).items():
        found = record.metrics[name]
        if (value is None) != (found is None) or (value is not None and not abs(value - (found or 0.0)) <= TOLERANCE):
            raise ValueError(f"metrics.{name} is {found}, its accuracy_matrix gives {value}")


def _experiences(record: Record) -> int | None:
    """How many a record has to judge; None where that is not known here."""
    if record.experiences is not None:
        return record.experiences
    stream = record.hyperparameters.get("stream")
    promised = stream.get("experiences") if isinstance(stream, dict) else None
    first = record.hyperparameters.get("first_experiences")
    return min(promised, first) if isinstance(promised, int) and isinstance(first, int) else promised


def read_json(path: Path, model: type[Model], is_none: str) -> Model:
    """Reads a JSON file as a pydantic model.

    Args:
        path: of the file.
        model: what it holds.
        is_none: what to say of a file that holds something else.

    Raises:
        RecordError: it is cut short, cannot be read, or holds something else.
    """
    try:
        return model.model_validate(_read_json(path, "delete it and run again"))
    except ValidationError as error:
        raise RecordError(f"{path} {is_none} ({_problem(error)}); delete it") from error


def _read_json(path: Path, mend: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # neither JSON nor text; or one that is nested without end
        raise RecordError(f"{path} is cut short or no JSON ({error}); {mend}") from error


def _problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key + ': ' if key else ''}{problem['msg']}"


# --- many -------------------------------------------------------------------------------------------------------------


class Records(list[Record]):
    """Records of runs, as a table and as arrays."""

    def frame(self) -> pd.DataFrame:
        """Returns one row a run: what it was, how it ended, its metrics (fractions, NaN where not defined), seconds."""
        import pandas as pd  # here: a table in the terminal does without, and comes sooner

        return pd.DataFrame(
            [
                {
                    "protocol": record.protocol,
                    "strategy": record.row,
                    "seed": record.seed,
                    "status": record.status,
                    **{name: record.metrics.get(name) for name in METRICS},
                    "seconds": record.seconds,
                    "upper_bound": record.upper_bound,
                    "reason": record.reason,
                }
                for record in self
            ],
            columns=[
                *("protocol", "strategy", "seed", "status"),
                *METRICS,
                *("seconds", "upper_bound", "reason"),
            ],
        ).astype(dict.fromkeys(METRICS, float))

    def matrices(self, protocol: str, strategy: str) -> NDArray[np.float64]:
        """Returns the accuracy matrices of the complete runs of one row, [seeds, trained, judged], by seed.

        Args:
            protocol: of the runs.
            strategy: as :meth:`frame` names it.

        Raises:
            RecordError: there is no complete record of it, or its seeds were run under different settings.
        """
        from engrams.reports.pages.comparison import complete_by_row  # here: that module imports this one

        chosen = complete_by_row(one for one in self if (one.protocol, one.row) == (protocol, strategy)).get(
            (protocol, strategy)
        )
        if not chosen:
            raise RecordError(f"there is no complete record of {strategy} on {protocol}")
        return np.array([one.accuracy_matrix for one in sorted(chosen, key=lambda one: one.seed)])

    def _repr_html_(self) -> str:
        return self.frame().to_html()


def read_records(*folders: str | Path, mark: bool = True, damaged: list[RecordError] | None = None) -> Records:
    """Returns every record below some folders, or of projects of W&B, by protocol, strategy and seed.

    ``wandb:ENTITY/PROJECT`` reads the records that runs have left there. Where there are several folders, each row says
    in parentheses which one it is of, unless ``mark`` is False: then they are taken as one.

    A record that cannot be read, or is not to be believed, is left out: ``damaged`` gets why, or a warning says it.

    Raises:
        RecordError: there is no such folder, or none has a record that can be read.
    """
    records = Records()
    left_out: list[RecordError] = []
    for folder in folders:
        found = read_all(Path(folder), left_out)
        if len(folders) > 1 and mark:
            found = [one.model_copy(update={"variant": f"{one.variant} ({folder})".strip()}) for one in found]
        records += found
    if not records:
        if left_out:
            raise left_out[0]
        raise RecordError(f"there are no records in {', '.join(map(str, folders))}")
    if damaged is not None:
        damaged += left_out
    else:
        for error in left_out:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return records


def read_all(out: Path, damaged: list[RecordError] | None = None) -> list[Record]:
    """Returns every record below a folder, or of ``wandb:ENTITY/PROJECT``, by protocol, strategy and seed.

    In a folder that has no records, W&B's offline files are read.

    Args:
        out: the folder.
        damaged: gets why a record is left out; None raises it.

    Raises:
        RecordError: there is no such folder; without ``damaged``, a record in it cannot be read.
    """
    from engrams.reports.wandb import read as wandb

    before = len(damaged or ())
    if str(out).startswith(wandb.SOURCE):
        found = wandb.records_of_project(str(out), damaged)
    elif not out.is_dir():
        raise RecordError(f"there is no folder {out}; 'engrams run' makes one")
    else:
        found = list(_all(out, damaged))
        if not found and len(damaged or ()) == before:
            found = wandb.records_of_files(out)
    return sorted(found, key=lambda record: (record.protocol, record.strategy, record.variant, record.seed))


def paths_below(out: Path) -> Iterator[Path]:
    """Yields where records lie below a folder."""
    for path in found_below(out, RECORD):
        if wandb.FOLDER not in path.relative_to(out).parts:
            yield path


def _all(out: Path, damaged: list[RecordError] | None) -> Iterator[Record]:
    for path in paths_below(out):
        try:
            yield read(path)
        except RecordError as error:
            if damaged is None:
                raise
            damaged.append(error)
