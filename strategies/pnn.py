"""Progressive neural networks.

Rusu et al. 2016, "Progressive Neural Networks", arXiv:1606.04671, eq. 1:

    h_i^(k) = f(W_i^(k) h_{i-1}^(k) + sum_{j<k} U_i^(k:j) h_{i-1}^(j))

Column k of the network learns task k. The columns before it stay as they are, and help: layer i of column k sees their
activations h_{i-1}^(j), too, through lateral connections U that it learns with its own weights W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation, batchnorm, dropout, pooling
from torchvision.models.resnet import BasicBlock

from engrams.strategies.experiences import Met, classes_of, whole_of
from engrams.strategies.heads import MASKED
from engrams.strategies.undisturbed import evaluation_mode, same_random_numbers

ACTIVATIONS = tuple(
    getattr(activation, name)
    for name in activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin", "GLU")
)
"""Modules that are a function of each element."""
BEFORE_ACTIVATIONS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Flatten, nn.Identity, nn.LayerNorm, nn.GroupNorm),
    *(getattr(of, name) for of in (batchnorm, dropout, pooling) for name in of.__all__),
)
"""Modules that hide none, and so may stand between two."""


class ProgressiveNetwork(MultiTaskModule):
    """This is a network that gets a new column for every task; it is the model of an Avalanche strategy.

    A task is answered by its own column, so task labels are needed, in training and in testing. What it answers to an
    old task never changes: old columns are frozen, batch norm included. A task that has not been learned is answered
    with zeros. Where an experience has fewer classes than a column has outputs, the outputs of others are masked.

    The strategy trains one experience after another. One that learns them together is refused when it begins, and one
    that asks for gradients on samples of old tasks alone (GEM, A-GEM) finds none.

    A column is a network of its own, with an output layer ``classifier`` behind an ``nn.Sequential`` called
    ``features`` (maps are averaged over their positions in between). It is cut into layers W after every activation,
    and after the last of the residual blocks (torchvision's ``BasicBlock``) of one size. A lateral connection U is
    linear: a matrix between vectors; a convolution 1x1 between maps, with a stride where they get smaller; from maps to
    a vector, a matrix behind the mean over positions. There is none from the input, which a column sees by itself.

    Memory and the time of a step grow with the square of the number of tasks.
    """

    def __init__(self, network: Callable[[], nn.Module]):
        """
        Args:
            network: makes a column's network, a new one with new random values each time; all with as many outputs as
                the largest label of a task needs.

        Raises:
            ValueError: the network is not as described above; said here, or before the first experience. Before an
                experience: it has several tasks, the task of an earlier one, or a class for which there is no output.
                In the first step: an earlier column has not been trained.
        """
        super().__init__()
        self.network = network
        self.tasks: list[int] = []
        """Whose task each column is; the first column is there before its task is."""
        first = network()
        column = Column(first)
        self.columns = nn.ModuleList([column])
        self.outputs = self.max_class_label = column.outputs
        self._first = [first]  # in a list, so that it is no module of this one: its layers are the column's
        self._experience: Any = None
        self._learns = False
        """Whether the latest column has been seen to learn."""

    def adaptation(self, experience) -> None:
        """Adds the column of an experience's task, before it is trained on."""
        if not self.training:
            return
        task, *others = set(Met.of(experience).task_labels)
        if others:
            raise ValueError(f"a progressive network has one column a task; an experience has tasks {task}, {others}")
        classes = classes_of(experience)
        if max(classes) >= self.outputs:
            raise ValueError(f"an experience has class {max(classes)}; a column has {self.outputs} outputs")
        before, self._experience = self._experience, _number(experience)
        if task in self.tasks and (task != self.tasks[-1] or before not in (None, self._experience)):
            raise ValueError(
                f"a progressive network has learned task {task} in an earlier experience, and answers it as it did "
                f"then: every experience needs a task label of its own (most of Avalanche's benchmarks take "
                f"return_task_id=True)"
            )
        if task not in self.tasks:
            self._add_column(task, experience.dataset[0][0])
        self.known_train_tasks_labels.add(task)
        self._columns()[-1].active[classes] = True

    def _columns(self) -> list[Column]:
        return list(self.columns)  # type: ignore[arg-type]

    def _add_column(self, task: int, sample: Tensor) -> None:
        """Makes a column with lateral connections from all others, and freezes those."""
        like = next(self.parameters())
        x = sample[None].to(like)
        if self.tasks:
            column = Column(self.network())
            if {id(p) for p in column.parameters()} & {id(p) for p in self.parameters()}:
                raise ValueError("a progressive network takes a function that makes a new network each time")
            self.columns.requires_grad_(False).eval()
            for p in self.columns.parameters():
                p.grad = None  # else an optimiser goes on with it
            column.to(like).eval()
            column.connect(_activations(x, self._columns()), x)
            self.columns.append(column.to(like))  # its connections, too
            self.train()
        else:
            _refuse_other_forward(self._first[0], self._columns()[0], x)
        self.tasks.append(task)
        self._learns = False

    def train(self, mode: bool = True) -> ProgressiveNetwork:
        """Sets the mode of the latest column; the others stay in eval mode."""
        super().train(mode)
        for column in self.columns[:-1]:
            column.eval()
        return self

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Any:
        """Returns the outputs [N, outputs] of each sample's own column; without task labels those of all, by task."""
        if task_labels is None:
            return self.forward_all_tasks(x)
        tasks = [task_labels] if isinstance(task_labels, int) else task_labels.unique().tolist()
        if len(tasks) == 1:
            return self.forward_single_task(x, tasks[0])
        parts = [(task_labels == task, self.forward_single_task(x[task_labels == task], task)) for task in tasks]
        outputs = parts[-1][1].new_empty(len(x), self.outputs)
        for where, part in parts:
            outputs[where] = part.to(outputs)
        return outputs

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Returns the outputs [N, outputs] of the task's column, with those of other classes masked."""
        if task_label not in self.tasks:
            return x.new_zeros(len(x), self.outputs)
        if x.dim() == 4 and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        *before, column = self._columns()[: self.tasks.index(task_label) + 1]
        if column.training and not self._learns:
            if any(not old.trained for old in before):
                raise ValueError("a progressive network learns one experience after another, not several at once")
            column.trained.fill_(True)
            self._learns = True
        return column(x, _activations(x, before))[-1].masked_fill(~column.active, MASKED)

    def get_extra_state(self) -> list[int]:
        """Returns the tasks, which are a part of ``state_dict``."""
        return list(self.tasks)

    def set_extra_state(self, state: list[int]) -> None:
        """Goes on with the tasks of a state; there have to be as many columns."""
        self.tasks = list(state)


def _number(experience: Any) -> Any:
    """Returns what tells an experience from others, and its pieces not from each other."""
    whole = whole_of(experience)
    return getattr(whole, "current_experience", id(whole))


def _activations(x: Tensor, columns: Sequence[Column]) -> list[list[Tensor]]:
    """Returns h_0^(j) to h_L^(j) of every column."""
    found: list[list[Tensor]] = []
    for column in columns:
        found.append(column(x, found))
    return found


class Column(nn.Module):
    """One network, cut into layers, and its lateral connections from the columns before it."""

    active: Tensor
    trained: Tensor

    def __init__(self, network: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(_layers_of(network))
        self.laterals = nn.ModuleList()
        """Of all layers but the first; empty where there is no column before it."""
        self.outputs: int = network.classifier.out_features  # type: ignore[assignment, union-attr]
        self.register_buffer("active", torch.zeros(self.outputs, dtype=torch.bool))
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))

    def connect(self, before: Sequence[Sequence[Tensor]], x: Tensor) -> None:
        """Makes lateral connections.

        Args:
            before: activations of all columns before it, for their shapes.
            x: what they are the activations of.
        """
        shapes = [layer.before_activation(h).shape for layer, h in zip(self.layers, self(x, [])[:-1], strict=True)]  # type: ignore[operator]
        self.laterals.extend(
            Lateral([column[place].shape for column in before], shapes[place]) for place in range(1, len(shapes))
        )

    def forward(self, x: Tensor, before: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Returns h_0, which is x, to h_L, which are the outputs.

        Args:
            x: inputs [N, ...].
            before: the same of every column before this one.
        """
        h = [x]
        for place, layer in enumerate(self.layers):
            lateral = self.laterals[place - 1]([column[place] for column in before]) if before and place else None
            h.append(layer(h[-1], lateral))
        return h


class Layer(nn.Module):
    """W_i, and the activation f behind it."""

    def __init__(self, modules: Sequence[nn.Module], activation: nn.Module):
        super().__init__()
        self.before_activation = nn.Sequential(*modules)
        self.activation = activation

    def forward(self, h: Tensor, lateral: Tensor | None) -> Tensor:
        """Returns f(W h + lateral)."""
        weighted = self.before_activation(h)
        return self.activation(weighted if lateral is None else weighted + lateral)


class Lateral(nn.Module):
    """sum_j U_i^(k:j) h_{i-1}^(j), as one matrix or convolution of all h side by side."""

    def __init__(self, given: Sequence[torch.Size], wanted: torch.Size):
        """
        Args:
            given: shapes of h_{i-1} of every column before.
            wanted: the shape of W_i h_{i-1}.
        """
        super().__init__()
        self.size = wanted[2:]

        def connection(inputs: int) -> nn.Linear | nn.Conv2d:
            if self.size:
                return nn.Conv2d(inputs, wanted[1], kernel_size=1, bias=False)
            return nn.Linear(inputs, wanted[1], bias=False)

        inputs = [shape[1] for shape in given]
        self.connection = connection(sum(inputs))
        with torch.no_grad():  # each U begins as if it were alone
            self.connection.weight.copy_(torch.cat([connection(one).weight for one in inputs], dim=1))

    def forward(self, h: Sequence[Tensor]) -> Tensor:
        """Returns the sum, of the shape of W h."""
        joined = torch.cat(list(h), dim=1)
        return self.connection(_thinned(joined, self.size) if self.size else _mean_over_positions(joined))


def _thinned(maps: Tensor, size: torch.Size) -> Tensor:
    """Returns maps of a smaller size: every so many positions, as a stride takes them, where that is the size."""
    down, across = (-(-have // want) for have, want in zip(maps.shape[2:], size, strict=True))
    strided = maps[:, :, ::down, ::across]
    return strided if strided.shape[2:] == size else F.interpolate(maps, size=tuple(size), mode="nearest")


# --- a network, cut into layers ---------------------------------------------------------------------------------------


class MeanOverPositions(nn.Module):
    """Maps [N, channels, height, width] become vectors [N, channels]; vectors stay."""

    def forward(self, h: Tensor) -> Tensor:
        """Returns vectors."""
        return _mean_over_positions(h)


def _mean_over_positions(h: Tensor) -> Tensor:
    return h.mean(dim=(2, 3)) if h.dim() == 4 else h


class BeforeLastReLU(nn.Module):
    """A residual block without the activation at its end."""

    def __init__(self, block: BasicBlock):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the block would pass to its last ReLU."""
        block = self.block
        residual = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        return residual + (x if block.downsample is None else block.downsample(x))


def _layers_of(network: nn.Module) -> Iterator[Layer]:
    """Cuts a network after its activations; the last layer ends with its classifier."""
    features, classifier = getattr(network, "features", None), getattr(network, "classifier", None)
    if not isinstance(features, nn.Sequential) or not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"a progressive network takes a network with an nn.Sequential called features and an nn.Linear called "
            f"classifier; {type(network).__name__} has none"
        )
    modules = list(_one_after_another(features))
    for module in modules:
        if not isinstance(module, (*ACTIVATIONS, *BEFORE_ACTIVATIONS, BasicBlock)):
            raise ValueError(
                f"a progressive network cuts a network after its activations; a {type(module).__name__} in its "
                f"features may hide some"
            )
    modules.append(classifier)
    begun: list[nn.Module] = [nn.Flatten()] if isinstance(modules[0], nn.Linear) else []
    for module, following in pairwise(modules):
        if isinstance(module, ACTIVATIONS):
            yield Layer(begun, module)
            begun = []
        elif isinstance(module, BasicBlock) and not _is_block_of_same_size(following):
            yield Layer([*begun, BeforeLastReLU(module)], nn.ReLU(inplace=True))
            begun = []
        else:
            begun.append(module)
    yield Layer([*begun, MeanOverPositions(), classifier], nn.Identity())


def _refuse_other_forward(network: nn.Module, column: Column, x: Tensor) -> None:
    """Raises a ValueError if a network is not its layers, in training as in testing, or has no maps or vectors."""
    twice = torch.cat([x, x])  # batch norm has no statistics of one
    with evaluation_mode(network), torch.no_grad():
        for training in (True, False):
            network.train(training)
            try:
                with same_random_numbers():
                    *h, outputs = column(twice, [])
                with same_random_numbers():
                    same = torch.allclose(outputs, network(twice), rtol=1e-4, atol=1e-5)
            except RuntimeError as error:
                raise ValueError(f"a progressive network cannot run {type(network).__name__}: {error}") from error
            if not same:
                raise ValueError(
                    f"a progressive network takes a network whose forward pass is its features, the mean over the "
                    f"positions that are left, and its classifier; that of {type(network).__name__} is another"
                )
    for activations in h[1:]:
        if activations.dim() not in (2, 4):
            raise ValueError(
                f"a progressive network connects vectors [N, C] and maps [N, C, height, width]; "
                f"{type(network).__name__} has activations {list(activations.shape)}"
            )


def _one_after_another(sequential: nn.Sequential) -> Iterator[nn.Module]:
    for module in sequential:
        if isinstance(module, nn.Sequential):
            yield from _one_after_another(module)
        else:
            yield module


def _is_block_of_same_size(module: nn.Module) -> bool:
    return isinstance(module, BasicBlock) and module.downsample is None
