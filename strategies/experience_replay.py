"""Experience replay from a reservoir: in every step, some samples that went by are learned once more.

Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr & Ranzato 2019, "On Tiny Episodic Memories in Continual
Learning" (arXiv 1902.10486), Algorithm 1 with the reservoir of its Algorithm 2; the ER of Buzzega et al. 2020 and of
Caccia et al. 2022. With B a minibatch of the stream and B_M one that is drawn from the memory, a step's loss is

    mean of l(y, h(x)) over B and B_M together        joined = "minibatch"
    mean over B + mean over B_M                       joined = "loss"

The papers differ in what may be drawn. Buzzega et al. and Caccia et al. draw from everything that was seen so far, the
present experience included, so that the ends of experiences need not be known (``draws_from = "all"``); the ER of
Aljundi et al. 2019 draws from earlier experiences alone (``"past"``; Caccia et al. 2022, section 5, say so).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engrams.strategies.arguments import at_least_one, one_of
from engrams.strategies.choices import DrawsFrom, JoinedBy
from engrams.strategies.experiences import Pieces
from engrams.strategies.kept import State
from engrams.strategies.networks import loss_of
from engrams.strategies.rehearsal import ReservoirPlugin
from engrams.strategies.reservoir import Reservoir


class ExperienceReplayPlugin(ReservoirPlugin):
    """Experience replay from a reservoir, under any Avalanche strategy.

    It has to stand before plugins that change a minibatch's images: the memory keeps them as they come, and what it
    replays is changed with the new ones. What a data set's own transformations have drawn for a sample stays with it.
    """

    def __init__(
        self,
        mem_size: int,
        batch_size_mem: int | None = None,
        *,
        draws_from: DrawsFrom = "all",
        joined: JoinedBy = "minibatch",
    ):
        """
        Args:
            mem_size: samples in the memory, at least 1. What is kept and what is drawn is decided by torch's global
                generator.
            batch_size_mem: samples drawn in a step; None for as many as the minibatch has.
            draws_from: ``all``: everything that the memory holds. ``past``: what is of experiences that have ended.
            joined: ``minibatch``: they are put behind the new samples, and go through the network together. ``loss``:
                they go through the network by themselves (batch norm sees them by themselves, too), and the mean of
                their loss is added.

        Raises:
            ValueError: an argument outside its range; in the first step, samples that are not made of tensors.
        """
        super().__init__()
        at_least_one(batch_size_mem=batch_size_mem)
        one_of(DrawsFrom, draws_from=draws_from)
        one_of(JoinedBy, joined=joined)
        self.mem_size, self.batch_size_mem = mem_size, batch_size_mem
        self.draws_from, self.joined = draws_from, joined
        self._forget()

    def _forget(self) -> None:
        self.memory = Reservoir(self.mem_size)
        self._experience = 0
        self._pieces = Pieces(self)
        self._old: list[Tensor] = []

    def state_dict(self) -> State:
        """Returns the memory, and how many experiences there were."""
        return super().state_dict() | {"experience": self._experience}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        super().load_state_dict(state)
        self._experience = state["experience"]

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        # Where everything may be drawn, a stream may hide where experiences end.
        if self.draws_from == "past" and self._pieces.begin(strategy.experience, "; or let draws_from be 'all'"):
            self._experience += 1

    def after_training_exp(self, strategy, **kwargs):
        if self.draws_from == "past":
            self._pieces.end(strategy.experience)

    def before_training_iteration(self, strategy, **kwargs):
        new = self.new_samples(strategy)
        old = self._drawn(strategy, len(new[0]))
        self.memory.add(
            {str(place): column for place, column in enumerate(new)}
            | {"experience": torch.full((len(new[0]),), self._experience)}
        )
        self.put_behind(strategy, *old)

    def _drawn(self, strategy, new: int) -> list[list[Tensor]]:
        """What is replayed in this step, its columns; empty where there is nothing to replay."""
        if not len(self.memory):
            return []
        allowed = None
        if self.draws_from == "past":
            allowed = self.memory.columns["experience"][: len(self.memory)] < self._experience
            if not allowed.any():
                return []
        drawn = self.memory.draw(self.batch_size_mem or new, strategy.device, allowed)
        return [[drawn[str(place)] for place in range(len(strategy.mbatch))]]

    def before_forward(self, strategy, **kwargs):
        if self.joined == "loss":  # by now, images have been changed with the new ones
            self._old = self.take_out(strategy)

    def before_backward(self, strategy, **kwargs):
        if self.joined == "loss" and len(self._old[0]):
            strategy.loss = strategy.loss + loss_of(strategy, self._old)
            self._old = []
