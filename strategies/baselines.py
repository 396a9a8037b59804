"""Baselines that Avalanche does not have: the plain L2 anchor and the frozen backbone."""

from __future__ import annotations

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from strategies.quadratic_penalty import ByName, QuadraticPenaltyPlugin


class L2Plugin(QuadraticPenaltyPlugin):
    """The quadratic penalty with all importances 1: (lambda / 2) ||theta - theta*_T||^2.

    Kirkpatrick et al. 2017, figure 2A ("L2"). The anchor is the latest optimum, and the importance stays 1 however many
    experiences there have been. Heads that have not been trained are left alone.
    """

    def __init__(self, l2_lambda: float):
        """
        Args:
            l2_lambda: lambda above, >= 0.

        Raises:
            ValueError: l2_lambda below 0.
        """
        super().__init__(l2_lambda / 2)
        self.l2_lambda = l2_lambda

    def importance(self, strategy) -> dict[str, Tensor]:
        """1 for every parameter that the last step gave a gradient to."""
        return {name: torch.ones_like(p) for name, p in strategy.model.named_parameters() if p.grad is not None}

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        self.importances.update(importances)
        self.anchors.update(anchors)


class FrozenBackbonePlugin(SupervisedPlugin):
    """Learn everything in the first experience, and only the classifier from the second on.

    What a fixed representation can do: no forgetting below the classifier, and nothing new learned there either.
    """

    def __init__(self, classifier: str = "classifier"):
        """
        Args:
            classifier: name of the model's attribute that goes on learning.

        Raises:
            ValueError: at the second experience, if the model has no parameters under that name.
        """
        super().__init__()
        self.classifier = classifier

    def before_training_exp(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 0:
            return
        names = [name for name, _ in strategy.model.named_parameters()]
        if not any(name.startswith(f"{self.classifier}.") for name in names):
            raise ValueError(f"the model has no parameters in {self.classifier!r}; name its classifier")
        for name, parameter in strategy.model.named_parameters():
            if not name.startswith(f"{self.classifier}."):
                parameter.requires_grad_(False)
                parameter.grad = None
