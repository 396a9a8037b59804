"""What an Avalanche experience says of itself, whatever benchmark it comes from.

The plainest benchmarks know neither classes nor tasks, and an online stream cuts each experience into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Met(NamedTuple):
    """What is kept of an experience, under the names by which Avalanche adapts a model to one."""

    classes_in_this_experience: Sequence[int]
    task_labels: Sequence[int]

    @classmethod
    def of(cls, experience: Any) -> Met:
        """Returns what an experience says; no classes and task 0 where it says nothing."""
        return cls(getattr(experience, "classes_in_this_experience", ()), getattr(experience, "task_labels", [0]))

    def and_of(self, experience: Any) -> Met:
        """Returns this and what another piece of the same experience says."""
        other = Met.of(experience)
        return Met(*(list(dict.fromkeys([*mine, *its])) for mine, its in zip(self, other, strict=True)))


def ends(experience: Any) -> bool:
    """Tells whether this is a whole experience, or the last piece of one (of ``split_online_stream``)."""
    return getattr(experience, "is_last_subexp", True)


def classes_of(experience: Any) -> list[int]:
    """Returns the classes of an experience: as it says, or else those of its data."""
    if said := getattr(experience, "classes_in_this_experience", None):
        return list(said)
    targets = getattr(experience.dataset, "targets", None)
    if targets is None:
        targets = (label for _, label, *_ in experience.dataset)
    return sorted({int(label) for label in getattr(targets, "uniques", targets)})
