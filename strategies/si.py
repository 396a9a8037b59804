"""Synaptic intelligence.

Zenke, Poole & Ganguli 2017, "Continual Learning Through Synaptic Intelligence", ICML, arXiv:1703.04200, eq. 4 and 5:

    L(theta) = L_n(theta) + c sum_k Omega_k (theta_k - theta*_k)^2,   Omega_k = sum_n w_k^n / ((D_k^n)^2 + xi)

with theta* the parameters at the end of the last experience. D^n is how far a parameter went in experience n, and w^n
what its movement lowered the loss by: the sum over steps of -g_k (theta_k after the step - theta_k before it).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from engrams.strategies.arguments import finite, not_negative, one_of
from engrams.strategies.choices import Clamped, PenaltyStep
from engrams.strategies.kept import State
from engrams.strategies.networks import named_parameters, trainable_parameters
from engrams.strategies.precision import wide
from engrams.strategies.quadratic_penalty import (
    ByName,
    Excluded,
    QuadraticPenaltyPlugin,
    grown,
    placed,
    with_first_units,
)


class SIPlugin(QuadraticPenaltyPlugin):
    """Synaptic intelligence for any Avalanche strategy.

    While an experience is trained, every parameter's share in the fall of the loss is summed up, step by step; at its
    end the share becomes importance, and from the next experience on c Omega (theta - theta*)^2 is added to the loss.
    Nothing is measured besides, and no label or sample is looked at: what it takes is in the gradients that training
    has anyway. Heads and units that are new start with importance 0.

    g is the gradient that the strategy's backward pass leaves, without this penalty's part in it (what other plugins
    add to the loss is in it). Where gradients are accumulated over minibatches, take the proximal step: the penalty is
    then in no gradient.

    Memory and time a step are O(parameters), however many experiences there have been.
    """

    def __init__(
        self,
        c: float,
        xi: float = 0.1,
        clamped: Clamped = "sum",
        *,
        penalty_step: PenaltyStep = "gradient",
        exclude: Excluded | None = (),
        consolidate_every: int | None = None,
    ):
        """
        Args:
            c: c above, >= 0. (Avalanche's ``si_lambda`` is twice as large for the same penalty.)
            xi: the damping xi above, > 0. The authors' code has 0.1 for permuted MNIST, and 1e-3 for split streams.
            clamped: what is set to 0 where it is below: ``sum``, the importance over all experiences so far (the
                authors' code, pathint), or ``experience``, each one's own share in it (Chaudhry et al. 2019). The
                equation has neither; with importances below 0 the penalty pushes a parameter away from its anchor.
            penalty_step: as :class:`QuadraticPenaltyPlugin`; the movement of a proximal step is part of the path.
            exclude: as :class:`QuadraticPenaltyPlugin`.
            consolidate_every: as :class:`QuadraticPenaltyPlugin`.

        Raises:
            ValueError: an argument outside its range; after an experience, parameters that are not finite.
        """
        not_negative(c=c)
        super().__init__(c, penalty_step=penalty_step, exclude=exclude, consolidate_every=consolidate_every)
        finite(xi=xi)
        if xi <= 0:
            raise ValueError(f"xi must be above 0; got {xi}")
        one_of(Clamped, clamped=clamped)
        self.xi = xi
        self.clamped = clamped

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._path: ByName = {}
        """w of the present experience so far, of every parameter that is trained."""
        self._start: ByName = {}
        """Parameter name -> its values when the present experience began."""
        self._learning: dict[str, nn.Parameter] = {}
        self._stepping: list[tuple[str, Tensor, Tensor]] = []  # name, gradient, value before the step

    def _by_name(self) -> list[ByName]:
        return [*super()._by_name(), self._path, self._start]  # they go where the anchors go

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self._learning = trainable_parameters(strategy.model)
        if len(self._since) == 1:  # not in a later piece of the same experience
            self._path, self._start = {}, {}
        parameters = named_parameters(strategy.model)
        for name in self._start.keys() & parameters.keys():  # units that came with this piece begin here
            values = wide(parameters[name].detach())
            self._start[name] = with_first_units(values, self._start[name])
            self._path[name] = grown(self._path[name], values)

    @torch.no_grad()
    def after_backward(self, strategy, **kwargs):
        for name, p in self._learning.items():
            if name not in self._start:  # a lazy layer has its parameters now
                self._start[name] = wide(p.detach().clone())
                self._path[name] = torch.zeros_like(self._start[name])
        gradients = self.loss_gradients(self._learning)
        self._stepping = [(name, wide(g), wide(self._learning[name].detach().clone())) for name, g in gradients.items()]

    @torch.no_grad()
    def after_update(self, strategy, **kwargs):
        super().after_update(strategy, **kwargs)
        for name, gradient, before in self._stepping:
            self._path[name] -= gradient * (wide(self._learning[name].detach()) - before)
        self._stepping = []

    def importance(self, strategy) -> ByName:
        """Returns every parameter's share of the experience just learned, w / (D^2 + xi); below 0 where it did harm."""
        parameters, found = named_parameters(strategy.model), {}
        for name in (name for name in self._path if name in parameters):
            way = wide(parameters[name].detach()) - self._start[name]
            share = self._path[name] / (way**2 + self.xi)
            found[name] = share.clamp(min=0) if self.clamped == "experience" else share
        return found

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        super().consolidate(importances, anchors)
        self.importances = {name: omega.clamp(min=0) for name, omega in self.importances.items()}

    def state_dict_within(self) -> State:
        """Returns the path so far, and where it began."""
        return deepcopy({"path": self._path, "start": self._start})

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from the middle of an experience."""
        self._path, self._start = (placed(state[part], self._learning) for part in ("path", "start"))
