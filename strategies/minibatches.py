"""A network as the importances ask it: in eval mode, by minibatches of a data set, seen through what wraps it."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
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
"""What a network is called with: a tensor, or a dict or tuple of tensors, of N rows each; or :class:`Whole`."""


@dataclass(frozen=True)
class Whole:
    """Inputs of which no part can be taken: not made of tensors with a row for every sample (strings, an object)."""

    inputs: Any
    size: int
    """How many samples they are of."""


class Minibatch(NamedTuple):
    """Samples of one task."""

    inputs: Inputs
    y: Any
    """Labels, a tensor; of other forms too where none are read. None: there are none."""
    task: int
    first: int
    """Position of its first sample in what is measured."""
    columns: Any = None
    """All that the data set gives of these samples."""


# --- numbers ----------------------------------------------------------------------------------------------------------


def wide(numbers: Tensor) -> Tensor:
    """Returns floating-point numbers in float32 at least, others as they are.

    In bfloat16 a sum of equal terms stops growing at the 256th, and in float16 the square of 1e-4 is 0.
    """
    return numbers.float() if numbers.is_floating_point() and numbers.dtype.itemsize < 4 else numbers


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
        """The strategy's own loss of some outputs. A criterion that counts its calls is asked in a copy."""
        strategy = self._strategy[0]
        with attributes_kept([strategy]), self._minibatch_of(columns):
            strategy.mb_output = outputs
            if hasattr(strategy, "_criterion"):
                strategy._criterion = _copied(strategy._criterion)
            return strategy.criterion()

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
    size = rows(inputs)
    inputs = inputs.inputs if isinstance(inputs, Whole) else inputs
    inputs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    if not isinstance(model, MultiTaskModule):
        return (inputs,)
    if type(model).forward is MultiTaskModule.forward:
        return (inputs, task)
    return (inputs, torch.full((size,), task, device=next(model.parameters()).device))


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
    compiled is run as it was written, since a compiled layer's hooks do not fire. ``torch.autocast`` around the call is
    switched off: what is measured is measured in the parameters' own type.
    """
    training = [module for module in model.modules() if module.training]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    with attributes_kept(model.modules()), ExitStack() as stack:
        model.eval()
        for device in {p.device.type for p in model.parameters()}:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
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
def attributes_kept(holders: Iterable[Any]) -> Iterator[None]:
    """Attributes that are set within (the state that a recurrent network keeps) are what they were afterwards.

    So is what lists, dicts and sets hold, in the attributes or within reach of a hook, which collects activations. But
    for a lazy module that gets its parameters within, and is one of another kind from then on.
    """
    before = [(holder, type(holder), dict(vars(holder)), _collections_of(holder)) for holder in holders]
    try:
        yield
    finally:
        for holder, kind, attributes, collections in before:
            if type(holder) is not kind:
                continue
            for name in vars(holder).keys() - attributes.keys():
                del vars(holder)[name]
            vars(holder).update(attributes)
            for collection, content in collections.values():
                _refill(collection, content)


def _collections_of(holder: Any) -> dict[int, tuple[Any, Any]]:
    """The lists, dicts and sets that an object or its hooks keep, by their ids, each with a copy."""
    found: dict[int, tuple[Any, Any]] = {}
    for name, value in vars(holder).items():
        _note(value, found)
        if name.endswith("_hooks") and isinstance(value, dict):
            for hook in value.values():
                for reached in _within_reach(hook):
                    _note(reached, found)
    return found


def _note(value: Any, collections: dict[int, tuple[Any, Any]]) -> None:
    """Adds a list, dict or set, and those in it, with a copy of each."""
    if not isinstance(value, list | dict | set | deque | tuple) or id(value) in collections:
        return
    collections[id(value)] = value, copy.copy(value)
    for inside in list(value.values() if isinstance(value, dict) else value):
        _note(inside, collections)


def _refill(collection: Any, content: Any) -> None:
    if isinstance(collection, tuple):
        return
    if isinstance(collection, dict):
        same = list(map(id, [*collection, *collection.values()])) == list(map(id, [*content, *content.values()]))
    else:
        same = list(map(id, collection)) == list(map(id, content))
    if not same:
        collection.clear()
        (collection.update if isinstance(collection, dict | set) else collection.extend)(content)


def _within_reach(hook: Any) -> list[Any]:
    """The variables that a hook names, and the attributes of the objects among them."""
    if isinstance(hook, partial):
        return [*_within_reach(hook.func), *hook.args, *hook.keywords.values()]
    if isinstance(hook, MethodType):
        return [*vars(hook.__self__).values(), *_within_reach(hook.__func__)]
    if not isinstance(hook, FunctionType):
        return list(vars(hook).values()) if hasattr(hook, "__dict__") else []
    named = [hook.__globals__.get(name) for name in hook.__code__.co_names]
    for cell in hook.__closure__ or ():
        try:
            named.append(cell.cell_contents)
        except ValueError:  # empty
            continue
    named += hook.__defaults__ or ()
    objects = [value for value in named if hasattr(value, "__dict__") and not isinstance(value, type | FunctionType)]
    return named + [value for one in objects if not isinstance(one, ModuleType) for value in vars(one).values()]


# --- data -------------------------------------------------------------------------------------------------------------


def minibatches(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    indices: Tensor | None = None,
    num_workers: int = 0,
    whole: bool = False,
) -> Iterator[Minibatch]:
    """Minibatches in the dataset's order, on the model's device, one task in each.

    Samples that cannot be put together (of unequal length) come one by one. So do those whose minibatch is not made of
    tensors with a row for every sample (strings, a dataclass, a list of tensors), as the collation gives each alone.

    Args:
        model: a multi-task model's data carries the task label in its last column; another's last column is data.
        dataset: yields (x, y) or (x, y, ..., task label), as Avalanche's datasets do; or x alone, and y is None. x is a
            tensor, or a dict or tuple of tensors; of other forms, what the model takes of the collation.
        whole: a minibatch that is not made of tensors is left together: no part of it will be taken.

    Raises:
        ValueError: a minibatch of several tasks that is left together.
    """
    through = isinstance(model, AskedThroughStrategy)
    device = next(model.parameters()).device
    collate = _Collation(getattr(dataset, "collate_fn", None) or default_collate, through, whole)
    if indices is not None:
        dataset = Subset(dataset, indices.tolist())
    # A loader draws a seed when its iterator is made; from its own generator, so that measuring an importance leaves
    # torch's global one, and with it the training that follows, as they were.
    loader = DataLoader(
        dataset, batch_size=batch_size, collate_fn=collate, generator=torch.Generator(), num_workers=num_workers
    )
    first = 0
    for batch, size, has_rows in (batch for batches in loader for batch in batches):
        columns = _columns(tree_map(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, batch))
        inputs: Inputs
        if isinstance(model, AskedThroughStrategy):
            inputs, y = columns, model.labels(columns)
        else:
            inputs, y = columns[0], columns[1] if len(columns) > 1 else None
        if not has_rows:
            inputs = Whole(inputs, size)
        tasks = columns[-1] if isinstance(model, MultiTaskModule) and len(columns) > 2 else None
        labels = [0] if tasks is None else tasks.unique().tolist()
        if len(labels) > 1 and not has_rows:
            raise ValueError(
                f"a minibatch has samples of tasks {labels}, and cannot be taken apart: it is no tensor, nor a dict or "
                f"tuple of tensors"
            )
        for label in labels:
            if len(labels) == 1:
                yield Minibatch(inputs, y, label, first, columns)
            else:
                assert tasks is not None
                chosen = tasks.eq(label)
                yield Minibatch(part(inputs, chosen), part(y, chosen), label, first, part(columns, chosen))
        first += size


class _Collation:
    """Collates samples to a list of (batch, its samples, whether it has a row for each): one, or one for every sample
    where they do not fit together or could not be taken apart."""

    def __init__(self, collate, all_columns: bool, whole: bool):
        self.collate = collate
        self.all_columns = all_columns
        self.whole = whole

    def __call__(self, samples: list) -> list:
        try:
            batch = self.collate(samples)
        except (RuntimeError, ValueError):
            pass  # alone they may
        else:
            has_rows = self.has_rows(batch, samples)
            if has_rows or self.whole or len(samples) == 1:
                return [(batch, len(samples), has_rows)]
        alone = [(self.collate([sample]), [sample]) for sample in samples]
        return [(batch, 1, self.has_rows(batch, sample)) for batch, sample in alone]

    def has_rows(self, batch: Any, samples: list) -> bool:
        if self.all_columns:
            return _has_rows(_columns(batch), _columns(samples[0]), len(samples))
        return _has_rows(_columns(batch)[0], _columns(samples[0])[0], len(samples))


def _columns(batch: Any) -> list:
    return list(batch) if isinstance(batch, list | tuple) else [batch]


def _has_rows(given: Any, sample: Any, size: int) -> bool:
    """Whether what a collation gave of ``size`` samples, one of them ``sample``, is tensors with a row for each."""
    if isinstance(given, Tensor):
        return not given.dim() or len(given) == size
    if isinstance(given, dict):
        of_sample = sample if isinstance(sample, dict) else {}
        return all(_has_rows(inside, of_sample.get(key), size) for key, inside in given.items())
    if isinstance(given, list | tuple):
        of_each = sample if isinstance(sample, list | tuple) and len(sample) == len(given) else [None] * len(given)
        an_entry_each = isinstance(given, list) and len(given) == size and not isinstance(sample, list | tuple)
        return not an_entry_each and all(map(_has_rows, given, of_each, [size] * len(given)))
    return given is None or isinstance(given, int | float)  # the same for all samples


def rows(inputs: Inputs) -> int:
    """Returns how many samples there are."""
    if isinstance(inputs, Whole):
        return inputs.size
    return len(next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()))


def part(inputs: Inputs, chosen: slice | Tensor) -> Inputs:
    """Returns some of the rows of every tensor; of what is whole, all."""
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
