"""A network behind what wraps it: asked through a strategy's own forward, compiled or made parallel."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from engrams.strategies.undisturbed import attributes_kept


class AskedThroughStrategy(nn.Module):
    """Calls a strategy's model through the strategy's own ``forward``.

    So an importance can be measured on every kind of minibatch that the strategy can be trained on. Its input is the
    list of all columns of a minibatch, as the data set gives them; while it runs, ``strategy.is_training`` is False.
    """

    def __init__(self, strategy):
        super().__init__()
        self.model = strategy.model
        self._strategy = [strategy]  # in a list, so that it is no part of the module

    def forward(self, columns: list) -> Tensor:
        with self._in_evaluation(), self._minibatch_of(columns):
            return self._strategy[0].forward()

    def unpacked(self, columns: list) -> list:
        """Returns these columns as the strategy's minibatch has them: it may normalise inputs or map labels."""
        with self._in_evaluation(), self._minibatch_of(columns):
            return self._strategy[0].mbatch

    def labels(self, columns: list) -> Tensor | None:
        with self._minibatch_of(columns):
            return self._strategy[0].mb_y if len(columns) > 1 else None

    def loss(self, columns: list, outputs: Tensor) -> Tensor:
        """Returns the strategy's own loss of some outputs. A criterion that counts its calls is asked in a copy."""
        strategy = self._strategy[0]
        with attributes_kept([strategy]), self._minibatch_of(columns):
            strategy.mb_output = outputs
            if hasattr(strategy, "_criterion"):
                strategy._criterion = _copied(strategy._criterion)
            return strategy.criterion()

    @contextmanager
    def _in_evaluation(self) -> Iterator[None]:
        strategy = self._strategy[0]
        training, strategy.is_training = getattr(strategy, "is_training", False), False
        try:
            yield
        finally:
            strategy.is_training = training

    @contextmanager
    def _minibatch_of(self, columns: list) -> Iterator[None]:
        strategy = self._strategy[0]
        with minibatch_of(strategy, columns):
            strategy._unpack_minibatch()
            yield


@contextmanager
def minibatch_of(strategy, columns: list) -> Iterator[None]:
    """Within, these columns are the strategy's minibatch, of which ``strategy.forward()`` asks its model."""
    before = strategy.mbatch
    strategy.mbatch = list(columns)
    try:
        yield
    finally:
        strategy.mbatch = before


def loss_of(strategy, columns: list) -> Tensor:
    """Returns the strategy's own loss of these samples, which go through the network by themselves."""
    outputs = strategy.mb_output
    with minibatch_of(strategy, columns):
        strategy.mb_output = strategy.forward()
        try:
            return strategy.criterion()
        finally:
            strategy.mb_output = outputs


@contextmanager
def model_of(strategy, model: nn.Module) -> Iterator[None]:
    """Within, this is the strategy's model, which ``strategy.forward()`` asks."""
    before, strategy.model = strategy.model, model
    try:
        yield
    finally:
        strategy.model = before


def _copied(criterion: Any) -> Any:
    try:
        return copy.deepcopy(criterion)
    except Exception:  # whatever it raises: it cannot be copied
        return criterion


PLAIN_COLUMNS = {name: getattr(SupervisedProblem, name) for name in ("mb_x", "mb_y", "mb_task_id")}
"""Which column of a minibatch is what, for a strategy that does not say otherwise."""


def asked(strategy) -> nn.Module:
    """Returns the strategy's model, behind the strategy itself if that has its own ``forward`` or columns."""
    methods = {name: getattr(strategy, name, None) for name in ("forward", "_unpack_minibatch")}
    own = any(
        method is not None and getattr(method, "__func__", None) is not getattr(SupervisedProblem, name)
        for name, method in methods.items()
    )
    own = own or any(getattr(type(strategy), name, None) not in (None, plain) for name, plain in PLAIN_COLUMNS.items())
    return AskedThroughStrategy(strategy) if own else strategy.model


def refuse_no_tensor(outputs: Any, who: str = "") -> None:
    """Raises a ValueError if what a network gives is no tensor.

    Args:
        outputs: what it gives.
        who: the name of the plugin that needs a tensor, for the message.
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"{who and who + ' cannot work here: '}the network gives a {type(outputs).__name__} where outputs of shape "
            f"[N, K] are expected; give the strategy a forward() that returns the outputs alone"
        )


WRAPPERS: dict[type[nn.Module], str] = {
    OptimizedModule: "_orig_mod",
    DataParallel: "module",
    DistributedDataParallel: "module",
    AskedThroughStrategy: "model",
}
"""What is seen through: the kind of module -> the attribute that holds the network."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network itself: what was compiled or made parallel is computed in the plain way here."""
    while isinstance(model, OptimizedModule | DataParallel | DistributedDataParallel):
        model = getattr(model, WRAPPERS[type(model)])
    return model


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns every parameter by name; the name does not change when a module is compiled or made parallel."""
    wrappers = [
        (below(name, attribute) + ".", name + "." if name else "")
        for name, module in model.named_modules()
        for kind, attribute in WRAPPERS.items()
        if isinstance(module, kind)
    ]

    def plain(name: str) -> str:
        for inside, outside in reversed(wrappers):  # the innermost first
            if name.startswith(inside):
                name = outside + name[len(inside) :]
        return name

    return {plain(name): p for name, p in model.named_parameters()}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that require a gradient, by name. Frozen parameters and buffers have no importance.

    Nor has one without entries: prototypes of which there are none yet.
    """
    return {name: p for name, p in named_parameters(model).items() if p.requires_grad and (is_lazy(p) or p.numel())}


def some_of(names: Collection[str]) -> str:
    """Returns the first three names, quoted, for a message."""
    return ", ".join(map(repr, list(names)[:3])) + (", ..." if len(names) > 3 else "")


def below(module_name: str, attribute: str) -> str:
    """Returns the name of a module's attribute; the model itself has the empty name."""
    return f"{module_name}.{attribute}" if module_name else attribute
