"""A quadratic penalty that holds parameters near where earlier experiences left them.

EWC, MAS and L2 differ in what they call important; what is done with it is the same, and lives here:

    L(theta) = L_new(theta) + coefficient * sum_i importance_i (theta_i - anchor_i)^2
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Consolidation = Literal["separate", "corrected", "online"]
ByName = dict[str, Tensor]


class QuadraticPenaltyPlugin(SupervisedPlugin, ABC):
    """Adds the penalty to the loss of any Avalanche strategy; a subclass says what is important.

    Attributes:
        importances: parameter name -> non-negative tensor of its shape; empty before the first experience has ended.
            A list of such dicts, one an experience, if ``consolidation`` is ``separate``.
        anchors: likewise, the parameters that the penalty pulls towards.
    """

    def __init__(self, coefficient: float, consolidation: Consolidation = "corrected", gamma: float = 1.0):
        """
        Args:
            coefficient: factor of the whole penalty, >= 0.
            consolidation: how the penalties of several experiences combine.
                ``separate``: one penalty an experience, each around its own optimum (Kirkpatrick et al. 2017).
                ``corrected``: one penalty around the *latest* optimum, its importances the sum of all (Huszár 2017).
                ``online``: the same, the running sum decayed by ``gamma`` (Schwarz et al. 2018).
            gamma: decay of ``online``, in [0, 1]; the other two leave it at 1.

        Raises:
            ValueError: an argument outside its range.
        """
        super().__init__()
        if not coefficient >= 0:
            raise ValueError(f"the penalty's coefficient must be at least 0; got {coefficient}")
        if consolidation not in get_args(Consolidation):
            raise ValueError(
                f"consolidation must be one of {', '.join(get_args(Consolidation))}; got {consolidation!r}"
            )
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1]; got {gamma}")
        if gamma != 1 and consolidation != "online":
            raise ValueError(f"gamma decays consolidation='online' only; got gamma={gamma} with {consolidation!r}")
        self.coefficient = coefficient
        self.consolidation = consolidation
        self.gamma = gamma
        self.importances: Any = [] if consolidation == "separate" else {}
        self.anchors: Any = [] if consolidation == "separate" else {}
        self._terms: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    @abstractmethod
    def importance(self, strategy) -> ByName:
        """How important each parameter was to the experience just learned: name -> non-negative tensor."""

    def penalty(self, model: nn.Module) -> Tensor:
        """The penalty at the model's present parameters, a scalar that carries gradients."""
        return self._penalty(self._matched(model))

    # --- Avalanche's hooks ----------------------------------------------------------------------------------------

    def before_training_exp(self, strategy, **kwargs):
        # Matched once an experience: heads and units are added before it begins, never inside it.
        self._terms = self._matched(strategy.model)

    def before_backward(self, strategy, **kwargs):
        if self._terms:
            strategy.loss = strategy.loss + self._penalty(self._terms)

    def after_training_exp(self, strategy, **kwargs):
        self._terms = []
        importances = self.importance(strategy)
        anchors = {name: p.detach().clone() for name, p in strategy.model.named_parameters() if name in importances}
        self.consolidate(importances, anchors)
        self._warn_if_unstable(strategy.optimizer, strategy.model)

    # --- consolidation --------------------------------------------------------------------------------------------

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        """Take in what the experience just learned left behind."""
        if self.consolidation == "separate":
            self.importances.append(importances)
            self.anchors.append(anchors)
            return
        # Schwarz et al. 2018: F*_t = gamma F*_{t-1} + F_t; gamma = 1 is Huszár's sum.
        for name, importance in importances.items():
            if name in self.importances:
                importance = importance + self.gamma * _grown(self.importances[name], importance)
            self.importances[name] = importance
        self.anchors.update(anchors)

    # --- the penalty ----------------------------------------------------------------------------------------------

    @property
    def _scale(self) -> float:
        # Schwarz et al. 2018 weigh the running sum by gamma once more when it becomes the next penalty.
        return self.coefficient * self.gamma

    def _penalty(self, terms: list[tuple[nn.Parameter, Tensor, Tensor]]) -> Tensor:
        total: Tensor = torch.zeros((), device=terms[0][0].device) if terms else torch.zeros(())
        for parameter, importance, anchor in terms:
            total = total + _WeightedSquare.apply(parameter, importance, anchor)
        return self._scale * total

    def _pairs(self) -> list[tuple[ByName, ByName]]:
        if self.consolidation == "separate":
            return list(zip(self.importances, self.anchors, strict=True))
        return [(self.importances, self.anchors)]

    def _matched(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
        """(parameter, importance, anchor) of every penalised parameter, in the parameter's present shape."""
        parameters = dict(model.named_parameters())
        return [
            (parameters[name], _grown(importance, parameters[name]), _grown(anchors[name], parameters[name]))
            for importances, anchors in self._pairs()
            for name, importance in importances.items()
        ]

    def _warn_if_unstable(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Warn where gradient steps on the penalty overshoot ever further.

        They do once learning rate x curvature exceeds 2 (1 + m), with momentum m (Nesterov's: divided by 1 + 2 m).
        That bound is SGD's; adaptive optimisers rescale their steps and are left alone.
        """
        if not isinstance(optimizer, torch.optim.SGD):
            return
        curvature: dict[int, Tensor] = {}
        for parameter, importance, _ in self._matched(model):
            curvature[id(parameter)] = curvature.get(id(parameter), 0) + 2 * self._scale * importance
        names = {id(p): name for name, p in model.named_parameters()}
        for index, group in enumerate(optimizer.param_groups):
            momentum = group["momentum"]
            limit = 2 * (1 + momentum) / (1 + 2 * momentum if group["nesterov"] else 1)
            steps = {id(p): group["lr"] * curvature[id(p)].max().item() for p in group["params"] if id(p) in curvature}
            worst = max(steps, key=steps.__getitem__, default=None)
            if worst is not None and steps[worst] > limit:
                warnings.warn(
                    f"{type(self).__name__}: in parameter group {index}, learning rate {group['lr']:g} x penalty "
                    f"curvature {steps[worst] / group['lr']:.3g} = {steps[worst]:.3g} exceeds {limit:g} for "
                    f"{names[worst]!r}: SGD steps on the penalty will diverge, even where the loss stays finite. "
                    f"Lower the learning rate or the penalty by a factor of {steps[worst] / limit:.2g}.",
                    stacklevel=2,
                )


class _WeightedSquare(torch.autograd.Function):
    """sum_i importance_i (parameter_i - anchor_i)^2, in half the passes over memory that autograd would take."""

    @staticmethod
    def forward(ctx, parameter: Tensor, importance: Tensor, anchor: Tensor) -> Tensor:  # type: ignore[override]
        difference = parameter - anchor
        weighted = importance * difference
        ctx.save_for_backward(weighted)
        return torch.dot(weighted.flatten(), difference.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (weighted,) = ctx.saved_tensors
        return weighted * (2 * upstream), None, None


def _grown(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` padded with zeros to the shape of ``like``: units added since have importance 0.

    Avalanche's incremental layers keep the old units first.
    """
    if tensor.shape == like.shape:
        return tensor
    if tensor.dim() != like.dim() or any(old > new for old, new in zip(tensor.shape, like.shape, strict=True)):
        raise ValueError(
            f"a parameter shrank from shape {tuple(tensor.shape)} to {tuple(like.shape)}; it may only grow"
        )
    grown = tensor.new_zeros(like.shape)
    grown[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return grown
