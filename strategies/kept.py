"""What of a strategy is kept so that its training can go on in another process, to the bit.

A plugin or a strategy of one's own that remembers something from one experience to the next says what by two methods,
as torch's modules and optimisers have them::

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state) -> None: ...

A state is made of tensors, numbers, texts, None, and lists and dictionaries of these: it is read back without running
anybody's code. It is asked for between two experiences, and belongs to whoever asked: what goes on in the plugin, or in
one that it was loaded into, changes nothing of it. One that remembers nothing says so by :class:`KeepsNothing`. A class
of one's own says it itself: what it inherits from another plugin says nothing of what it has besides.

A long experience can be gone on with from its middle, too, where all say what has changed since it began::

    def state_dict_within(self) -> dict: ...
    def load_state_dict_within(self, state) -> None: ...

asked for between two steps, or two epochs of a generator; loaded where the experience has been begun again
(``before_training_exp`` and ``before_training_epoch`` have been called). Where nothing changes but the model and the
optimiser, :class:`KeepsNothingWithin` says so. Where one does not have these two methods, nothing is lost: the
interrupted experience is trained again from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from avalanche.training import GEM, Naive
from avalanche.training.plugins import EvaluationPlugin, GEMPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import PeriodicEval

State = dict[str, Any]


class Unkept(Exception):
    """Something does not say what it keeps; the message is one line that says what."""


class KeepsNothing:
    """Before a plugin that remembers nothing from one experience to the next."""

    def state_dict(self) -> State:
        """Returns nothing."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Does nothing."""


class KeepsNothingWithin:
    """Before a plugin in which nothing changes between the beginning and the end of an experience."""

    def state_dict_within(self) -> State:
        """Returns nothing."""
        return {}

    def load_state_dict_within(self, state: State) -> None:
        """Does nothing."""


AVALANCHES: Mapping[type, tuple[str, ...]] = {
    Clock: (
        *("train_iterations", "train_exp_counter", "train_exp_epochs", "train_exp_iterations"),
        *("train_epoch_iterations", "total_iterations"),
    ),
    EvaluationPlugin: (),  # every evaluation begins afresh
    GEMPlugin: ("memory_x", "memory_y", "memory_tid"),
    PeriodicEval: (),
    # Strategies that are their plugins and nothing besides.
    SupervisedTemplate: (),
    Naive: (),
    GEM: (),
}
"""What is kept of Avalanche's own, which do not say it: the names of attributes. A class below one of these may have
more, and is not taken for it."""


def state_of(part: object) -> State:
    """Returns the state of a plugin, or of a strategy without its model, optimiser and plugins.

    Raises:
        Unkept: it does not say what it keeps.
    """
    if _says(part, "state_dict"):
        return part.state_dict()  # type: ignore[attr-defined]
    return {name: deepcopy(getattr(part, name)) for name in _attributes(part)}


def restore(part: object, state: State) -> None:
    """Gives a plugin or a strategy that was made anew the state of another.

    Raises:
        Unkept: it does not say what it keeps.
    """
    if _says(part, "load_state_dict"):
        part.load_state_dict(state)  # type: ignore[attr-defined]
    else:
        for name in _attributes(part):
            setattr(part, name, deepcopy(state[name]))


def state_within(part: object) -> State:
    """Returns what has changed of a plugin, or of a strategy, since the experience began.

    Raises:
        Unkept: it does not say it.
    """
    if _says(part, "state_dict_within"):
        return part.state_dict_within()  # type: ignore[attr-defined]
    if type(part) not in AVALANCHES:
        raise Unkept(f"{type(part).__name__} does not say what changes in an experience (state_dict_within)")
    return state_of(part)


def restore_within(part: object, state: State) -> None:
    """Takes a plugin or a strategy that has begun an experience to the middle of it."""
    if _says(part, "load_state_dict_within"):
        part.load_state_dict_within(state)  # type: ignore[attr-defined]
    else:
        restore(part, state)


def is_own(kind: type) -> bool:
    """Tells whether a class is somebody's own: neither Engrams' nor one of the libraries that it is built on."""
    return kind.__module__.partition(".")[0] not in ("engrams", "avalanche", "torch", "torchvision", "builtins")


def _says(part: object, method: str) -> bool:
    """Whether a part says by a method what it keeps; a class of one's own below the one that has it may have more."""
    kinds = type(part).__mro__
    says = next((place for place, kind in enumerate(kinds) if method in vars(kind)), None)
    if says is None:
        return False
    by_name = kinds[says] in (KeepsNothing, KeepsNothingWithin) and kinds[says] in type(part).__bases__
    return by_name or not any(map(is_own, kinds[:says]))


def _attributes(part: object) -> tuple[str, ...]:
    try:
        return AVALANCHES[type(part)]
    except KeyError:
        raise Unkept(f"{type(part).__name__} does not say what it keeps (state_dict, load_state_dict)") from None
