"""Records on disk: OUT/PROTOCOL/STRATEGY/SEED/record.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from engrams.reports.anytime import Anytime, Prequential
from engrams.reports.errors import UserError
from engrams.reports.matrix import METRICS

if TYPE_CHECKING:
    import pandas as pd

RECORD = "record.json"
Model = TypeVar("Model", bound=BaseModel)


class RecordError(UserError):
    """A record cannot be read; the message is one line that names the file and says what to do."""


class Generated(BaseModel):
    """What a classifier trained on real data makes of a generator's images.

    ``classifier_accuracy`` is the classifier's own on real test images. ``class_shares[i][c]``, of the replay of a
    solver, is the share of images taken for class c after experience i, in [0, 1]. Where the generator itself is
    judged (its accuracy matrix has what it was asked for), ``frechet_distance[i]`` is the distance from the real test
    images of the classes so far, in the classifier's features, and ``reverse_accuracy`` that of a classifier trained
    on what was generated in the end, on real test images.
    """

    model_config = ConfigDict(extra="forbid")

    class_shares: list[list[float]] = []
    frechet_distance: list[float] = []
    reverse_accuracy: float | None = None
    classifier_accuracy: float

    @model_serializer(mode="wrap")
    def _without_what_there_is_not(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value not in ([], None)}


class Record(BaseModel):
    """Everything one run leaves: what decided it, what came out, and on what it ran.

    ``accuracy_matrix`` holds fractions in [0, 1]; it and ``metrics`` are empty where the run failed, and ``reason``
    then says why. ``variant`` names the settings that are not the protocol's own (``ewc_lambda=10``); ``upper_bound``
    is set where the strategy sees data that a continual learner would no longer have. ``generated`` is there where the
    strategy has a generator, ``anytime`` and ``prequential`` where the protocol's ``[judging]`` asks for them.
    ``seconds`` is the wall-clock time of training and evaluation.
    """

    model_config = ConfigDict(extra="forbid")

    protocol: str
    strategy: str
    variant: str = ""
    seed: int
    upper_bound: bool = False
    status: str
    reason: str | None = None
    accuracy_matrix: list[list[float]] = []
    accuracy_at_initialisation: list[float] = []
    metrics: dict[str, float | None] = {}
    generated: Generated | None = None
    anytime: Anytime | None = None
    prequential: Prequential | None = None
    hyperparameters: dict[str, Any]
    seconds: float
    environment: dict[str, Any]

    @model_validator(mode="after")
    def _complete(self) -> Record:
        if self.status not in ("complete", "failed"):
            raise ValueError(f"status must be complete or failed, got {self.status!r}")
        if self.complete and (
            not self.accuracy_matrix or set(self.metrics) != set(METRICS) or self.metrics["ACC"] is None
        ):
            raise ValueError("a complete record has an accuracy matrix and all metrics")
        return self

    @model_serializer(mode="wrap")
    def _without_what_there_is_not(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = {"variant": "", "upper_bound": False, "generated": None, "anytime": None, "prequential": None}
        return {key: value for key, value in serialize(self).items() if left_out.get(key, ...) != value}

    @property
    def row(self) -> str:
        """What tables call the strategy with these settings."""
        return f"{self.strategy} {self.variant}".strip()

    @property
    def along_the_way(self) -> dict[str, float]:
        """What was measured while the stream was learned, by name; empty where nothing was."""
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
    return out / protocol / strategy.replace(":", ".") / variant.replace("/", "-").replace(":", ".") / str(seed)


def write(record: Record, folder: Path) -> Path:
    """Write a record whole or not at all: a run cut short leaves the old file, never half a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    write_json(path, record.model_dump())
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Exchange a file's content in one step."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        RecordError: it is cut short, or not a record.
    """
    return read_json(path, Record, "is no record")


def read_json(path: Path, model: type[Model], is_none: str) -> Model:
    """Read a JSON file as a pydantic model.

    Args:
        path: of the file.
        model: what it holds.
        is_none: what to say of a file that holds something else.

    Raises:
        RecordError: it is cut short, cannot be read, or holds something else.
    """
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is cut short or no JSON ({error}); delete it and run again") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise RecordError(f"{path} {is_none} ({key + ': ' if key else ''}{problem['msg']}); delete it") from error


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
            RecordError: there is no complete record of it.
        """
        chosen = [one for one in self if (one.protocol, one.row) == (protocol, strategy) and one.complete]
        if not chosen:
            raise RecordError(f"there is no complete record of {strategy} on {protocol}")
        return np.array([one.accuracy_matrix for one in sorted(chosen, key=lambda one: one.seed)])

    def _repr_html_(self) -> str:
        return self.frame().to_html()


def read_records(*folders: str | Path, mark: bool = True) -> Records:
    """Returns every record below some folders, or of projects of W&B, by protocol, strategy and seed.

    ``wandb:ENTITY/PROJECT`` reads the records that runs have left there. Where there are several folders, each row says
    in parentheses which one it is of, unless ``mark`` is False: then they are taken as one.

    Raises:
        RecordError: there is no such folder, none has a record, or a record cannot be read.
    """
    records = Records()
    for folder in folders:
        found = read_all(Path(folder))
        if len(folders) > 1 and mark:
            found = [one.model_copy(update={"variant": f"{one.variant} ({folder})".strip()}) for one in found]
        records += found
    if not records:
        raise RecordError(f"there are no records in {', '.join(map(str, folders))}")
    return records


def read_all(out: Path) -> list[Record]:
    """Returns every record below a folder, or of ``wandb:ENTITY/PROJECT``, by protocol, strategy and seed.

    In a folder that has no records, W&B's offline files are read.

    Raises:
        RecordError: there is no such folder, or a record in it cannot be read.
    """
    from engrams.reports.wandb import read as wandb

    if str(out).startswith(wandb.SOURCE):
        found = wandb.records_of_project(str(out))
    elif not out.is_dir():
        raise RecordError(f"there is no folder {out}; 'engrams run' makes one")
    else:
        found = list(_all(out)) or wandb.records_of_files(out)
    return sorted(found, key=lambda record: (record.protocol, record.strategy, record.variant, record.seed))


def _all(out: Path) -> Iterator[Record]:
    for path in out.rglob(RECORD):
        if "wandb" not in path.relative_to(out).parts:  # W&B keeps copies of its artifacts
            yield read(path)
