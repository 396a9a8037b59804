"""A plugin that remembers something does so of one strategy: for another one it starts afresh."""

from __future__ import annotations

import warnings
import weakref
from abc import ABC, abstractmethod
from typing import Any

from engrams.strategies.networks import unwrapped


class OfOneStrategy(ABC):
    """Before a plugin that goes on where its strategy or its model does, and forgets where both are others.

    One that is new, or was loaded or copied, goes on with whichever strategy it meets first.
    """

    _with: tuple[weakref.ref, weakref.ref] | None = None
    """The strategy and the model that it was with last."""

    @abstractmethod
    def _forget(self) -> None:
        """Forgets everything."""

    @abstractmethod
    def _holds(self) -> bool:
        """Tells whether there is anything to forget."""

    def _goes_on(self, strategy) -> bool:
        """Tells whether what is remembered is of this strategy."""
        return self._with is None or self._with[0]() is strategy or self._with[1]() is unwrapped(strategy.model)

    def _meet(self, strategy) -> None:
        """Starts afresh if need be; called before every experience."""
        goes_on = self._goes_on(strategy)
        self._with = (weakref.ref(strategy), weakref.ref(unwrapped(strategy.model)))
        if goes_on:
            return
        if self._holds():
            warnings.warn(
                f"{type(self).__name__} was used with another strategy and another model: it starts afresh, and what "
                f"it held of these is forgotten. Make one plugin for each strategy",
                stacklevel=4,
            )
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_with": None}  # weak references cannot be pickled
