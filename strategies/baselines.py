"""Baselines: the plain L2 anchor, the frozen backbone and the rehearsal of a small buffer."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset

from engrams.strategies.arguments import at_least_one, not_negative
from engrams.strategies.choices import PenaltyStep
from engrams.strategies.experiences import Pieces
from engrams.strategies.kept import KeepsNothingWithin, State
from engrams.strategies.networks import named_parameters
from engrams.strategies.quadratic_penalty import (
    ByName,
    Excluded,
    QuadraticPenaltyPlugin,
)
from engrams.strategies.rehearsal import RehearsalPlugin


class L2Plugin(QuadraticPenaltyPlugin):
    """The quadratic penalty with all importances 1: (lambda / 2) ||theta - theta*_T||^2.

    Kirkpatrick et al. 2017, figure 2A ("L2"). The anchor is the latest optimum, and the importance stays 1 however many
    experiences there have been. Heads that have not been trained are left alone.
    """

    def __init__(
        self,
        l2_lambda: float,
        *,
        penalty_step: PenaltyStep = "gradient",
        exclude: Excluded | None = (),
        consolidate_every: int | None = None,
    ):
        """
        Args:
            l2_lambda: lambda above, >= 0.
            penalty_step, exclude, consolidate_every: see :class:`QuadraticPenaltyPlugin`.

        Raises:
            ValueError: an argument outside its range; after an experience, parameters that are not finite.
        """
        not_negative(l2_lambda=l2_lambda)
        super().__init__(l2_lambda / 2, penalty_step=penalty_step, exclude=exclude, consolidate_every=consolidate_every)
        self.l2_lambda = l2_lambda

    def importance(self, strategy) -> dict[str, Tensor]:
        """1 for every parameter that the last step gave a gradient to."""
        parameters = named_parameters(strategy.model)
        return {name: torch.ones_like(p) for name, p in parameters.items() if p.grad is not None and p.numel()}

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        self.importances.update(importances)
        self.anchors.update(anchors)


class FrozenBackbonePlugin(KeepsNothingWithin, SupervisedPlugin):
    """Learn everything in the first experience, and only the classifier from the second on.

    What a fixed representation can do: no forgetting below the classifier, and nothing new learned there either. What
    the rest keeps besides parameters (the running statistics of batch norm) is held, too: such layers are in eval mode.
    """

    def __init__(self, classifier: str = "classifier"):
        """
        Args:
            classifier: name of the model's attribute that goes on learning.

        Raises:
            ValueError: at the first experience, if the model has no parameters under that name.
        """
        super().__init__()
        self.classifier = classifier
        self._pieces = Pieces()
        self._freezes = False

    def before_training_exp(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 0:  # of another strategy than before, perhaps
            self._freezes = False
        self._pieces.begin(strategy.experience)
        names = [name for name, _ in strategy.model.named_parameters()]
        if not any(self._learns(name) for name in names):
            raise ValueError(f"the model has no parameters in {self.classifier!r}; name its classifier")
        for name, parameter in strategy.model.named_parameters():
            if self._freezes and not self._learns(name):
                parameter.requires_grad_(False)
                parameter.grad = None

    def before_training_epoch(self, strategy, **kwargs):
        for name, module in strategy.model.named_modules():
            if self._freezes and not self._learns(f"{name}.") and any(True for _ in module.buffers(recurse=False)):
                module.training = False  # this one alone: the classifier may lie below it

    def after_training_exp(self, strategy, **kwargs):
        self._freezes = self._freezes or self._pieces.end(strategy.experience)

    def state_dict(self) -> State:
        """Returns whether the backbone is frozen from now on."""
        return {"freezes": self._freezes}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._freezes = state["freezes"]

    def _learns(self, name: str) -> bool:
        return name.startswith(f"{self.classifier}.")


class ReplayPlugin(KeepsNothingWithin, RehearsalPlugin):
    """Rehearsal of a small buffer of past samples, under any Avalanche strategy.

    Hsu et al. 2018 ("naive rehearsal"): the buffer holds an equal number of samples of every past experience, chosen at
    random, and every step sees as many old samples as new ones: the two minibatches are joined, and the loss is their
    mean. The buffer is tensors on the strategy's device, so that rehearsal costs what twice the batch costs. Where the
    stream comes in pieces (Avalanche's ``split_online_stream``), an experience is chosen from when its last has come.
    """

    def __init__(self, mem_size: int):
        """
        Args:
            mem_size: samples in the whole buffer, at least one for each experience; with T past experiences each has
                mem_size // T. Which are kept and which are rehearsed is drawn by torch's global generator.

        Raises:
            ValueError: mem_size below 1; in the first step, samples that are not made of tensors; after an experience,
                if mem_size is less than the number of experiences so far.
        """
        super().__init__()
        at_least_one(mem_size=mem_size)
        self.mem_size = mem_size
        self._forget()

    def _forget(self) -> None:
        self._kept: list[list[Tensor]] = []
        self._buffer: list[Tensor] = []
        self._pieces = Pieces()
        self._met: list[Any] = []

    def before_training_exp(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 0:  # of another strategy than before, perhaps
            self._forget()
        if self._pieces.begin(strategy.experience):
            self._met = []
        self._keep([[column.to(strategy.device) for column in kept] for kept in self._kept])  # they may be loaded

    def before_training_iteration(self, strategy, **kwargs):
        new = self.new_samples(strategy)
        if not self._buffer:
            return
        size = len(self._buffer[0])
        # Each at most once a step, as long as there are enough.
        order = torch.randperm(size)[: len(new[0])].to(self._buffer[0].device)
        self.put_behind(strategy, [column[order] for column in self._buffer])

    def after_training_exp(self, strategy, **kwargs):
        self._met.append(strategy.experience.dataset.eval())
        if not self._pieces.end(strategy.experience):
            return
        dataset: ConcatDataset = ConcatDataset(self._met)
        experiences = len(self._kept) + 1
        share = self.mem_size // experiences
        if not share:
            raise ValueError(f"a buffer of {self.mem_size} cannot hold a sample of each of {experiences} experiences")
        chosen = torch.randperm(len(dataset))[:share].tolist()
        loader = DataLoader(Subset(dataset, chosen), len(chosen), collate_fn=self._met[0].collate_fn)
        self._kept.append([column.to(strategy.device) for column in next(iter(loader))])
        self._met = []
        self._keep([[column[:share] for column in kept] for kept in self._kept])

    def _keep(self, kept: list[list[Tensor]]) -> None:
        sizes = [len(columns[0]) for columns in kept]
        self._buffer = [torch.cat(columns) for columns in zip(*kept, strict=True)]
        # Parts of the buffer: what was cut would otherwise be held as well.
        self._kept = [list(part) for part in zip(*(column.split(sizes) for column in self._buffer), strict=True)]

    def state_dict(self) -> State:
        """Returns the buffer: of every experience, the columns of what is kept."""
        return {"kept": [[column.clone() for column in kept] for kept in self._kept]}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._keep(state["kept"])
