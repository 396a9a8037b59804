"""Records on disk: OUT/PROTOCOL/STRATEGY/SEED/record.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from engrams.reports.matrix import METRICS
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

RECORD = "record.json"
Model = TypeVar("Model", bound=BaseModel)


class RecordError(Exception):
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
    then says why. ``generated`` is there where the strategy has a generator. ``seconds`` is the wall-clock time of
    training and evaluation.
    """

    model_config = ConfigDict(extra="forbid")

    protocol: str
    strategy: str
    seed: int
    status: str
    reason: str | None = None
    accuracy_matrix: list[list[float]] = []
    accuracy_at_initialisation: list[float] = []
    metrics: dict[str, float | None] = {}
    generated: Generated | None = None
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


def folder_of(out: Path, protocol: str, strategy: str, seed: int) -> Path:
    """Where a run's record and its W&B files lie."""
    return out / protocol / strategy / str(seed)


def write(record: Record, folder: Path) -> Path:
    """Write a record whole or not at all: a run cut short leaves the old file, never half a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    # Records of strategies that generate nothing say nothing of it.
    write_json(path, record.model_dump(exclude={"generated"} if record.generated is None else None))
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


def read_all(out: Path) -> list[Record]:
    """Every record below a folder, by protocol, strategy and seed.

    Raises:
        RecordError: there is no such folder, or a record in it cannot be read.
    """
    if not out.is_dir():
        raise RecordError(f"there is no folder {out}; 'python -m benchmarks run' makes one")
    return sorted(_all(out), key=lambda record: (record.protocol, record.strategy, record.seed))


def _all(out: Path) -> Iterator[Record]:
    for path in out.rglob(RECORD):
        if "wandb" not in path.relative_to(out).parts:  # W&B keeps copies of its artifacts
            yield read(path)
