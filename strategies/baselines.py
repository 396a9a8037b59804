"""Baselines: the plain L2 anchor, the frozen backbone and the rehearsal of a small buffer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from engrams.strategies.anchors import ByName
from engrams.strategies.arguments import at_least_one, not_negative
from engrams.strategies.choices import PenaltyStep
from engrams.strategies.experiences import Pieces, trained_on
from engrams.strategies.kept import KeepsNothingWithin, State
from engrams.strategies.networks import AskedThroughStrategy, named_parameters, unwrapped
from engrams.strategies.one_strategy import OfOneStrategy
from engrams.strategies.quadratic_penalty import Excluded, QuadraticPenaltyPlugin, strength
from engrams.strategies.rehearsal import RehearsalPlugin
from engrams.strategies.reservoir import put_together


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

    l2_lambda = strength("l2_lambda", 1 / 2)

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._learned: set[str] = set()
        """Names of what has had a gradient in the present experience."""
        self._parameters: dict[str, nn.Parameter] = {}

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self._parameters = named_parameters(strategy.model)

    def after_backward(self, strategy, **kwargs):
        self._learned.update(_with_gradient(self._parameters))

    def importance(self, strategy) -> dict[str, Tensor]:
        """Returns 1 for every parameter that has had a gradient in the experience."""
        parameters = named_parameters(strategy.model)
        learned = self._learned | set(_with_gradient(parameters))  # of a loop that does not tell
        if not learned:
            warnings.warn(
                f"{type(self).__name__}: no gradient was seen in experience {self.consolidated}: nothing of it will be "
                f"held",
                stacklevel=3,
            )
        return {name: torch.ones_like(p) for name, p in parameters.items() if name in learned}

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        self.importances.update(importances)
        self.anchors.update(anchors)
        self._learned = set()

    def state_dict_within(self) -> State:
        """Returns what has had a gradient so far."""
        return {"learned": sorted(self._learned)}

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from the middle of an experience."""
        self._learned = set(state["learned"])


def _with_gradient(parameters: dict[str, nn.Parameter]) -> list[str]:
    return [name for name, p in parameters.items() if p.grad is not None and p.numel()]


class FrozenBackbonePlugin(KeepsNothingWithin, OfOneStrategy, SupervisedPlugin):
    """Learn everything in the first experience, and only the classifier from the second on.

    What a fixed representation can do: no forgetting below the classifier, and nothing new learned there either. What
    the rest keeps besides parameters (the running statistics of batch norm) is held, too: such layers are in eval mode.
    What the classifier shares with the rest (the weight of an embedding) goes on learning.
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
        self._forget()

    def _forget(self) -> None:
        self._pieces = Pieces(self)
        self._freezes = False

    def _holds(self) -> bool:
        return self._freezes

    def before_training_exp(self, strategy, **kwargs):
        self._meet(strategy)
        self._pieces.begin(strategy.experience)
        learning = {id(p) for module in self._learning(strategy.model) for p in module.parameters(recurse=False)}
        if not learning:
            raise ValueError(f"the model has no parameters in {self.classifier!r}; name its classifier")
        for parameter in strategy.model.parameters():
            if self._freezes and id(parameter) not in learning:
                parameter.requires_grad_(False)
                parameter.grad = None

    def before_training_epoch(self, strategy, **kwargs):
        learning = self._learning(strategy.model)
        for module in strategy.model.modules():
            if self._freezes and module not in learning and any(True for _ in module.buffers(recurse=False)):
                module.training = False  # this one alone: the classifier may lie below it

    def after_training_exp(self, strategy, **kwargs):
        self._freezes |= self._pieces.end(strategy.experience)

    def state_dict(self) -> State:
        """Returns whether the backbone is frozen from now on.

        Raises:
            Unkept: between two pieces of the first experience.
        """
        if not self._freezes:
            self._pieces.refuse_to_wait()
        return {"freezes": self._freezes}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._with, self._pieces = None, Pieces(self)
        self._freezes = state["freezes"]

    def _learning(self, model: nn.Module) -> set[nn.Module]:
        """Returns the classifier and all within it, whatever else they are called in the model."""
        try:
            return set(unwrapped(model).get_submodule(self.classifier).modules())
        except AttributeError:  # there is none, or it is no module
            return set()


class ReplayPlugin(KeepsNothingWithin, OfOneStrategy, RehearsalPlugin):
    """Rehearsal of a small buffer of past samples, under any Avalanche strategy.

    Hsu et al. 2018 ("naive rehearsal"): the buffer holds an equal number of samples of every past experience, chosen at
    random. A step sees as many old samples as new ones, or the whole buffer if that is smaller: the two minibatches are
    joined, and the loss is their mean. The buffer is tensors on the strategy's device, so that rehearsal costs what
    twice the batch costs. Where the stream comes in pieces (Avalanche's ``split_online_stream``), an experience is
    chosen from when its last has come. It holds samples with the data set's transformations of *evaluation*: an image
    is not augmented once for all; the strategy's own loader and ``_unpack_minibatch`` treat them as they do new ones,
    once. It has to stand before plugins that change a minibatch's images.
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
        self._pieces = Pieces(self)
        self._met: list[Any] = []

    def _holds(self) -> bool:
        return bool(self._kept)

    def before_training_exp(self, strategy, **kwargs):
        self._meet(strategy)
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
        self._met.append(trained_on(strategy).eval())
        if not self._pieces.end(strategy.experience):
            return
        dataset: ConcatDataset = ConcatDataset(self._met)
        experiences = len(self._kept) + 1
        share = self.mem_size // experiences
        if not share:
            raise ValueError(f"a buffer of {self.mem_size} cannot hold a sample of each of {experiences} experiences")
        chosen = torch.randperm(len(dataset))[:share].tolist()
        loader = DataLoader(Subset(dataset, chosen), len(chosen), collate_fn=_collation(strategy, self._met[0]))
        try:
            columns = next(iter(loader))
        except RuntimeError as error:  # of several shapes
            raise ValueError(
                f"{type(self).__name__} keeps samples as tensors, and these cannot be put together ({error}): let the "
                f"data set give all of one shape (sequences padded to one length)"
            ) from error
        self._kept.append(AskedThroughStrategy(strategy).unpacked(columns))
        self._met = []
        self._keep([[column[:share] for column in kept] for kept in self._kept])

    def _keep(self, kept: list[list[Tensor]]) -> None:
        sizes = [len(columns[0]) for columns in kept]
        self._buffer = put_together(kept)
        # Parts of the buffer: what was cut would otherwise be held as well.
        self._kept = [list(part) for part in zip(*(column.split(sizes) for column in self._buffer), strict=True)]

    def state_dict(self) -> State:
        """Returns the buffer: of every experience, the columns of what is kept.

        Raises:
            Unkept: between two pieces of an experience.
        """
        self._pieces.refuse_to_wait()
        return {"kept": [[column.clone() for column in kept] for kept in self._kept]}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._with, self._pieces, self._met = None, Pieces(self), []
        self._keep(state["kept"])


def _collation(strategy, dataset: Any) -> Callable[[list], Any]:
    """Returns what makes minibatches of samples: the strategy's own loader may do so in another way than its data."""
    of_loader = getattr(strategy.dataloader, "collate_fn", None)  # torch's; Avalanche's have the next
    return of_loader or getattr(strategy.dataloader, "loader_kwargs", {}).get("collate_fn") or dataset.collate_fn
