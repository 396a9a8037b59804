"""Minibatches at the speed of the tensor, for any Avalanche strategy.

Avalanche loads a minibatch sample by sample. Where a dataset is tensors underneath (no transformation, nothing lazy), a
minibatch is one index into them. Two doors lead there:

- :class:`InMemoryLoading`, a plugin: replaces the training and evaluation loaders that Avalanche's templates make.
  A loader that a strategy builds itself (replay) is left alone.
- :class:`TensorClassificationDataset`, the dataset of our streams: answers a whole minibatch's indices at once to
  whatever loader asks (torch's ``__getitems__``), such as those inside Avalanche's importance passes.

Other datasets, such as images that stay on disk, are read sample by sample, but in the same order: what is learned does
not depend on where the data lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader, TaskBalancedDataLoader
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import BaseSGDTemplate
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    TensorDataset,
    default_collate,
)

from engrams.benchmarks.data.images import PreparedLater
from engrams.reports.errors import UserError
from engrams.strategies.kept import State, Unkept


class InMemoryLoading(SupervisedPlugin):
    """Serves an Avalanche strategy minibatches by indexing tensors that already lie on its device.

    Every epoch visits every sample once, in a fresh order drawn from the plugin's own seeded generator, so that
    strategies that differ in how many random numbers they use still see the data in the same order. A multi-task
    experience is shuffled as a whole. Datasets with transformations, or that are not tensors underneath, are read
    sample by sample in that same order. ``shuffle``, ``drop_last`` and ``num_workers`` given to ``strategy.train`` or
    ``strategy.eval`` are kept to.
    """

    def __init__(self, seed: int = 0, iterations: int = 1, in_order: bool = False):
        """
        Args:
            seed: of the order of the training samples.
            iterations: steps in a row on every training minibatch.
            in_order: an experience's own samples are learned in the order in which it has them. What is more than one
                experience, or a buffer, is shuffled as ever.
        """
        super().__init__()
        self.iterations = iterations
        self.in_order = in_order
        self._order = torch.Generator().manual_seed(seed)
        self._batches: BatchOrder | None = None

    def state_dict(self) -> State:
        """Returns the state of the order's source of random numbers."""
        return {"order": self._order.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._order.set_state(state["order"])

    def state_dict_within(self) -> State:
        """Returns where the pass over the samples is: what its order was drawn from, and how much of it is done.

        Raises:
            Unkept: the strategy loads its minibatches by itself.
        """
        if self._batches is None:
            raise Unkept("the strategy loads its minibatches by itself")
        return {"order": self._before, "done": self._done}

    def load_state_dict_within(self, state: State) -> None:
        """The next pass begins where that one was."""
        self._before = state["order"]  # this pass's: it may be cut short once more
        self._order.set_state(self._before)
        assert self._batches is not None
        self._batches.skip = self._done = state["done"]

    def after_train_dataset_adaptation(self, strategy, **kwargs):
        # The template's loader balances tasks, and cannot be made of more tasks than a minibatch has samples. It is
        # told of a larger minibatch while it makes the one that is replaced below.
        self._batch_size = strategy.train_mb_size
        labels = getattr(strategy.adapted_dataset, "targets_task_labels", None)
        if labels is not None and type(strategy).make_train_dataloader is BaseSGDTemplate.make_train_dataloader:
            strategy.train_mb_size = max(self._batch_size, len(labels.uniques))

    def before_training_exp(self, strategy, **kwargs):
        self._batches = None
        self._began()
        strategy.train_mb_size = self._batch_size
        if _made_by_the_template(strategy):
            kept = not kwargs.get("shuffle", True) or (self.in_order and learns_its_experience(strategy))
            order = None if kept else self._order
            drop_last = kwargs.get("drop_last", False)
            self._batches = BatchOrder(
                len(strategy.adapted_dataset), strategy.train_mb_size, order, drop_last, self.iterations
            )
            self._replace(strategy, self._batches, kwargs.get("num_workers", 0))
        self._loader = strategy.dataloader

    def before_training_epoch(self, strategy, **kwargs):
        if self._batches is None or strategy.dataloader is not self._loader:
            if self.iterations > 1:
                raise UserError(
                    f"training.iterations_per_batch = {self.iterations}: the strategy loads its minibatches itself, "
                    f"and takes one step on each"
                )
            if self.in_order:
                raise UserError(
                    "stream.boundaries = 'gradual': the strategy loads its minibatches itself, and in another order"
                )
        self._began()

    def after_training_iteration(self, strategy, **kwargs):
        self._done += 1

    def _began(self) -> None:
        self._before, self._done = self._order.get_state(), 0

    def before_eval_exp(self, strategy, **kwargs):
        if _made_by_the_template(strategy):
            batches = BatchOrder(len(strategy.adapted_dataset), strategy.eval_mb_size, None)
            self._replace(strategy, batches, kwargs.get("num_workers", 0))

    @staticmethod
    def _replace(strategy, batches: BatchOrder, num_workers: int) -> None:
        dataset = strategy.adapted_dataset
        columns = columns_of(dataset) if dataset.collate_fn in (default_collate, _collate) else None
        if columns is None:
            strategy.dataloader = DataLoader(
                dataset,
                batch_sampler=batches,
                collate_fn=dataset.collate_fn,
                num_workers=num_workers,
                generator=torch.Generator(),  # its own, so that no random number is taken from the network's
            )
        else:
            on_device = tuple(column.to(strategy.device) for column in columns)
            strategy.dataloader = TensorLoader(on_device, batches)


def new_sample_count(strategy: Any, iterations: int) -> int:
    """Returns how many samples of a minibatch are of what is trained on, before any plugin has added some.

    They are the first ones; those that Avalanche's own loader replays come behind them. The last minibatch of an epoch
    may have fewer than the others.

    Args:
        strategy: before a step.
        iterations: steps in a row on every minibatch.
    """
    before = strategy.clock.train_epoch_iterations // iterations * strategy.train_mb_size
    return min(len(strategy.mb_x), strategy.train_mb_size, len(strategy.adapted_dataset) - before)


def learns_its_experience(strategy: Any) -> bool:
    """Tells whether what is learned are the experience's samples and no others: Avalanche copies a data set
    shallowly."""
    own, learned = getattr(strategy.experience, "dataset", None), strategy.adapted_dataset
    if own is None:
        return False
    (ours, theirs) = (data._flat_data for data in (own, learned))
    return ours._datasets is theirs._datasets and ours._indices is theirs._indices


def _made_by_the_template(strategy) -> bool:
    """Whether the data loader is the one that Avalanche's template makes, not a strategy's or a plugin's own."""
    loader = strategy.dataloader
    if type(loader) is DataLoader:
        stock = type(loader.sampler) in (RandomSampler, SequentialSampler)
        return stock and loader.dataset is strategy.adapted_dataset
    return type(loader) in (TaskBalancedDataLoader, SingleDatasetDataLoader)


class BatchOrder:
    """The indices of every minibatch, one pass after another.

    Args:
        samples: how many there are.
        batch_size: samples in a minibatch; the last one has what is left.
        order: shuffles anew in every pass; None keeps the order.
        drop_last: leave out a last minibatch that is not full.
        times: how many times in a row each minibatch comes.
    """

    def __init__(
        self, samples: int, batch_size: int, order: torch.Generator | None, drop_last: bool = False, times: int = 1
    ):
        self.samples = samples
        self.batch_size = batch_size
        self.order = order
        self.times = times
        self.used = samples // batch_size * batch_size if drop_last else samples
        self.skip = 0
        """Minibatches that the next pass leaves out at its beginning."""

    def __len__(self) -> int:
        return self.times * -(-self.used // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for indices in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns the minibatches of one pass, each a tensor of indices."""
        kept = self.order is None
        order = torch.arange(self.samples) if kept else torch.randperm(self.samples, generator=self.order)
        return tuple(order[some] for some in self.slices())

    def slices(self) -> Iterator[slice]:
        """Returns the minibatches of one pass, each as places in its order."""
        skip, self.skip = self.skip, 0
        for place in range(skip, len(self)):
            first = place // self.times * self.batch_size
            yield slice(first, min(first + self.batch_size, self.used))


class TensorLoader:
    """Minibatches [x, y, ...] of equally long tensors.

    Args:
        columns: tensors, or images that are prepared when they are asked for.
        batches: of as many samples.
    """

    def __init__(self, columns: tuple[Column, ...], batches: BatchOrder):
        self.columns = columns
        self.device = next(column.device for column in columns if isinstance(column, Tensor))
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.batches.order is None:  # slices: of tensors nothing is copied
            for some in self.batches.slices():
                yield [column[some] for column in self.columns]
            return
        for indices in self.batches.tensors():
            on_device = indices.to(self.device)
            yield [column[on_device] for column in self.columns]


class Minibatch(Sequence[tuple[Tensor, ...]]):
    """The samples of a minibatch: read together, taken apart again only for a loader that has a way of its own."""

    def __init__(self, columns: tuple[Tensor, ...]):
        """
        Args:
            columns: (x, y, ..., task labels), equally long; what ``collate_fn`` makes of the samples.
        """
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, place):
        return tuple(column[place] for column in self.columns)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(*self.columns, strict=True)


def _collate(samples):
    return list(samples.columns) if isinstance(samples, Minibatch) else default_collate(samples)


class TensorClassificationDataset(TaskAwareSupervisedClassificationDataset):
    """Avalanche's task-aware classification dataset, which over tensors also answers many indices at once."""

    @classmethod
    def from_tensors(cls, x: Tensor | Dataset[Tensor], y: Tensor, task_label: int) -> TensorClassificationDataset:
        """
        Args:
            x: inputs, [N, ...], or something that reads or prepares them when they are asked for.
            y: class labels, integers, [N].
            task_label: the task label of every sample.
        """
        return cls(
            [TensorDataset(x, y) if isinstance(x, Tensor) else StackDataset(x, y)],  # type: ignore[arg-type]
            data_attributes=[
                DataAttribute(y, name="targets"),
                TaskLabels(ConstantSequence(task_label, len(y))),
            ],
            collate_fn=_collate,
        )

    def __getitems__(self, indices: list[int]):
        # Kept with the data it was read from: Avalanche copies datasets shallowly and then exchanges their data.
        if getattr(self, "_read_from", None) is not self._flat_data:
            self._read_from, self._columns = self._flat_data, columns_of(self)
        if self._columns is None:
            return [self[index] for index in indices]
        return Minibatch(tuple(column[indices] for column in self._columns))


Column = Tensor | PreparedLater
"""Equally long: what is indexed with a minibatch's indices."""
Columns = tuple[Column, ...] | None


def tensors_of(dataset: AvalancheDataset) -> tuple[Tensor, ...] | None:
    """Returns the columns of a dataset's samples, (x, y, ..., task labels), as whole tensors.

    Returns:
        None where a sample is more than an index into tensors; see :func:`columns_of`.
    """
    columns = columns_of(dataset)
    if columns is None:
        return None
    return tuple(column[:] if isinstance(column, PreparedLater) else column for column in columns)


def columns_of(dataset: AvalancheDataset) -> tuple[Column, ...] | None:
    """Returns the columns of a dataset's samples, (x, y, ..., task labels).

    Reads Avalanche's tree of concatenations and subsets (``FlatData``) instead of its samples; there is no public way.

    Returns:
        None where a sample is more than an index into them: a transformation, or data that is read from disk.
    """
    columns = _columns_at(dataset._flat_data, None, _own_columns)
    if columns is None:
        return None
    attributes = [attribute for attribute in dataset._data_attributes.values() if attribute.use_in_getitem]
    return (*columns, *(_attribute_tensor(attribute.data) for attribute in attributes))


def _attribute_tensor(values) -> Tensor:
    (column,) = _columns_at(values, None, _own_attribute)  # type: ignore[misc]
    return column  # type: ignore[return-value]


def _own_attribute(values) -> tuple[Tensor]:
    if isinstance(values, ConstantSequence):
        return (torch.full((len(values),), values[0]),)
    return (torch.as_tensor(values),)


def _as_index(indices) -> Tensor:
    return torch.as_tensor(list(indices), dtype=torch.long)


def _columns_at(data, places: Tensor | None, own: Callable[[Any], Columns]) -> Columns:
    """The columns of the samples at these places, or of all; ``own`` reads what has nothing below it.

    Of what is below only what is asked for is copied: a buffer of many subsets has the whole data set as many times.
    """
    if not isinstance(data, FlatData):
        columns = own(data)
        return columns if columns is None or places is None else tuple(_taken(column, places) for column in columns)
    for groups in ("_transform_groups", "_frozen_transform_groups"):
        transforms = getattr(data, groups, None)
        if transforms is not None and transforms.transform_groups.get(transforms.current_group) is not None:
            return None
    if data._indices is not None:
        indices = _as_index(data._indices)
        places = indices if places is None else indices[places]
    parts = data._datasets
    if len(parts) == 1:
        return _columns_at(parts[0], places, own)
    if places is None:
        return _all_joined([_columns_at(part, None, own) for part in parts])
    ends = torch.tensor([len(part) for part in parts]).cumsum(dim=0)
    part_of = torch.bucketize(places, ends, right=True)
    by_part = part_of.argsort(stable=True)
    of_parts = places[by_part].split(part_of.bincount(minlength=len(parts)).tolist())
    asked = [part for part, of_part in enumerate(of_parts) if len(of_part)] or [0]
    joined = _all_joined(
        [_columns_at(parts[part], of_parts[part] - (ends[part - 1] if part else 0), own) for part in asked]
    )
    if joined is None or bool((part_of.diff() >= 0).all()):
        return joined
    back = by_part.argsort()
    return tuple(_taken(column, back) for column in joined)


def _all_joined(parts: list[Columns]) -> Columns:
    found = [part for part in parts if part is not None]
    return tuple(_joined(column) for column in zip(*found, strict=True)) if len(found) == len(parts) else None


def _taken(column: Column, indices: Tensor) -> Column:
    return column.take(indices) if isinstance(column, PreparedLater) else column[indices]


def _own_columns(data: Dataset) -> Columns:
    """Those of a data set that has no others below it, or None."""
    if type(data) is TensorDataset:  # a class below it may change its samples
        return data.tensors
    if isinstance(data, StackDataset) and isinstance(data.datasets[0], PreparedLater):
        return tuple(data.datasets)
    return None


def _joined(parts: tuple[Column, ...]) -> Column:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], PreparedLater):
        return PreparedLater.joined(parts)  # type: ignore[arg-type]
    return torch.cat(parts)  # type: ignore[arg-type]
