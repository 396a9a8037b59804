"""Shows what the public code of Chaudhry et al. 2019 computes under the names of EWC and MAS: neither paper's.

facebookresearch/agem, ``model/model.py``, ``conv_split_cifar.py`` and ``fc_permute_mnist.py``, commit 4542149. Both
penalties are lambda sum_i I_i (theta_i - theta*_i)^2, without EWC's 1/2, around the parameters at the end of the last
experience; what differs from the papers is the importance I. They are here to be compared with, beside the figures that
this code gave (arXiv:1812.00420): for work of your own take :class:`EWCPlugin` and :class:`MASPlugin`.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from engrams.strategies.anchors import ByName, grown, placed
from engrams.strategies.arguments import at_least_one, not_negative
from engrams.strategies.kept import State
from engrams.strategies.mas import MASPlugin
from engrams.strategies.networks import named_parameters, trainable_parameters
from engrams.strategies.quadratic_penalty import QuadraticPenaltyPlugin

FRESH = 0.9
"""The share of the latest steps in the running Fisher (``FISHER_EMA_DECAY``)."""
MAS_BATCH = 10
"""Samples in a minibatch of the measurement, whatever those of the training (``task_updates``)."""


class ChaudhryEWCPlugin(QuadraticPenaltyPlugin):
    """This is EWC with a Fisher that is a moving average along the training.

    The squares of the loss's gradients g (of a minibatch's mean, in training mode, with the true labels) are summed
    over n steps, and then

        F <- 0.1 F + 0.9 (1/n) sum g^2

    from F = 0 at the very beginning, and never reset: of an experience, 0.1^k is left after k more such updates. An
    update comes before the gradient of its own step is added, so that the first sum of an experience has n - 1
    gradients. At the end of an experience the importance is F, shifted and scaled so that it is 0 and 1 at its least
    and its largest value in the whole network; it replaces the one before.
    """

    def __init__(self, ewc_lambda: float, every: int = 50):
        """
        Args:
            ewc_lambda: lambda above, >= 0.
            every: n above, in steps (``FISHER_UPDATE_AFTER``); counted anew in every experience, at whose end what has
                been summed since the last update is dropped.

        Raises:
            ValueError: an argument outside its range; after an experience, parameters or importances that are not
                finite.
        """
        not_negative(ewc_lambda=ewc_lambda)
        super().__init__(ewc_lambda)
        at_least_one(every=every)
        self.every = every

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._running: ByName = {}
        self._learning: dict[str, nn.Parameter] = {}
        self._begin_sum()

    def _begin_sum(self) -> None:
        self._summed: ByName = {}
        self._steps = 0

    def _by_name(self) -> list[dict[str, Any]]:
        return [*super()._by_name(), self._running]  # it goes where the anchors go, under another name or away

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self._learning = trainable_parameters(strategy.model)
        fresh = {name: torch.zeros_like(p) for name, p in self._learning.items() if not is_lazy(p)}
        parameters = named_parameters(strategy.model)
        self._running = fresh | {
            name: grown(fisher.to(parameters[name]), parameters[name])
            for name, fisher in self._running.items()
            if name in parameters
        }
        if len(self._since) == 1:  # not in a later piece of the same experience
            self._begin_sum()

    @torch.no_grad()
    def after_backward(self, strategy, **kwargs):
        self._steps += 1
        if self._steps % self.every == 0:
            self._update()
        for name, gradient in self.loss_gradients(self._learning).items():
            self._summed[name] = self._summed.get(name, 0) + gradient**2

    def _update(self) -> None:
        for name in {**self._running, **self._summed}:
            old, new = (kept.get(name, torch.zeros(())) for kept in (self._running, self._summed))
            self._running[name] = (1 - FRESH) * old + FRESH / self.every * new
        self._summed = {}

    def importance(self, strategy) -> ByName:
        """Returns the running Fisher, its least value in the network taken to 0 and its largest to 1."""
        for name, fisher in self._running.items():
            if not fisher.isfinite().all():
                raise ValueError(
                    f"{type(self).__name__}: the running Fisher of {name!r} is not finite: lower the learning rate"
                )
        least = min(fisher.min().item() for fisher in self._running.values())
        width = max(fisher.max().item() for fisher in self._running.values()) - least
        return {name: (fisher - least) / max(width, 1e-32) for name, fisher in self._running.items()}

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        self.importances, self.anchors = importances, anchors

    def state_dict(self) -> State:
        """Returns every quadratic penalty's, and the running Fisher."""
        return super().state_dict() | {"running": deepcopy(self._running)}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._running = deepcopy(state["running"])

    def state_dict_within(self) -> State:
        """Returns the running Fisher, what has been summed for it since, and the steps of the experience."""
        return deepcopy({"running": self._running, "summed": self._summed, "steps": self._steps})

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from the middle of an experience."""
        self._running, self._summed = (placed(state[part], self._learning) for part in ("running", "summed"))
        self._steps = state["steps"]


class ChaudhryMASPlugin(MASPlugin):
    """This is MAS with the Omega of the latest experience alone, measured on minibatches of ten.

    (1/N) sum over minibatches of | d sum_k ||F(x_k)||_2^2 / d theta |, as the ``batched`` :func:`mas_importance`; what
    earlier experiences left is overwritten. Where ten does not divide N, that function counts the last minibatch as a
    whole one, and the source leaves it out.
    """

    def __init__(self, mas_lambda: float):
        """
        Args:
            mas_lambda: lambda above, >= 0.

        Raises:
            ValueError: as :class:`MASPlugin`.
        """
        super().__init__(mas_lambda, "batched", batch_size=MAS_BATCH)

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        self.importances, self.anchors = importances, anchors
