"""One run: a protocol, a strategy and a seed -> a record."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import CLScenario
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training import GenerativeReplay
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.loading import InMemoryLoading
from engrams.benchmarks.data.streams import Judge, bounds, make_benchmark, prepared
from engrams.benchmarks.judging.generation import GenerationObserver
from engrams.benchmarks.judging.observer import GeneratorObserver, classifier_for
from engrams.benchmarks.judging.real_classifier import RealClassifier
from engrams.benchmarks.protocols.schema import Protocol, ProtocolError
from engrams.benchmarks.training.augment import HorizontalFlips
from engrams.benchmarks.training.networks import make_network
from engrams.benchmarks.training.schedule import LinearDecay
from engrams.reports import store
from engrams.reports.matrix import accuracy_row, metrics
from engrams.reports.store import Record
from engrams.reports.wandb.logger import WandBLogger, WandBMode
from engrams.strategies.catalogue import CATALOGUE, Hyperparameters
from engrams.strategies.generator_training import GeneratorPlugin, GeneratorTemplate
from engrams.strategies.generators import ImageSpec
from engrams.strategies.generators.acgan import ROUND
from torch import Tensor, nn

EVALUATION_BATCH = 1000
TRACEBACK = "traceback.txt"


class Diverged(Exception):
    """Training went wrong in a way that the user can mend; the message says how."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run: what decides its result, and where its record goes."""

    protocol: Protocol
    strategy: str
    seed: int
    hyperparameters: Hyperparameters
    judge: Judge = "test"
    variant: str = ""
    """Tells the runs of a search or a study apart; empty for one with the protocol's own hyperparameters."""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.protocol.name, self.strategy, self.variant, f"seed {self.seed}") if part)

    @property
    def epochs(self) -> int:
        """Of one call of ``train``: the protocol's, or the strategy's own (GDumb), and those of a generator."""
        if not self.has_solver:
            return self.generator_epochs
        own = getattr(self.hyperparameters, "epochs", self.protocol.training.epochs)
        return own + self.generator_epochs

    @property
    def has_solver(self) -> bool:
        return not (self.protocol.generation and CATALOGUE[self.strategy].has_gan)

    @property
    def generator_epochs(self) -> int:
        """Of one call of ``train``, besides the solver's; of a conditional GAN, its rounds."""
        if CATALOGUE[self.strategy].has_gan and self.protocol.gan:
            return -(-getattr(self.hyperparameters, "steps", self.protocol.gan.steps) // ROUND)
        return getattr(self.hyperparameters, "generator_epochs", 0)

    @property
    def schedule(self) -> str:
        """Of the solver's learning rate: the protocol's, or the strategy's own."""
        return getattr(self.hyperparameters, "solver_schedule", None) or self.protocol.training.schedule

    @property
    def upper_limit_of_epochs(self) -> int:
        return self.epochs * (1 if CATALOGUE[self.strategy].whole_stream_at_once else self.experiences)

    @property
    def experiences(self) -> int:
        """How many there are.

        Raises:
            ProtocolError: the classes cannot be split as the protocol says.
        """
        stream = self.protocol.stream
        if stream.kind == "permuted":
            return stream.experiences
        classes = datasets.load(self.protocol.dataset, from_disk=True).classes  # the labels are enough
        if classes % stream.classes_per_experience:
            raise ProtocolError(
                f"{self.protocol.name}: stream.classes_per_experience: {classes} classes cannot be split into "
                f"experiences of {stream.classes_per_experience}"
            )
        return classes // stream.classes_per_experience

    def folder(self, out: Path) -> Path:
        return store.folder_of(out, self.protocol.name, str(Path(self.strategy) / self.variant), self.seed)

    def deciding(self) -> dict[str, Any]:
        """Everything that decides the result but the seed, for the record."""
        return {
            **self.protocol.deciding(self.strategy),
            "judge": self.judge,
            "strategy": self.hyperparameters.model_dump(mode="json"),
        }


def execute(
    run: Run,
    out: Path,
    device: str,
    wandb_mode: WandBMode,
    report: Callable[[int], None],
    stream_from_disk: bool = False,
) -> Record:
    """Do one run and write its record; whatever goes wrong inside is recorded, not raised.

    Args:
        run: what to do.
        out: folder of all records.
        device: torch's name of the device to train on.
        wandb_mode: where W&B keeps the run.
        report: called with the number of epochs done, as they are done.
        stream_from_disk: read images when they are needed, not all before: less memory, more time, the same result.
    """
    folder = run.folder(out)
    started = time.perf_counter()
    ran_on = {**environment(device), "images": "on disk" if stream_from_disk else "in memory"}
    logger = WandBLogger(
        folder,
        run.protocol.name,
        " ".join(part for part in (run.strategy, run.variant) if part),
        run.seed,
        {**run.deciding(), "environment": ran_on},
        wandb_mode,
        CATALOGUE[run.strategy].whole_stream_at_once,
    )
    outcome: dict[str, Any]
    observer: GeneratorObserver | GenerationObserver | None = None
    classifier: RealClassifier | None = None
    looking = 0.0

    def look(strategy: SupervisedTemplate, _) -> None:
        nonlocal looking
        began = time.perf_counter()
        if observer:
            observer.look(strategy)
            logger.generated(observer.draw(folder))
        if isinstance(observer, GenerationObserver):
            logger.frechet_distance(observer.frechet_distance[-1])
        looking += time.perf_counter() - began

    try:
        if CATALOGUE[run.strategy].needs_images and not datasets.load(run.protocol.dataset).vectors:
            began = time.perf_counter()
            classifier = classifier_for(run.protocol, device, out)
            if run.protocol.generation and classifier:
                observer = GenerationObserver(run.protocol, classifier, run.name)
            else:
                observer = GeneratorObserver(run.protocol, classifier, run.name)
            looking += time.perf_counter() - began
        matrix, at_initialisation = learn(run, device, [logger], report, look, stream_from_disk, classifier)
        outcome = {
            "status": "complete",
            "accuracy_matrix": matrix,
            "accuracy_at_initialisation": at_initialisation,
            "metrics": metrics(matrix, at_initialisation or None),
        }
        began = time.perf_counter()
        outcome["generated"] = observer.summary() if observer else None
        if isinstance(observer, GenerationObserver):
            logger.animation(observer.animate(folder))
        looking += time.perf_counter() - began
    except (Diverged, datasets.DataError, ProtocolError) as error:  # says all there is to say in one line
        outcome = {"status": "failed", "reason": str(error)}
    except Exception as error:  # a bug in one strategy must not cost the others their runs
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        reason = f"{type(error).__name__}: {error} (see {folder / TRACEBACK})"
        outcome = {"status": "failed", "reason": reason}
    record = Record(
        protocol=run.protocol.name,
        strategy=run.strategy,
        seed=run.seed,
        hyperparameters=run.deciding(),
        seconds=time.perf_counter() - started - looking,
        environment=ran_on,
        **outcome,
    )
    if record.complete:
        (folder / TRACEBACK).unlink(missing_ok=True)  # of an earlier try
    logger.finish(record, store.write(record, folder))
    return record


def learn(
    run: Run,
    device: str,
    loggers: list[BaseLogger],
    report: Callable[[int], None],
    after_experience: Callable[[SupervisedTemplate, list[list[float]]], None] = lambda strategy, matrix: None,
    stream_from_disk: bool = False,
    classifier: RealClassifier | None = None,
) -> tuple[list[list[float]], list[float]]:
    """Train and judge, once through the stream.

    Args:
        run: what to do.
        device: torch's name of the device to train on.
        loggers: Avalanche's, told of evaluation; of training they hear nothing.
        report: called with the number of epochs done, as they are done.
        after_experience: called with the strategy and the accuracy matrix so far; may raise to stop the run.
        stream_from_disk: as for :func:`execute`.
        classifier: of real images, which judges where a generator is judged.

    Returns:
        The accuracy matrix, and the accuracies at initialisation.

    Raises:
        Diverged: the loss or a parameter is no finite number any more.
    """
    protocol = run.protocol
    torch.use_deterministic_algorithms(True)
    RNGManager.set_random_seeds(run.seed)
    data = prepared(protocol.dataset, protocol.images, stream_from_disk)
    benchmark = make_benchmark(data, protocol.stream, protocol.scenario, run.judge, run.seed)
    judged = benchmark.streams[run.judge]
    strategy = make_strategy(run, benchmark, device, loggers, [], classifier)
    watch(strategy, report)
    if CATALOGUE[run.strategy].whole_stream_at_once:
        strategy.train(benchmark.train_stream)
        matrix = [accuracy_row(strategy.eval(judged))]
        after_experience(strategy, matrix)
        return matrix, []
    at_initialisation = accuracy_row(strategy.eval(judged))
    matrix = []
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=protocol.training.reset_optimizer)
        matrix.append(accuracy_row(strategy.eval(judged)))
        after_experience(strategy, matrix)
    return matrix, at_initialisation


def make_strategy(
    run: Run,
    benchmark: CLScenario,
    device: str,
    loggers: list[BaseLogger],
    plugins: Sequence[SupervisedPlugin],
    classifier: RealClassifier | None = None,
) -> SupervisedTemplate:
    """The Avalanche strategy of a run, ready to be trained on the benchmark's train stream."""
    training = run.protocol.training
    shape = tuple(benchmark.train_stream[0].dataset[0][0].shape)
    if training.horizontal_flips and len(shape) != 3:
        raise ProtocolError(f"{run.protocol.name}: training.horizontal_flips is for images; these are vectors")
    model = make_network(run.protocol.network, run.protocol.scenario, benchmark)
    # fused: the same update in one pass over memory; on a CPU the default Adam costs as much as the network.
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=training.learning_rate, momentum=training.momentum, fused=True
        )
    decay = [LinearDecay()] if run.schedule == "linear" and run.has_solver else []
    flips = [HorizontalFlips(run.seed)] if training.horizontal_flips else []
    template: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": training.batch_size,
        "train_epochs": training.epochs,
        "eval_mb_size": EVALUATION_BATCH,
        "device": torch.device(device),
        "plugins": [InMemoryLoading(run.seed), *flips, *decay, *plugins],
        "evaluator": SilentInTraining(accuracy_metrics(experience=True), loggers=loggers or [BaseLogger()]),
    }
    entry = CATALOGUE[run.strategy]
    if entry.needs_images:
        template |= {"images": ImageSpec(shape, *bounds(shape, run.protocol.images)), "seed": run.seed}
    if entry.has_gan:
        met = [experience.classes_in_this_experience for experience in benchmark.train_stream]
        classes = 1 + max(map(max, met))
        template |= {"gan": run.protocol.gan, "classes": classes}
    if run.protocol.generation and classifier:
        template |= {
            "classifier": classifier.network,
            "images_per_class": run.protocol.generation.images_per_class,
        }
    try:
        strategy = run.protocol.builder(run.strategy)(run.hyperparameters, template)
        if entry.has_gan:  # now, not where the experience comes that it cannot learn
            strategy.generator.check_minibatch(classes if entry.whole_stream_at_once else max(map(len, met)))
    except ValueError as error:  # it cannot be done on this stream
        raise ProtocolError(f"{run.protocol.name}: {run.strategy}: {error}") from error
    return strategy


class SilentInTraining(EvaluationPlugin):
    """Avalanche's, asked in evaluation only.

    A run measures and logs nothing while it trains. Asked all the same, eight times a step, with a copy of the
    experience each time, it takes a sixth of a small network's training.
    """

    def _update_metrics_and_loggers(self, strategy: SupervisedTemplate, callback: str) -> None:
        if not strategy.is_training:
            super()._update_metrics_and_loggers(strategy, callback)


def watch(strategy: SupervisedTemplate, report: Callable[[int], None]) -> None:
    """Tell the number of epochs done, the generator's among them, and stop what diverges."""
    done = count(1)

    def epoch_done() -> None:
        report(next(done))

    # First of the plugins: what went wrong is neither logged nor trained on.
    strategy.plugins.insert(0, WatchTraining(epoch_done))
    if isinstance(strategy, GeneratorTemplate):
        generator = WatchGenerator(epoch_done, "the generator's", "its learning rate or the penalty's lambda")
        strategy.plugins.insert(0, generator)
    if isinstance(strategy, GenerativeReplay):  # Avalanche's, whose generator is trained by a strategy of its own
        generator = WatchTraining(epoch_done, "the generator's", "its learning rate")
        strategy.generator_strategy.plugins.insert(0, generator)


class Watch:
    """Tells how far a training is, and stops it once a loss or a parameter is no number any more."""

    def __init__(
        self,
        epoch_done: Callable[[], None],
        whose: str = "the",
        too_high: str = "the learning rate or the penalty's lambda",
    ):
        """
        Args:
            epoch_done: called after every epoch.
            whose: the loss and the parameters are; what is said begins with it.
            too_high: what to lower where it diverges.
        """
        super().__init__()
        self.epoch_done = epoch_done
        self.whose = whose
        self.too_high = too_high

    def check_loss(self, strategy: SupervisedTemplate, loss: Tensor) -> None:
        # A loss that is NaN or infinite leaves parameters that keep it so: once an epoch is often enough.
        if not torch.isfinite(loss).all():
            self._stop(strategy, f"{self.whose} training loss became {loss.item()}")

    def check_parameters(self, strategy: SupervisedTemplate, network: nn.Module) -> None:
        bad = (name for name, parameter in network.named_parameters() if not torch.isfinite(parameter).all())
        if name := next(bad, None):
            self._stop(strategy, f"{self.whose} parameter {name} is no finite number any more")

    def _stop(self, strategy: SupervisedTemplate, what: str) -> None:
        raise Diverged(f"{what} in experience {strategy.experience.current_experience}; lower {self.too_high}")


class WatchTraining(Watch, SupervisedPlugin):
    """Watches a strategy's own training, that of its model."""

    def after_training_epoch(self, strategy, **kwargs):
        self.check_loss(strategy, strategy.loss)
        self.epoch_done()

    def after_training_exp(self, strategy, **kwargs):
        # The last step is taken after its loss was looked at.
        self.check_parameters(strategy, strategy.model)


class WatchGenerator(Watch, GeneratorPlugin):
    """Watches the training of the generator that a strategy has besides."""

    def after_generator_epoch(self, strategy, **kwargs):
        self.check_loss(strategy, strategy.generator_loss)
        self.check_parameters(strategy, strategy.generator)  # a GAN's generator has no part in the critic's loss
        self.epoch_done()


def usual_device() -> str:
    """torch's name of the GPU if there is one, else of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def environment(device: str) -> dict[str, Any]:
    """What the run ran on: versions, machine, device."""
    versions: dict[str, str | None] = {}
    for package in ("engrams", "torch", "torchvision", "avalanche-lib", "numpy", "scikit-learn", "wandb"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
    }
