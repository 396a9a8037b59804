"""What a run takes: memory, the bytes that a strategy keeps, floating-point operations."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from avalanche.benchmarks import CLExperience, CLScenario, CLStream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training import GenerativeReplay
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from engrams.strategies.kept import State
from engrams.strategies.rehearsal import ReservoirPlugin


def _product(total: torch.Size, one: torch.Size, other: torch.Size, **more: Any) -> int:
    return 2 * one.numel() * other[1]


# In place it is another operation, which torch has no formula for; an importance is made of it.
OPTIONS: dict[str, Any] = {"display": False, "custom_mapping": {torch.ops.aten.addmm_: _product}}
if "skip_unsupported" in inspect.signature(FlopCounterMode).parameters:
    OPTIONS["skip_unsupported"] = True  # else an operation without a formula would end the run


# --- operations -------------------------------------------------------------------------------------------------------


class _Whole:
    """In place of torch's tracker of modules, whose hooks on tensors break a penalty on gradients."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Begins to count for the whole alone."""

    def __exit__(self, *error: object) -> None:
        """Does nothing."""


def _counter() -> FlopCounterMode:
    counter = FlopCounterMode(**OPTIONS)
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    return counter


class OperationsPlugin(SupervisedPlugin):
    """Counts the floating-point operations of one step of each kind and size an experience, and how many there are.

    It is the first of the plugins whose hooks around a step do any work; what is no Avalanche iteration is told by
    :mod:`engrams.strategies.steps`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[str, int] = {}
        self.steps: dict[str, int] = {}
        self._known: dict[tuple[str, Hashable], int] = {}
        """Of this experience."""
        self._within: list[int] = []
        """One for each step that is being counted: the operations of other steps inside it."""
        self._iteration = ExitStack()

    @contextmanager
    def counting(self, kind: str, alike: Hashable) -> Iterator[None]:
        """The block of one step; see :func:`engrams.strategies.steps.step_of`."""
        step = kind, alike
        if step in self._known and not self._within:
            yield
        else:  # one inside another that is counted is counted too, so as to be taken off it
            self._within.append(0)
            counter = _counter()
            try:
                with counter:
                    yield
            finally:
                within, found = self._within.pop(), counter.get_total_flops()
                self._known.setdefault(step, found - within)
                if self._within:
                    self._within[-1] += found
        self.operations[kind] = self.operations.get(kind, 0) + self._known[step]
        self.steps[kind] = self.steps.get(kind, 0) + 1

    def before_training_exp(self, strategy, **kwargs):
        self._known.clear()

    def before_training_iteration(self, strategy, **kwargs):
        self.begin("training", strategy)

    def after_training_iteration(self, strategy, **kwargs):
        self.end()

    def begin(self, kind: str, strategy: SupervisedTemplate) -> None:
        """Begins an iteration of Avalanche's, of a strategy that trains what ``kind`` says."""
        # What a reservoir adds grows until it holds as much as is drawn.
        reservoirs = [plugin for plugin in strategy.plugins if isinstance(plugin, ReservoirPlugin)]
        drawn = [one.batch_size_mem or strategy.train_mb_size for one in reservoirs]
        added = tuple(min(len(one.memory), most) for one, most in zip(reservoirs, drawn, strict=True))
        self._iteration.enter_context(self.counting(kind, (len(strategy.mb_y), added)))

    def end(self) -> None:
        """Ends the iteration that was begun: it is over, or has failed."""
        self._iteration.close()

    def state_dict(self) -> State:
        """Returns what was counted so far."""
        return {"operations": dict(self.operations), "steps": dict(self.steps)}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.operations, self.steps = state["operations"], state["steps"]

    state_dict_within, load_state_dict_within = state_dict, load_state_dict


class GeneratorsOperations(SupervisedPlugin):
    """Tells the steps of a generator that Avalanche trains by a strategy of its own."""

    def __init__(self, operations: OperationsPlugin):
        super().__init__()
        self.operations = operations

    def before_training_iteration(self, strategy, **kwargs):
        self.operations.begin("generator", strategy)

    def after_training_iteration(self, strategy, **kwargs):
        self.operations.end()


def count_operations(strategy: BaseTemplate) -> OperationsPlugin:
    """Has the operations of a strategy counted from now on, and returns what counts them."""
    plugin = OperationsPlugin()
    strategy.plugins.insert(0, plugin)
    if isinstance(strategy, GenerativeReplay):
        strategy.generator_strategy.plugins.insert(0, GeneratorsOperations(plugin))
    return plugin


# --- memory -----------------------------------------------------------------------------------------------------------


class PeakMemory:
    """The most memory taken since it was made: of a GPU, or else of the process."""

    def __init__(self, device: str):
        """
        Args:
            device: torch's name of the one that is trained on.
        """
        self._gpu = device if device.startswith("cuda") else None
        self._begun = False
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        else:
            with suppress(OSError):  # Linux: the highest that was seen begins at what is taken now
                Path("/proc/self/clear_refs").write_text("5")
                self._begun = True

    def bytes(self) -> int | None:
        """Returns it; None where the system does not say."""
        if self._gpu:
            return torch.cuda.max_memory_allocated(self._gpu)
        if not self._begun:
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


# --- what is kept -----------------------------------------------------------------------------------------------------

OF_EVERY_STRATEGY = frozenset(
    {
        *("model", "optimizer", "optimized_param_id", "_criterion", "plugins", "evaluator", "clock", "device"),
        *("experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "current_eval_stream"),
        *("_eval_streams", "_experiences", "generator_loss", "classifier", "_labelled"),
    }
)
"""Attributes of a strategy that are the learner itself, the present data, or belong to whoever looks at it."""
NOT_KEPT = (CLExperience, CLScenario, CLStream, DataLoader, EvaluationPlugin, torch.Generator, ModuleType, type)


def bytes_of(strategy: BaseTemplate) -> dict[str, int]:
    """Returns the bytes of all that a strategy holds between two experiences, part by part; none of 0 bytes.

    ``model`` has its parameters and buffers, ``optimizer`` its state; the others are attributes of the strategy and
    of its plugins, but for Engrams' own that load data or look on. What two parts share counts in the first of them.
    """
    counted = _Counted()
    parts: dict[str, int] = defaultdict(int)
    parts["model"] = sum(counted.tensor(one) for one in (*strategy.model.parameters(), *strategy.model.buffers()))
    parts["optimizer"] = counted.of(strategy.optimizer)
    counted.met.add(id(strategy))
    for part, value in _attributes(strategy):
        parts[part] += counted.of(value)
    return {part: size for part, size in parts.items() if size}


def _attributes(strategy: BaseTemplate) -> Iterator[tuple[str, object]]:
    """Name -> value of what a strategy and its plugins have of their own.

    A named tuple is several parts: ``previous generator``, ``previous solver``.
    """
    owned = [(name, value) for name, value in vars(strategy).items() if name not in OF_EVERY_STRATEGY]
    for plugin in strategy.plugins:
        if not type(plugin).__module__.startswith("engrams.benchmarks"):
            owned += vars(plugin).items()
    for name, value in owned:
        readable = name.lstrip("_").replace("_", " ")
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            yield from ((f"{readable} {field}", part) for field, part in value._asdict().items())
        else:
            yield readable, value


class _Counted:
    """Walks through values and counts the bytes of tensors, each storage and each object once."""

    def __init__(self) -> None:
        self.storages: set[int] = set()
        self.met: set[int] = set()

    def tensor(self, tensor: Tensor) -> int:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse
            return tensor._nnz() * tensor.element_size()
        if storage.data_ptr() in self.storages:
            return 0
        self.storages.add(storage.data_ptr())
        return storage.nbytes()

    def of(self, value: object) -> int:
        if isinstance(value, Tensor):
            return self.tensor(value)
        if value is None or isinstance(value, (str, int, float, *NOT_KEPT)) or id(value) in self.met:
            return 0
        self.met.add(id(value))
        if isinstance(value, AvalancheDataset):
            return len(value) * sum(map(_bytes_of_column, value[0])) if len(value) else 0
        return sum(map(self.of, list(_inside(value))))


def _bytes_of_column(column: object) -> int:
    return column.nbytes if isinstance(column, Tensor) else 8


def _inside(value: object) -> Iterable[object]:
    """What a value is made of."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, Optimizer):
        return [value.state]
    if isinstance(value, BaseTemplate):  # of a generator that is trained by a strategy of its own
        return [value.model, value.optimizer, value.plugins]
    return getattr(value, "__dict__", {}).values()  # modules keep all they have in theirs
