"""Makes what a run needs: its benchmark and its strategy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.benchmarks import CLScenario
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from engrams.benchmarks.data.loading import InMemoryLoading
from engrams.benchmarks.data.own_benchmarks import own_benchmark
from engrams.benchmarks.data.streams import bounds, make_benchmark, prepared
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import MLP, Training
from engrams.benchmarks.runs import Run
from engrams.benchmarks.training.augment import Augmentation
from engrams.benchmarks.training.networks import make_network, plain_network
from engrams.benchmarks.training.precision import train_in_bfloat16
from engrams.benchmarks.training.schedule import Decay
from engrams.strategies.generators import ImageSpec
from engrams.strategies.kept import KeepsNothing, KeepsNothingWithin


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


def make_strategy(
    run: Run,
    benchmark: CLScenario,
    device: str,
    plugins: Sequence[SupervisedPlugin],
    classifier: nn.Module | None = None,
) -> SupervisedTemplate:
    """Returns the Avalanche strategy of a run, ready to be trained on the benchmark's train stream.

    Args:
        run: what to do.
        benchmark: its own, of :func:`benchmark_of`.
        device: torch's name of the device to train on.
        plugins: go before the strategy's own.
        classifier: of real images, which judges where a generator is judged.

    Raises:
        ProtocolError: the strategy cannot be built on this stream.
    """
    entry, protocol, training = run.strategy, run.protocol, run.training
    shape = tuple(benchmark.train_stream[0].dataset[0][0].shape)
    augmentation = _augmentation(run, shape)
    with _setting_no_seed(f"{protocol.name}: the network"):
        model = _network(run, benchmark)
    budget = run.budget
    decay = [Decay(budget.schedule)] if budget.epochs and budget.schedule and budget.schedule != "constant" else []
    in_order = protocol.stream.boundaries == "gradual"
    loading = InMemoryLoading(run.seed, training.iterations_per_batch, in_order)
    template: dict[str, Any] = {
        "model": model,
        "optimizer": _optimizer(training, model),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": training.batch_size,
        "train_epochs": training.epochs,
        "eval_mb_size": _evaluation_batch(run, device),
        "device": torch.device(device),
        "plugins": [loading, *augmentation, *decay, *plugins],
        "evaluator": SilentInTraining(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
    }
    if entry.needs_images:
        template |= {"images": _images(run, shape), "seed": run.seed}
    if entry.has_gan:
        classes_met = [experience.classes_in_this_experience for experience in benchmark.train_stream]
        classes = 1 + max(map(max, classes_met))
        template |= {"gan": protocol.gan, "classes": classes}
    if protocol.generation and classifier:
        template |= {"classifier": classifier, "images_per_class": protocol.generation.images_per_class}
    generates = protocol.generation and entry.generate
    try:
        with _setting_no_seed(f"{protocol.name}: {entry.name}"):
            strategy = (entry.generate if generates else entry.make)(run.hyperparameters, template)
        if entry.has_gan:  # now, not where the experience comes that it cannot learn
            strategy.generator.check_minibatch(classes if entry.whole_stream_at_once else max(map(len, classes_met)))
    except ValueError as error:  # it cannot be done on this stream
        raise ProtocolError(f"{protocol.name}: {entry.name}: {error}") from error
    if training.iterations_per_batch > 1 and strategy.optimizer is None:
        raise ProtocolError(f"{protocol.name}: {entry.name} takes no steps: training.iterations_per_batch is 1")
    if entry.code:
        _check_template_is_taken(f"{protocol.name}: {entry.name}", template, strategy)
        _warn_of_another_budget(run, strategy)
    for plugin in augmentation:
        strategy.plugins.insert(0, plugin.new)
    if training.precision == "bf16":
        if protocol.generation:
            raise ProtocolError(f"{protocol.name}: training.precision is for what classifies; GANs need float32")
        train_in_bfloat16(strategy)
    return strategy


@contextmanager
def _setting_no_seed(who: str) -> Iterator[None]:
    """Raises a ProtocolError where the code within, which may be somebody's own, sets torch's seed."""
    seed = torch.initial_seed()
    yield
    if torch.initial_seed() != seed:
        raise ProtocolError(
            f"{who} sets a seed (torch.manual_seed), and the runs of all seeds would go on with the same random "
            f"numbers: leave that to Engrams, or do it within torch.random.fork_rng()"
        )


def _check_template_is_taken(name: str, template: Mapping[str, Any], strategy: SupervisedTemplate) -> None:
    """Raises a ProtocolError where somebody's strategy leaves out what loads, augments and judges."""
    taken = {id(plugin) for plugin in strategy.plugins}
    if any(id(plugin) not in taken for plugin in template["plugins"]):
        raise ProtocolError(
            f"{name} does not take the plugins that it is given, which load and augment as the protocol says: "
            f"hand plugins on to Avalanche's template, its own beside them"
        )
    if strategy.evaluator is not template["evaluator"]:
        raise ProtocolError(f"{name} has an evaluator of its own, and would not be judged: hand on the one it is given")


def _warn_of_another_budget(run: Run, strategy: SupervisedTemplate) -> None:
    """Warns where somebody's strategy is not trained as its record will say."""
    asked = {"train_mb_size": run.training.batch_size, "train_epochs": run.budget.epochs or run.training.epochs}
    for name, value in asked.items():
        if (taken := getattr(strategy, name, value)) != value:
            warnings.warn(
                f"{run.protocol.name}: {run.strategy.name} trains with {name} = {taken}, and its record will say "
                f"{value}: hand on what it is given, or let the protocol say it",
                stacklevel=2,
            )


def _evaluation_batch(run: Run, device: str) -> int:
    """Returns how many samples are evaluated at once: its cost depends on it, the accuracy but for rounding not."""
    large = not isinstance(run.protocol.network, MLP) and not run.protocol.generation
    return 100 if large and device == "cpu" else 1000  # a residual network's in a CPU's cache: 0.7 of the time


def _network(run: Run, benchmark: CLScenario) -> nn.Module:
    """Returns the network that learns: the protocol's, or what the strategy makes of such networks."""
    protocol, own = run.protocol, run.strategy.network
    if own is None:
        return make_network(protocol.network, protocol.learned_as, benchmark)
    try:
        return own(run.hyperparameters, lambda: plain_network(protocol.network, benchmark))
    except ValueError as error:
        raise ProtocolError(f"{protocol.name}: {run.strategy.name}: {error}") from error


def _optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    # fused: the same update in one pass over memory; on a CPU the default Adam costs as much as the network.
    if training.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    return torch.optim.SGD(model.parameters(), lr=training.learning_rate, momentum=training.momentum, fused=True)


def _augmentation(run: Run, shape: tuple[int, ...]) -> list[Augmentation]:
    """Returns what the protocol asks for: one, or none."""
    training = run.training
    if not training.augments:
        return []
    if len(shape) != 3:
        which = "horizontal_flips" if training.horizontal_flips else "random_crops"
        raise ProtocolError(f"{run.protocol.name}: training.{which} is for images; these are vectors")
    if training.random_crops:
        _check_black_is_known(run, "training.random_crops pads with black")
    black = bounds(shape, run.protocol.images)[0]
    what = training.horizontal_flips, training.random_crops, training.augmented
    return [Augmentation(*what, black, run.seed, training.iterations_per_batch)]


def _images(run: Run, shape: tuple[int, ...]) -> ImageSpec:
    """Returns what a strategy that makes images must know of them."""
    _check_black_is_known(run, f"{run.strategy.name} makes images")
    return ImageSpec(shape, *bounds(shape, run.protocol.images))


def _check_black_is_known(run: Run, who: str) -> None:
    """Raises a ProtocolError where a benchmark does not say how its images are normalised."""
    protocol = run.protocol
    if protocol.stream.kind == "benchmark" and "mean" not in protocol.images.model_fields_set:
        raise ProtocolError(
            f"{protocol.name}: {who} and must know what black and white are in this benchmark: say by images.mean and "
            f"images.std how it normalises (0 and 1 if it does not)"
        )


class SilentInTraining(KeepsNothing, KeepsNothingWithin, EvaluationPlugin):
    """Avalanche's, asked in evaluation only.

    A run measures and logs nothing while it trains. Asked all the same, eight times a step, with a copy of the
    experience each time, it takes a sixth of a small network's training.
    """

    def _update_metrics_and_loggers(self, strategy: SupervisedTemplate, callback: str) -> None:
        if not strategy.is_training:
            super()._update_metrics_and_loggers(strategy, callback)
