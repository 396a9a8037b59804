"""A network as the importances ask it: in eval mode, by minibatches of a data set, seen through what wraps it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.models import MultiTaskModule
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

Inputs = Any
"""What a network is called with: a tensor, or a dict or tuple of tensors, of N rows each."""


class Minibatch(NamedTuple):
    """Samples of one task."""

    inputs: Inputs
    y: Any
    """Labels, a tensor; of other forms too where none are read. None: there are none."""
    task: int
    first: int
    """Position of its first sample in what is measured."""


# --- networks ---------------------------------------------------------------------------------------------------------


class AskedThroughStrategy(nn.Module):
    """A strategy's model, asked through the strategy's own ``forward``: what that can take, an importance can.

    Its input is the whole minibatch, as the data set gives it.
    """

    def __init__(self, strategy):
        super().__init__()
        self.model = strategy.model
        self._strategy = [strategy]  # in a list, so that it is no part of the module

    def forward(self, columns: list) -> Tensor:
        strategy = self._strategy[0]
        with self._minibatch_of(columns):
            return strategy.forward()

    def labels(self, columns: list) -> Tensor | None:
        with self._minibatch_of(columns):
            return self._strategy[0].mb_y if len(columns) > 1 else None

    def loss(self, columns: list, outputs: Tensor) -> Tensor:
        """The strategy's own loss of some outputs."""
        strategy = self._strategy[0]
        before = getattr(strategy, "mb_output", None)
        with self._minibatch_of(columns):
            strategy.mb_output = outputs
            try:
                return strategy.criterion()
            finally:
                strategy.mb_output = before

    @contextmanager
    def _minibatch_of(self, columns: list) -> Iterator[None]:
        strategy = self._strategy[0]
        before = strategy.mbatch
        strategy.mbatch = list(columns)
        try:
            strategy._unpack_minibatch()
            yield
        finally:
            strategy.mbatch = before


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


def below(module_name: str, attribute: str) -> str:
    """The name of a module's attribute; the model itself has the empty name."""
    return f"{module_name}.{attribute}" if module_name else attribute


def forward(model: nn.Module, inputs: Inputs, task: int) -> Tensor:
    """The model's outputs on a batch of one task, as it gives them."""
    return model(*arguments(model, inputs, task))


def arguments(model: nn.Module, inputs: Inputs, task: int) -> tuple:
    """What the model is called with: a multi-task model gets the task label, too.

    Inputs are copied, since a network may change them in place, and is asked more than once.

    Avalanche's own ``forward`` takes one label for all samples; one that was overridden gets a label a sample, as in
    training.
    """
    inputs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    if not isinstance(model, MultiTaskModule):
        return (inputs,)
    if type(model).forward is MultiTaskModule.forward:
        return (inputs, task)
    leaf = next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
    return (inputs, torch.full((len(leaf),), task, device=leaf.device))


@contextmanager
def without_tf32() -> Iterator[None]:
    """A GPU's convolutions have all of float32 within, not the 10 bits that PyTorch lets them have.

    With TF32 a gradient is off by about 1e-3, by another error in a batch than alone: then no layer's rule is found to
    hold, and the samples are measured one after another.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, batch norm on its running statistics), every module's own mode restored afterwards.

    So are buffers and attributes that a network changes in its forward pass: measuring leaves it as it was. What was
    compiled is run as it was written, since a compiled layer's hooks do not fire.
    """
    training = [module for module in model.modules() if module.training]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    with attributes_kept(model), ExitStack() as stack:
        model.eval()
        stack.enter_context(torch.enable_grad())
        if hasattr(torch.compiler, "set_stance"):  # torch 2.6
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # has no backward pass in eval mode
        try:
            yield
        finally:
            for module in training:
                module.training = True
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    if getattr(module, name) is not buffer:
                        setattr(module, name, buffer)
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Attributes that are set within (the state that a recurrent network keeps) are what they were afterwards.

    But for those of a lazy module that gets its parameters within, and is one of another kind from then on.
    """
    before = [(module, type(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, kind, attributes in before:
            if type(module) is not kind:
                continue
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)


# --- data -------------------------------------------------------------------------------------------------------------


def minibatches(
    model: nn.Module, dataset: Dataset, batch_size: int, indices: Tensor | None = None, num_workers: int = 0
) -> Iterator[Minibatch]:
    """Minibatches in the dataset's order, on the model's device, one task in each.

    Samples that cannot be put together (of unequal length) come one by one.

    Args:
        model: a multi-task model's data carries the task label in its last column; another's last column is data.
        dataset: yields (x, y) or (x, y, ..., task label), as Avalanche's datasets do; or x alone, and y is None. x is a
            tensor, or a dict or tuple of tensors.
    """
    device = next(model.parameters()).device
    collate = _OneByOneIfNeedBe(getattr(dataset, "collate_fn", None) or default_collate)
    if indices is not None:
        dataset = Subset(dataset, indices.tolist())
    # A loader draws a seed when its iterator is made; from its own generator, so that measuring an importance leaves
    # torch's global one, and with it the training that follows, as they were.
    loader = DataLoader(
        dataset, batch_size=batch_size, collate_fn=collate, generator=torch.Generator(), num_workers=num_workers
    )
    first = 0
    for batch in (batch for batches in loader for batch in batches):
        columns = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
        columns = [columns] if isinstance(columns, Tensor | dict) else list(columns)
        if isinstance(model, AskedThroughStrategy):
            inputs, y = columns, model.labels(columns)
        else:
            inputs, y = columns[0], columns[1] if len(columns) > 1 else None
        size = rows(columns[0])
        tasks = columns[-1] if isinstance(model, MultiTaskModule) and len(columns) > 2 else None
        labels = [0] if tasks is None else tasks.unique().tolist()
        for label in labels:
            if len(labels) == 1:
                yield Minibatch(inputs, y, label, first)
            else:
                assert tasks is not None
                chosen = tasks.eq(label)
                yield Minibatch(part(inputs, chosen), part(y, chosen), label, first)
        first += size


class _OneByOneIfNeedBe:
    """Collates samples to a list of batches: one batch, or one for every sample where they do not fit together."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, samples: list) -> list:
        try:
            return [self.collate(samples)]
        except (RuntimeError, ValueError):
            return [self.collate([sample]) for sample in samples]


def rows(inputs: Inputs) -> int:
    """Returns how many samples there are."""
    return len(next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)))


def part(inputs: Inputs, chosen: slice | Tensor) -> Inputs:
    """Returns some of the rows of every tensor."""
    return tree_map(lambda leaf: leaf[chosen] if isinstance(leaf, Tensor) and leaf.dim() else leaf, inputs)


def chosen_samples(available: int, wanted: int | None) -> Tensor | None:
    """Returns the sorted positions of ``wanted`` samples, drawn by torch's global generator; None for all."""
    if wanted is None or wanted >= available:
        return None
    return torch.randperm(available)[:wanted].sort().values


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """What is drawn within (by torch, NumPy or Python) is drawn again afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (what transformations draw from)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
