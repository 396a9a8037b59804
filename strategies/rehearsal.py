"""Samples of the past in a minibatch: they are put behind the stream's, and taken out again if they are learned apart.

In between, plugins change them together with the new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from engrams.strategies.kept import State
from engrams.strategies.one_strategy import OfOneStrategy
from engrams.strategies.reservoir import Reservoir, put_together


class RehearsalPlugin(SupervisedPlugin):
    """Knows which rows of a minibatch the stream brought, and which are its own.

    Several in one strategy reckon with each other: what one of them rehearses is nothing new to the next.
    """

    _of_stream = 0
    _own = 0
    """Rows that it has put into the present minibatch and not taken out."""

    def new_samples(self, strategy) -> list[Tensor]:
        """Returns the columns of what the stream brought, without what such plugins before this one put behind it.

        Raises:
            ValueError: a column is no tensor.
        """
        found = [type(column).__name__ for column in strategy.mbatch]
        if not all(isinstance(column, Tensor) for column in strategy.mbatch):
            raise ValueError(
                f"{type(self).__name__} keeps samples of tensors; the columns of the stream's minibatches are: "
                f"{', '.join(found)}. Let the data set give one tensor for x, and take it apart in the network"
            )
        self._own = 0
        self._of_stream = len(strategy.mbatch[0]) - self._others(strategy)
        return [column[: self._of_stream] for column in strategy.mbatch]

    def put_behind(self, strategy, *parts: Sequence[Tensor]) -> None:
        """Puts samples, the columns of a minibatch each, behind all that is there.

        Raises:
            ValueError: they have another shape.
        """
        if parts:
            strategy.mbatch = put_together([strategy.mbatch, *parts])
        self._own = sum(len(part[0]) for part in parts)

    def take_out(self, strategy) -> list[Tensor]:
        """Returns the columns of what it put there, as plugins have changed them, and leaves the rest."""
        first = self._of_stream + self._others(strategy)
        behind = first + self._own
        own = [column[first:behind] for column in strategy.mbatch]
        strategy.mbatch = [torch.cat([column[:first], column[behind:]]) for column in strategy.mbatch]
        self._own = 0
        return own

    def _others(self, strategy) -> int:
        """Rows between the stream's and its own."""
        earlier = takewhile(lambda plugin: plugin is not self, strategy.plugins)
        return sum(plugin._own for plugin in earlier if isinstance(plugin, RehearsalPlugin))


class ReservoirPlugin(OfOneStrategy, RehearsalPlugin):
    """Rehearses from a reservoir of all that went by."""

    memory: Reservoir

    def _holds(self) -> bool:
        return len(self.memory) > 0

    def before_training_exp(self, strategy, **kwargs):
        self._meet(strategy)

    def state_dict(self) -> State:
        """Returns the memory, and how many samples went by."""
        return self.memory.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._with = None
        self.memory.load_state_dict(state)

    def state_dict_within(self) -> State:
        """Returns the same, in the middle of an experience."""
        return self.state_dict()

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from the middle of an experience."""
        self.load_state_dict(state)
