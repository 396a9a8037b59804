"""Synaptic intelligence.

Zenke, Poole & Ganguli 2017, "Continual Learning Through Synaptic Intelligence", ICML, arXiv:1703.04200, eq. 4 and 5:

    L(theta) = L_n(theta) + c sum_k Omega_k (theta_k - theta*_k)^2,   Omega_k = sum_n w_k^n / ((D_k^n)^2 + xi)

with theta* the parameters at the end of the last experience. D^n is a parameter's value at the end of experience n
minus its value at the beginning. w^n says by how much its movement lowered the loss: the sum over steps of
-g_k (theta_k after the step - theta_k before it), with g the gradient of L_n.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from engrams.strategies.anchors import ByName, continues, grown, placed, with_first_units
from engrams.strategies.arguments import finite, not_negative, one_of
from engrams.strategies.choices import Clamped, PenaltyStep
from engrams.strategies.kept import State
from engrams.strategies.networks import named_parameters, some_of
from engrams.strategies.precision import wide
from engrams.strategies.quadratic_penalty import Excluded, QuadraticPenaltyPlugin, strength

ROUNDING = 1e-3
"""The largest difference between a way and the sum of its steps, in proportion, that may be rounding."""


class SIPlugin(QuadraticPenaltyPlugin):
    """This is synaptic intelligence for any Avalanche strategy: it holds what has lowered the loss on its way.

    While an experience is trained, every parameter's share in the fall of the loss is summed up, step by step; at its
    end the share becomes importance, and from the next experience on c Omega (theta - theta*)^2 is added to the loss.
    It uses only the gradients of training: nothing is measured afterwards. Heads and units that are new start with
    importance 0.

    g is the gradient of the strategy's loss, as its backward pass leaves it, without this penalty's part in it. What
    other plugins add to the loss is in it, wherever they stand in the list. The loss may be scaled as it is passed back
    (mixed precision), and gradients may be accumulated over minibatches: g is then of the mean of their losses. A step
    that the strategy leaves out counts for nothing. List this plugin before any that scales the loss, or changes
    gradients after the backward pass (A-GEM, clipping); a strategy whose own ``backward`` changes them gives other
    importances. Where parameters are set to other values within an experience (those of its best epoch), their path is
    not that of their way: a warning names them.

    Memory and time a step are O(parameters), however many experiences there have been.
    """

    why_all_are_0 = "No step may have lowered the loss (one that is 0, a learning rate of 0)"

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
            clamped: what is set to 0 where it is negative: ``sum``, the importance over all experiences so far (the
                authors' code, pathint), or ``experience``, each one's own share in it (Chaudhry et al. 2019). The
                equation has neither; with importances below 0 the penalty pushes a parameter away from its anchor.
            penalty_step: as :class:`QuadraticPenaltyPlugin`; the movement of a proximal step is part of the path.
            exclude: as :class:`QuadraticPenaltyPlugin`.
            consolidate_every: as :class:`QuadraticPenaltyPlugin`.

        Raises:
            ValueError: an argument outside its range. Before an experience: an optimiser that takes gradients within
                its step (LBFGS), or what any quadratic penalty refuses. After it: parameters or importances that are
                not finite.
        """
        not_negative(c=c)
        super().__init__(c, penalty_step=penalty_step, exclude=exclude, consolidate_every=consolidate_every)
        finite(xi=xi)
        if xi <= 0:
            raise ValueError(f"xi must be above 0; got {xi}")
        one_of(Clamped, clamped=clamped)
        self.xi = xi
        self.clamped = clamped

    c = strength("c", 1)

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._begin_path()
        self._trained: dict[str, nn.Parameter] = {}
        """All parameters of the network that are not excluded."""
        self._factor: Tensor | None = None
        """What losses were multiplied by before they were passed back (1 unless scaled), summed if accumulated."""
        self._stepped = True
        """Whether there has been a step since a loss was passed back last."""

    def _begin_path(self) -> None:
        self._path: ByName = {}
        """w of the present experience so far, of what has had a gradient in it."""
        self._start: ByName = {}
        """The values before the first gradient."""
        self._way: ByName = {}
        """The sum of all steps so far: D, unless something else has moved the parameter."""
        self._stepping: list[tuple[str, Tensor, Tensor]] = []
        """Name, gradient and value of each, after the latest backward pass."""

    def _by_name(self) -> list[ByName]:
        return [*super()._by_name(), self._path, self._start, self._way]  # they go where the anchors go

    def check(self, strategy) -> None:
        if isinstance(strategy.optimizer, torch.optim.LBFGS):
            raise ValueError("LBFGS takes several gradients within one step, and the path needs each: take another")

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        left_out, before = self._left_out(strategy.model), self._trained
        self._trained = {
            name: p
            for name, p in named_parameters(strategy.model).items()
            if name not in left_out and (is_lazy(p) or p.numel())
        }
        if len(self._since) == 1:  # not in a later piece of the same experience
            self._begin_path()
        for name in list(self._path):
            p = self._trained.get(name)
            if p is None or (name in before and p is not before[name] and not continues(p, before[name])):
                for kept in (self._path, self._start, self._way):
                    del kept[name]
            elif p.shape != self._path[name].shape:  # units that came with this piece begin here
                values = wide(p.detach())
                self._path[name], self._way[name] = grown(self._path[name], values), grown(self._way[name], values)
                self._start[name] = with_first_units(values, self._start[name])

    def before_backward(self, strategy, **kwargs):
        super().before_backward(strategy, **kwargs)
        nothing = torch.zeros((), device=strategy.loss.device, requires_grad=True)
        nothing.register_hook(lambda factor: self._passed_back(factor, strategy.optimizer))
        strategy.loss = strategy.loss + nothing.to(strategy.loss.dtype)

    def _passed_back(self, factor: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Learns a loss's factor as its backward pass begins: the gradients are still those of the passes before."""
        gradients = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        accumulated = not self._stepped and any(gradient.any() for gradient in gradients)
        self._factor = self._factor + factor if accumulated and self._factor is not None else factor
        self._stepped = False

    @torch.no_grad()
    def after_backward(self, strategy, **kwargs):
        self._stepping = []
        if self._factor is None:  # what was passed back has nothing of the strategy's loss
            return
        # A loss that was multiplied by 0 has no gradient; found without waiting for a GPU.
        factor = torch.where(self._factor == 0, torch.inf, self._factor)
        for name, gradient in self.loss_gradients(self._trained, factor).items():
            value = wide(self._trained[name].detach().clone())
            self._stepping.append((name, gradient, value))
            if name not in self._path:
                self._path[name], self._way[name] = torch.zeros_like(value), torch.zeros_like(value)
                self._start[name] = value

    def _listens(self) -> bool:
        return True

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        super()._after_step(optimizer)
        self._stepped = True
        stepping, self._stepping = self._stepping, []
        if getattr(optimizer, "found_inf", None):  # a fused one, under a GradScaler: it has left the step out
            return
        for name, gradient, value in stepping:
            step = wide(self._trained[name].detach()) - value
            self._way[name] += step
            self._path[name] -= gradient * step

    def importance(self, strategy) -> ByName:
        """Returns every parameter's share of the experience just learned, negative where it has raised the loss.

        w / (D^2 + xi), of what has had a gradient; with ``clamped="experience"`` not below 0.
        """
        if not self._path:
            warnings.warn(
                f"{type(self).__name__}: no gradient of the strategy's loss was seen in experience "
                f"{self.consolidated}: nothing of it will be held",
                stacklevel=3,
            )
        parameters, found, moved = named_parameters(strategy.model), {}, []
        for name in [name for name in self._path if name in parameters]:
            way = wide(parameters[name].detach()) - self._start[name]
            found[name] = self._path[name] / (way**2 + self.xi)
            if not found[name].isfinite().all():
                raise ValueError(f"{type(self).__name__}: the path of {name!r} is not finite: lower the learning rate")
            if (way - self._way[name]).norm() > ROUNDING * self._way[name].norm():
                moved.append(name)
        if moved:
            warnings.warn(
                f"{type(self).__name__}: something else than the optimiser's steps has moved {len(moved)} of "
                f"{len(found)} parameters ({some_of(moved)}) in experience {self.consolidated}: their importances are "
                f"too large where they were set back to their best epoch, and too small where another optimiser moved "
                f"them",
                stacklevel=3,
            )
        return {name: share.clamp(min=0) for name, share in found.items()} if self.clamped == "experience" else found

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        super().consolidate(importances, anchors)
        self.importances = {name: omega.clamp(min=0) for name, omega in self.importances.items()}
        self._begin_path()

    def state_dict_within(self) -> State:
        """Returns the path so far, where it began and how far it went."""
        return deepcopy({"path": self._path, "start": self._start, "way": self._way})

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from the middle of an experience."""
        self._path, self._start, self._way = (placed(state[part], self._trained) for part in ("path", "start", "way"))
