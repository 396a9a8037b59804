"""What an Avalanche experience says of itself, whatever benchmark it comes from.

The plainest benchmarks know neither classes nor tasks, and an online stream cuts each experience into pieces.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from engrams.strategies.kept import Unkept


class Met(NamedTuple):
    """What is kept of an experience, under the names by which Avalanche adapts a model to one."""

    classes_in_this_experience: Sequence[int]
    task_labels: Sequence[int]

    @classmethod
    def of(cls, experience: Any) -> Met:
        """Returns what an experience, or the one that this is a piece of, says: where it says nothing, no classes and
        task 0."""
        whole = whole_of(experience)
        return cls(getattr(whole, "classes_in_this_experience", ()), getattr(whole, "task_labels", [0]))


class Pieces:
    """Tells where experiences begin and end in a stream that comes in pieces (of ``split_online_stream``).

    An experience that is no piece begins and ends with itself. Pieces are counted, since Avalanche (0.6.0) calls none
    the last where their size divides the experience. Where the experience that ended last begins again, a warning says
    so: whoever loops over epochs around ``train`` has an experience an epoch.
    """

    _ended: weakref.ref | None = None
    """The experience that ended last."""

    def __init__(self, owner: object) -> None:
        """
        Args:
            owner: who counts experiences, for messages.
        """
        self._who = type(owner).__name__
        self.met = 0
        """Pieces of the present experience, so far."""
        self.waits = False
        """Whether pieces of an experience have been learned that has not ended."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ended": None}  # a weak reference cannot be pickled

    def begin(self, experience: Any, otherwise: str = "") -> bool:
        """Tells whether an experience begins with this piece; called once, before it is learned.

        Args:
            experience: what is learned next.
            otherwise: what the caller can do without knowing, for the message.

        Raises:
            ValueError: the stream hides it.
        """
        try:
            first = getattr(experience, "is_first_subexp", True)
        except ValueError as error:  # Avalanche's MaskedAttributeError
            raise ValueError(
                f"the stream hides where an experience ends; make it with split_online_stream(..., "
                f"access_task_boundaries=True){otherwise}"
            ) from error
        if first and self._ended is not None and self._ended() is whole_of(experience):
            warnings.warn(
                f"{self._who}: the experience that was learned last is learned again. One call of train() counts as "
                f"one experience; its epochs are the strategy's train_epochs",
                stacklevel=3,
            )
        self.met = 1 if first else self.met + 1
        self.waits = self.waits and not first
        return first

    def end(self, experience: Any) -> bool:
        """Tells whether the experience ends with the piece that began last; called once, after it is learned."""
        ends = getattr(experience, "is_last_subexp", True) or self.met == experience.sub_stream_length
        self.waits = not ends
        if ends:
            with suppress(TypeError):  # what takes no weak reference is not noticed
                self._ended = weakref.ref(whole_of(experience))
        return ends

    def refuse_to_wait(self) -> None:
        """Raises an Unkept where an experience waits for its other pieces, of which the owner's state has nothing."""
        if self.waits:
            raise Unkept(
                f"{self._who} waits for the end of an experience of which it has learned {self.met} pieces: ask for "
                f"its state when the last has come"
            )


def whole_of(experience: Any) -> Any:
    """Returns the experience that this is a piece of, or itself."""
    whole = getattr(experience, "origin_experience", None)  # None in streams whose pieces are of several
    return experience if whole is None else whole


def classes_of(experience: Any) -> list[int]:
    """Returns the classes of an experience, or of the one that this is a piece of: as it says, or those of its data."""
    if said := Met.of(experience).classes_in_this_experience:
        return list(said)
    dataset = whole_of(experience).dataset
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = (label for _, label, *_ in dataset)
    return sorted({int(label) for label in getattr(targets, "uniques", targets)})


def trained_on(strategy: Any) -> Any:
    """Returns an experience's data, or what a strategy's ``train_dataset_adaptation`` makes of them to train on."""
    adapted = getattr(strategy, "adapted_dataset", None)
    return strategy.experience.dataset if adapted is None else adapted
