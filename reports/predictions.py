"""What a run answered on the test stream after every experience, and what is read off it.

``predictions.npz`` lies beside a run's record, compressed, a byte a class.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from engrams.reports.files import replacing
from engrams.reports.store import RECORD, TOLERANCE, Record, RecordError, read

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of one run, to N samples in the test stream's order, after each of T times it was judged.

    Where a generator is judged, a sample is an image that it made: its target is the class that was asked for, its
    answer what a classifier of real images takes it for.
    """

    targets: NDArray[np.integer]
    """Classes as the strategy has to answer them (under several heads, those of the sample's task), [N]."""
    experience: NDArray[np.integer]
    """Which one each sample is of, [N]."""
    answers: NDArray[np.integer]
    """Classes, [T, N]."""
    at_initialisation: NDArray[np.integer]
    """Before training, [N]; [0] where the whole stream is learned at once."""

    @property
    def classes(self) -> int:
        """Returns the largest class that there is, or that was answered, and one."""
        return 1 + int(max(self.targets.max(), self.answers.max()))

    def accuracy_matrix(self) -> NDArray[np.float64]:
        """Returns R, [T, experiences]: the record's own but for rounding."""
        right = self.answers == self.targets
        return np.stack([right[:, self.experience == j].mean(axis=1) for j in np.unique(self.experience)], axis=1)

    def confusion(self, after: int = -1) -> NDArray[np.int64]:
        """Returns how often a class (row) was answered with a class (column), [classes, classes].

        Args:
            after: the experience.
        """
        both = self.targets.astype(np.int64) * self.classes + self.answers[after]
        return np.bincount(both, minlength=self.classes**2).reshape(self.classes, self.classes)

    def accuracy_by_class(self) -> NDArray[np.float64]:
        """Returns the share of each class's samples that were told rightly, [T, classes]; NaN of what has none."""
        confusions = np.stack([self.confusion(t) for t in range(len(self.answers))])
        counts = confusions.sum(axis=2)
        return np.divide(
            confusions.diagonal(axis1=1, axis2=2), counts, out=np.full(counts.shape, np.nan), where=counts > 0
        )

    def recency_bias(self) -> NDArray[np.float64] | None:
        """Returns by how much the classes of the latest experience are answered too often, [T], in [-1, 1].

        The bias to what was learned last is what class-incremental learners are known for (Masana et al. 2023,
        "Class-incremental learning: survey and performance evaluation", arXiv 2010.15277, "task-recency bias"). Here:
        among the samples of the experiences learned so far, the share that is answered with a class of the latest one,
        minus the share that is of it. 0 is no bias; the first experience has none. None where experiences have
        classes in common, or all are learned at once.
        """
        of_experience = [set(self.targets[self.experience == j].tolist()) for j in np.unique(self.experience)]
        if len(self.answers) < len(of_experience) or len(set.union(*of_experience)) < sum(map(len, of_experience)):
            return None
        found = []
        for t, latest in enumerate(of_experience):
            so_far = self.experience <= t
            answered = np.isin(self.answers[t][so_far], list(latest)).mean()
            found.append(answered - (self.experience[so_far] == t).mean())
        return np.array(found)


def write(predictions: Predictions, folder: Path) -> Path:
    """Writes them whole or not at all into a run's folder.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = np.min_scalar_type(predictions.classes)
    content = io.BytesIO()  # where the disk is full, a zip file that is being written to it complains when it is gone
    np.savez_compressed(
        content,
        targets=predictions.targets.astype(kind),
        experience=predictions.experience.astype(np.min_scalar_type(int(predictions.experience.max()))),
        answers=predictions.answers.astype(kind),
        at_initialisation=predictions.at_initialisation.astype(kind),
    )
    with replacing(folder / PREDICTIONS) as file:
        file.write(content.getbuffer())
    return folder / PREDICTIONS


def remove(folder: Path) -> None:
    """Removes those of an earlier try."""
    (folder / PREDICTIONS).unlink(missing_ok=True)


def read_predictions(folder: str | Path) -> Predictions:
    """Returns what the run answered whose record lies in a folder: ``runs/PROTOCOL/STRATEGY/SEED``.

    Raises:
        RecordError: there are none, they cannot be read, or they do not lead to the record's accuracy matrix; or there
            is no record that can be read.
    """
    return predictions_of(read(Path(folder) / RECORD), Path(folder))


def predictions_of(record: Record, folder: Path) -> Predictions:
    """As :func:`read_predictions`, of a record that was read."""
    path = folder / PREDICTIONS
    if not path.exists():
        raise RecordError(f"there is no {path}: records made before answers were kept, and committed ones, have none")
    try:
        with np.load(path, allow_pickle=False) as found:
            predictions = Predictions(**found)
        matrix = predictions.accuracy_matrix()
        recorded = np.array(record.accuracy_matrix)
        if matrix.shape != recorded.shape or not (abs(matrix - recorded) <= TOLERANCE).all():
            raise ValueError("they do not lead to the record's accuracy matrix")
    except (OSError, EOFError, ValueError, TypeError, IndexError, KeyError, BadZipFile) as error:
        raise RecordError(f"{path} cannot be used ({error}); delete it") from error
    return predictions
