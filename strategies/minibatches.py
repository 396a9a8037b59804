"""A data set as the importances read it: in minibatches of one task, and how a network is called with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from engrams.strategies.networks import AskedThroughStrategy

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


def forward(model: nn.Module, inputs: Inputs, task: int) -> Tensor:
    """Returns the model's outputs on a batch of one task, as it gives them."""
    return model(*arguments(model, inputs, task))


def arguments(model: nn.Module, inputs: Inputs, task: int) -> tuple:
    """Returns what the model is called with: a multi-task model gets the task label, too.

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
