"""A run, learned: a protocol, a strategy and a seed -> an accuracy matrix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import compress
from typing import Any, NamedTuple, runtime_checkable
from typing import Protocol as Structural

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.templates import SupervisedTemplate
from numpy.typing import NDArray
from torch import nn

from engrams.benchmarks.judging.anytime import AnytimePlugin, PrequentialPlugin
from engrams.benchmarks.judging.masked import TaskMaskPlugin
from engrams.benchmarks.judging.predictions import PredictionsPlugin
from engrams.benchmarks.protocols.schema import Judging
from engrams.benchmarks.runs import Run
from engrams.benchmarks.training import stopping
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.benchmarks.training.checkpoint import (
    Checkpoints,
    Within,
    before_experience,
    refuse_what_has_changed,
    restore_random,
    restore_strategy,
    unkept_of,
)
from engrams.benchmarks.training.costs import PeakMemory, bytes_of, count_operations
from engrams.benchmarks.training.watch import watch
from engrams.reports.anytime import Anytime, Prequential
from engrams.reports.costs import Costs
from engrams.reports.matrix import accuracy_row
from engrams.reports.predictions import Predictions
from engrams.strategies.kept import State
from engrams.strategies.steps import steps_told


class Watcher(Structural):
    """Sees a run while it learns. What it takes is not counted among the run's seconds."""

    def after_experience(self, strategy: SupervisedTemplate, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Looks at what was learned; may raise to stop the run.

        Args:
            strategy: Avalanche's, after it was trained on an experience and evaluated on all.
            matrix: the accuracy matrix so far.
            seen: what the watchers before this one saw in the same experience, by name, to be added to.
        """


@runtime_checkable
class EpochWatcher(Structural):
    """A watcher that sees every epoch too."""

    def after_epoch(self, epoch: int, losses: Mapping[str, float]) -> None:
        """Is told of an epoch.

        Args:
            epoch: how many have been done, a generator's among them.
            losses: the mean of each in this epoch.
        """


class Learned(NamedTuple):
    """What comes out of a run."""

    accuracy_matrix: list[list[float]]
    accuracy_at_initialisation: list[float]
    """Empty where the whole stream is learned at once."""
    seconds: float
    """Of training and evaluation."""
    costs: Costs
    predictions: Predictions
    anytime: Anytime | None = None
    prequential: Prequential | None = None
    """What the protocol's ``[judging]`` asks for; None where the whole stream is learned at once."""


def learn(
    run: Run,
    device: str,
    watchers: Sequence[Watcher],
    report: Callable[[int], None],
    stream_from_disk: bool = False,
    classifier: nn.Module | None = None,
    checkpoints: Checkpoints | None = None,
    kept: State | None = None,
) -> Learned:
    """Trains and judges, once through the stream.

    Args:
        run: what to do.
        device: torch's name of the device to train on.
        watchers: asked after every experience, one after another.
        report: called with the number of epochs done, as they are done.
        stream_from_disk: read images when they are needed, not all before: less memory, more time, the same result.
        classifier: of real images, which judges where a generator is judged.
        checkpoints: offered one after every experience but the last, and now and then within an experience.
        kept: what they had, to go on from; the result is the same to the bit.

    Raises:
        Diverged: the loss or a parameter is no finite number any more.
        ProtocolError: the strategy cannot be built on this stream.
    """
    torch.use_deterministic_algorithms(True)
    RNGManager.set_random_seeds(run.seed)
    learning = _Learning(run, device, watchers, report, stream_from_disk, classifier, kept)
    try:
        if run.strategy.whole_stream_at_once:
            return learning.of_the_whole_stream_at_once()
        return learning.of_one_experience_after_another(checkpoints, kept)
    finally:
        del learning.strategy  # whose plugins hold what learns: else the network stays until garbage is collected


class _Learning:
    """Holds a run while it is learned: its streams, its strategy, what watches it, and what has come out so far."""

    def __init__(
        self,
        run: Run,
        device: str,
        watchers: Sequence[Watcher],
        report: Callable[[int], None],
        stream_from_disk: bool,
        classifier: nn.Module | None,
        kept: State | None,
    ):
        self.run = run
        self.watchers = watchers
        self.memory = PeakMemory(device)
        self.clock = Stopwatch(kept["seconds"] if kept else 0.0, kept["processor_seconds"] if kept else 0.0)
        benchmark = benchmark_of(run, stream_from_disk)
        self.learned = benchmark.train_stream[: run.first]
        self.judged = benchmark.streams[run.judge][: run.first]
        self.strategy = make_strategy(run, benchmark, device, [], classifier)
        self.operations = count_operations(self.strategy)
        if run.protocol.masks_tasks:
            self.strategy.plugins.append(TaskMaskPlugin())
        self.predictions = PredictionsPlugin()
        self.strategy.plugins.append(self.predictions)
        self.as_made = unkept_of(self.strategy)
        self.matrix: list[list[float]] = kept["matrix"] if kept else []
        self.at_initialisation: list[float] = kept["at_initialisation"] if kept else []
        self.epochs = kept["epochs"] if kept else 0
        self.report = report
        watch(self.strategy, self._epochs_done, self._epoch_done, self.epochs)

    def _epochs_done(self, epochs: int) -> None:
        self.epochs = epochs
        self.report(epochs)

    def _epoch_done(self, epoch: int, losses: dict[str, float]) -> None:
        with self.clock.paused():
            for watcher in self.watchers:
                if isinstance(watcher, EpochWatcher):
                    watcher.after_epoch(epoch, losses)

    def of_the_whole_stream_at_once(self) -> Learned:
        """Returns what comes out where all experiences are learned together."""
        self._train(self.learned)
        self._look()
        return Learned(self.matrix, [], self.clock.seconds, self._costs(), self.predictions.result(False))

    def of_one_experience_after_another(self, checkpoints: Checkpoints | None, kept: State | None) -> Learned:
        """Returns what comes out of the stream as a continual learner meets it."""
        anytime, prequential = self._while_it_learns()
        if kept is None:
            self.at_initialisation = self._before_training()
        if anytime:
            self.strategy.plugins.append(anytime)
        if prequential:
            self.strategy.plugins.insert(0, prequential)
        within = self._within(checkpoints, kept)
        if kept:
            self._restore(kept)
        with stopping.heeded() if checkpoints else nullcontext():
            for experience in self.learned[len(self.matrix) :]:
                if within:
                    within.begin(self.strategy)
                self._train(experience, reset_optimizer_state=self.run.training.reset_optimizer)
                self._look()
                if anytime:
                    anytime.at_end(len(self.matrix) - 1, self.predictions.answers[-1], self.predictions.targets)
                if checkpoints and len(self.matrix) < len(self.learned):
                    with self.clock.paused():
                        checkpoints.offer(lambda: {**self._so_far(), **before_experience(self.strategy)})
        return Learned(
            self.matrix,
            self.at_initialisation,
            self.clock.seconds,
            self._costs(),
            self.predictions.result(True),
            anytime.result() if anytime else None,
            prequential.result() if prequential else None,
        )

    def _train(self, experiences: CLExperience | Sequence[CLExperience], **how: bool) -> None:
        with steps_told(self.operations.counting):
            try:
                self.strategy.train(experiences, **how)
            finally:
                self.operations.end()

    def _before_training(self) -> list[float]:
        """Returns the accuracy on every experience.

        Where no class has a unit yet, all answers are the first class, which says nothing of an experience that has it
        for the first time: those have 0, as when others have units.
        """
        row = self._evaluated(self.judged)
        masked = [module.active_units for module in self.strategy.model.modules() if _grows(module)]
        if not masked or any(units.any() for units in masked):
            return row
        classes = [set(experience.classes_in_this_experience) for experience in self.judged]
        comes_again = [bool(classes[place] & set().union(*classes[:place])) for place in range(len(row))]
        return [value if place == 0 or comes_again[place] else 0.0 for place, value in enumerate(row)]

    def _evaluated(self, judged: Sequence[CLExperience]) -> list[float]:
        """Returns the accuracy on experiences, whose answers are kept."""
        self.strategy.evaluator.reset_last_metrics()  # a plugin may have evaluated on another stream
        row = accuracy_row(self.strategy.eval(judged))
        self.predictions.keep()
        return row

    def _look(self) -> None:
        """Evaluates on every experience whose answers may be others than before, and shows it to the watchers."""
        asked = [
            not self.matrix or place <= len(self.matrix) or may_have_changed(self.strategy.model, experience)
            for place, experience in enumerate(self.judged)
        ]
        row = iter(self._evaluated(list(compress(self.judged, asked))))
        self.matrix.append([next(row) if ask else self.at_initialisation[place] for place, ask in enumerate(asked)])
        seen: dict[str, Any] = {"seconds": self.clock.seconds}
        with self.clock.paused():
            for watcher in self.watchers:
                watcher.after_experience(self.strategy, self.matrix, seen)

    def _while_it_learns(self) -> tuple[AnytimePlugin | None, PrequentialPlugin | None]:
        """Returns what judges within an experience, as far as the protocol's ``[judging]`` asks for it."""
        judging, masks = self.run.protocol.judging or Judging(), self.run.protocol.masks_tasks
        repeats = self.run.training.iterations_per_batch
        return (
            AnytimePlugin(self.judged, judging, self.clock.paused, masks) if judging.every else None,
            PrequentialPlugin(judging.window, self.clock.paused, repeats, masks) if judging.prequential else None,
        )

    def _costs(self) -> Costs:
        return Costs(
            processor_seconds=self.clock.processor_seconds,
            peak_memory=self.memory.bytes(),
            bytes=bytes_of(self.strategy),
            operations=self.operations.operations,
            steps=self.operations.steps,
        )

    # --- what a checkpoint has ------------------------------------------------------------------------------------

    def _within(self, checkpoints: Checkpoints | None, kept: State | None) -> Within | None:
        """Returns what offers checkpoints within an experience, added to the strategy."""
        if checkpoints is None:
            return None
        within = Within(checkpoints, self._so_far, self.clock.paused, kept.get("within") if kept else None)
        self.strategy.plugins.append(within)
        return within

    def _so_far(self) -> State:
        refuse_what_has_changed(self.as_made, self.strategy)
        return {
            "matrix": self.matrix,
            "at_initialisation": self.at_initialisation,
            "seconds": self.clock.seconds,
            "processor_seconds": self.clock.processor_seconds,
            "epochs": self.epochs,
            "watchers": {name: watcher.state_dict() for name, watcher in self._watchers_that_keep().items()},
        }

    def _restore(self, kept: State) -> None:
        restore_strategy(self.strategy, kept["strategy"], self.learned[: len(self.matrix)], self.judged)
        watchers = self._watchers_that_keep()
        for name in watchers.keys() & kept["watchers"].keys():  # whether there is one of W&B, this command says
            watchers[name].load_state_dict(kept["watchers"][name])
        restore_random(kept["random"])

    def _watchers_that_keep(self) -> dict[str, Any]:
        return {type(one).__name__: one for one in self.watchers if hasattr(one, "state_dict")}


def _grows(module: nn.Module) -> bool:
    return isinstance(module, IncrementalClassifier) and module.masking


def may_have_changed(model: nn.Module, experience: CLExperience) -> bool:
    """Returns whether a network may answer something else than at the beginning to an experience not yet learned.

    Not where it has a head a task: Avalanche masks every unit of one that has not been trained. Not to ask it halves
    the evaluation, which takes longer than the training where a large network sees each image once.
    """
    masks = [
        getattr(module, f"active_units_T{task}", None)
        for module in model.modules()
        if isinstance(module, MultiHeadClassifier) and module.masking
        for task in set(experience.task_labels)
    ]
    return not masks or any(mask is not None and bool(mask.any()) for mask in masks)


class Stopwatch:
    """Seconds since it was made, but for pauses: of the clock on the wall, and of this process on all processors."""

    def __init__(self, already: float = 0.0, on_processors: float = 0.0):
        """
        Args:
            already, on_processors: seconds of each that went before.
        """
        self._started = _clocks() - (already, on_processors)

    @property
    def seconds(self) -> float:
        return float((_clocks() - self._started)[0])

    @property
    def processor_seconds(self) -> float:
        return float((_clocks() - self._started)[1])

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = _clocks()
        try:
            yield
        finally:
            self._started += _clocks() - began


def _clocks() -> NDArray[np.float64]:
    return np.array([time.perf_counter(), time.process_time()])
