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
from avalanche.benchmarks import CLExperience, CLScenario
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.models import MultiHeadClassifier
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from numpy.typing import NDArray
from torch import nn

from engrams.benchmarks.data.loading import InMemoryLoading
from engrams.benchmarks.data.own_benchmarks import own_benchmark
from engrams.benchmarks.data.streams import bounds, make_benchmark, prepared
from engrams.benchmarks.judging.anytime import AnytimePlugin, PrequentialPlugin
from engrams.benchmarks.judging.masked import TaskMaskPlugin
from engrams.benchmarks.judging.predictions import PredictionsPlugin
from engrams.benchmarks.protocols.schema import Judging, ProtocolError
from engrams.benchmarks.runs import Run
from engrams.benchmarks.training import stopping
from engrams.benchmarks.training.augment import Augmentation
from engrams.benchmarks.training.checkpoint import (
    Checkpoints,
    Within,
    before_experience,
    restore_random,
    restore_strategy,
)
from engrams.benchmarks.training.costs import PeakMemory, bytes_of, count_operations
from engrams.benchmarks.training.networks import make_network
from engrams.benchmarks.training.precision import train_in_bfloat16
from engrams.benchmarks.training.schedule import Decay
from engrams.benchmarks.training.watch import watch
from engrams.reports.anytime import Anytime, Prequential
from engrams.reports.costs import Costs
from engrams.reports.matrix import accuracy_row
from engrams.reports.predictions import Predictions
from engrams.strategies.generators import ImageSpec
from engrams.strategies.kept import KeepsNothing, KeepsNothingWithin, State
from engrams.strategies.steps import steps_told

EVALUATION_BATCH = 1000


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
    protocol = run.protocol
    torch.use_deterministic_algorithms(True)
    RNGManager.set_random_seeds(run.seed)
    memory = PeakMemory(device)
    clock = Stopwatch(kept["seconds"] if kept else 0.0, kept["processor_seconds"] if kept else 0.0)
    benchmark = benchmark_of(run, stream_from_disk)
    learned, judged = benchmark.train_stream[: run.first], benchmark.streams[run.judge][: run.first]
    strategy = make_strategy(run, benchmark, device, [], classifier)
    operations = count_operations(strategy)
    if protocol.masks_tasks:
        strategy.plugins.append(TaskMaskPlugin())
    strategy.plugins.append(predictions := PredictionsPlugin())
    of_epochs = [watcher for watcher in watchers if isinstance(watcher, EpochWatcher)]

    def epoch_done(epoch: int, losses: dict[str, float]) -> None:
        with clock.paused():
            for watcher in of_epochs:
                watcher.after_epoch(epoch, losses)

    done = kept["epochs"] if kept else 0

    def told(epochs: int) -> None:
        nonlocal done
        done = epochs
        report(epochs)

    watch(strategy, told, epoch_done, done)
    matrix: list[list[float]] = kept["matrix"] if kept else []
    at_initialisation: list[float] = []

    def look() -> None:
        asked = [
            not matrix or place <= len(matrix) or may_have_changed(strategy.model, experience)
            for place, experience in enumerate(judged)
        ]
        row = iter(accuracy_row(strategy.eval(list(compress(judged, asked)))))
        matrix.append([next(row) if ask else at_initialisation[place] for place, ask in enumerate(asked)])
        seen: dict[str, Any] = {"seconds": clock.seconds}
        with clock.paused():
            for watcher in watchers:
                watcher.after_experience(strategy, matrix, seen)

    def train(experiences: CLExperience | Sequence[CLExperience], **how: bool) -> None:
        with steps_told(operations.counting):
            try:
                strategy.train(experiences, **how)
            finally:
                operations.end()

    def costs() -> Costs:
        return Costs(
            processor_seconds=clock.processor_seconds,
            peak_memory=memory.bytes(),
            bytes=bytes_of(strategy),
            operations=operations.operations,
            steps=operations.steps,
        )

    if run.strategy.whole_stream_at_once:
        train(learned)
        look()
        return Learned(matrix, [], clock.seconds, costs(), predictions.result(False))
    of_watchers: dict[str, Any] = {type(one).__name__: one for one in watchers if hasattr(one, "state_dict")}
    judging = protocol.judging or Judging()
    anytime = AnytimePlugin(judged, judging, clock.paused, protocol.masks_tasks) if judging.every else None
    prequential = (
        PrequentialPlugin(judging.window, clock.paused, run.training.iterations_per_batch, protocol.masks_tasks)
        if judging.prequential
        else None
    )
    if kept is None:
        at_initialisation = accuracy_row(strategy.eval(judged))
    if anytime:
        strategy.plugins.append(anytime)
    if prequential:
        strategy.plugins.insert(0, prequential)

    def so_far() -> State:
        return {
            "matrix": matrix,
            "at_initialisation": at_initialisation,
            "seconds": clock.seconds,
            "processor_seconds": clock.processor_seconds,
            "epochs": done,
            "watchers": {name: watcher.state_dict() for name, watcher in of_watchers.items()},
        }

    within = Within(checkpoints, so_far, clock.paused, kept.get("within") if kept else None) if checkpoints else None
    if within:
        strategy.plugins.append(within)
    if kept:
        at_initialisation = kept["at_initialisation"]
        restore_strategy(strategy, kept["strategy"], learned[: len(matrix)], judged)
        for name in of_watchers.keys() & kept["watchers"].keys():  # whether there is one of W&B, this command says
            of_watchers[name].load_state_dict(kept["watchers"][name])
        restore_random(kept["random"])

    with stopping.heeded() if checkpoints else nullcontext():
        for experience in learned[len(matrix) :]:
            if within:
                within.begin(strategy)
            train(experience, reset_optimizer_state=run.training.reset_optimizer)
            look()
            if checkpoints and len(matrix) < len(learned):
                with clock.paused():
                    checkpoints.offer(lambda: {**so_far(), **before_experience(strategy)})
    return Learned(
        matrix,
        at_initialisation,
        clock.seconds,
        costs(),
        predictions.result(True),
        anytime.result() if anytime else None,
        prequential.result() if prequential else None,
    )


def benchmark_of(run: Run, stream_from_disk: bool = False) -> CLScenario:
    """Returns the streams of a run.

    Raises:
        DataError, ProtocolError: the data are not here or not as they have to be; see ``make_benchmark`` and
            ``own_benchmark``.
    """
    protocol, stream = run.protocol, run.protocol.stream
    if stream.kind == "benchmark":
        return own_benchmark(protocol.dataset, stream, protocol.learned_as, run.judge, run.seed)
    data = prepared(protocol.dataset, protocol.images, stream_from_disk, by_minibatch=True)
    return make_benchmark(data, stream, protocol.learned_as, run.judge, run.seed)


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


def make_strategy(
    run: Run,
    benchmark: CLScenario,
    device: str,
    plugins: Sequence[SupervisedPlugin],
    classifier: nn.Module | None = None,
) -> SupervisedTemplate:
    """Returns the Avalanche strategy of a run, ready to be trained on the benchmark's train stream."""
    training = run.training
    budget = run.budget
    shape = tuple(benchmark.train_stream[0].dataset[0][0].shape)
    if training.augments and len(shape) != 3:
        which = "horizontal_flips" if training.horizontal_flips else "random_crops"
        raise ProtocolError(f"{run.protocol.name}: training.{which} is for images; these are vectors")
    model = make_network(run.protocol.network, run.protocol.learned_as, benchmark)
    # fused: the same update in one pass over memory; on a CPU the default Adam costs as much as the network.
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=training.learning_rate, momentum=training.momentum, fused=True
        )
    decay = [Decay(budget.schedule)] if budget.epochs and budget.schedule and budget.schedule != "constant" else []
    augmentation: list[Augmentation] = []
    if training.augments:
        flips, crops, black = training.horizontal_flips, training.random_crops, bounds(shape, run.protocol.images)[0]
        augmentation.append(Augmentation(flips, crops, training.augmented, black, run.seed))
    in_order = run.protocol.stream.boundaries == "gradual"
    loading = InMemoryLoading(run.seed, training.iterations_per_batch, in_order)
    template: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": training.batch_size,
        "train_epochs": training.epochs,
        "eval_mb_size": EVALUATION_BATCH,
        "device": torch.device(device),
        "plugins": [loading, *augmentation, *decay, *plugins],
        "evaluator": SilentInTraining(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
    }
    entry = run.strategy
    if entry.needs_images:
        if run.protocol.stream.kind == "benchmark" and "mean" not in run.protocol.images.model_fields_set:
            raise ProtocolError(
                f"{run.protocol.name}: {entry.name} makes images and must know what black and white are in this "
                f"benchmark: say by images.mean and images.std how it normalises (0 and 1 if it does not)"
            )
        template |= {"images": ImageSpec(shape, *bounds(shape, run.protocol.images)), "seed": run.seed}
    if entry.has_gan:
        met = [experience.classes_in_this_experience for experience in benchmark.train_stream]
        classes = 1 + max(map(max, met))
        template |= {"gan": run.protocol.gan, "classes": classes}
    if run.protocol.generation and classifier:
        template |= {
            "classifier": classifier,
            "images_per_class": run.protocol.generation.images_per_class,
        }
    try:
        if run.protocol.generation and entry.generate:
            strategy = entry.generate(run.hyperparameters, template)
        else:
            strategy = entry.make(run.hyperparameters, template)
        if entry.has_gan:  # now, not where the experience comes that it cannot learn
            strategy.generator.check_minibatch(classes if entry.whole_stream_at_once else max(map(len, met)))
    except ValueError as error:  # it cannot be done on this stream
        raise ProtocolError(f"{run.protocol.name}: {entry.name}: {error}") from error
    if training.iterations_per_batch > 1 and strategy.optimizer is None:
        raise ProtocolError(f"{run.protocol.name}: {entry.name} takes no steps: training.iterations_per_batch is 1")
    for plugin in augmentation:
        strategy.plugins.insert(0, plugin.new)
    if training.precision == "bf16":
        if run.protocol.generation:
            raise ProtocolError(f"{run.protocol.name}: training.precision is for what classifies; GANs need float32")
        train_in_bfloat16(strategy)
    return strategy


class SilentInTraining(KeepsNothing, KeepsNothingWithin, EvaluationPlugin):
    """Avalanche's, asked in evaluation only.

    A run measures and logs nothing while it trains. Asked all the same, eight times a step, with a copy of the
    experience each time, it takes a sixth of a small network's training.
    """

    def _update_metrics_and_loggers(self, strategy: SupervisedTemplate, callback: str) -> None:
        if not strategy.is_training:
            super()._update_metrics_and_loggers(strategy, callback)
