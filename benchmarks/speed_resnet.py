"""What a pass over colour images costs with a reduced ResNet-18, beside Avalanche as shipped and a plain loop.

The plain loop is what a script has that is written out for one experiment: images in memory, ``channels_last``,
torchvision's transformations image by image. Seconds are of one processor; the three take turns, since a machine's
speed drifts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.models import SlimResNet18
from avalanche.training import Naive, Replay
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from engrams.benchmarks.data.images import ImageData, as_float
from engrams.benchmarks.data.streams import make_benchmark
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.training.build import make_strategy
from engrams.benchmarks.training.networks import ReducedResNet

PROTOCOL = "split-cifar100/class"
BATCH, CLASSES, MEMORY, PADDING = 10, 5, 200, 4
GOAL = 1.1
"""What ours may take of the plain loop's time."""
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("naive", {}),
    "with crops and flips": ("naive", {"training.random_crops": PADDING, "training.horizontal_flips": True}),
    "with replay": ("er", {"mem_size": MEMORY}),
}
"""What is measured: our strategy and its settings."""
Pass = Callable[[], float]
"""Learns an experience after another one; returns the seconds of the second."""


def one_pass(repeats: int = 5, images: int = 500) -> list[tuple[str, str, str]]:
    """Returns a row for each way to learn ``images`` random images, as many of them having gone before."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (2 * images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    y = torch.arange(2 * images) * 2 * CLASSES // (2 * images)
    rows = []
    with one_thread():
        for kind in KINDS:
            passes: dict[str, Pass] = {
                "Avalanche as shipped": lambda kind=kind: _avalanche(kind, x, y),
                "a plain loop": lambda kind=kind: _plain(kind, x, y),
                "ours": lambda kind=kind: _ours(kind, x, y),
            }
            seconds: dict[str, list[float]] = {name: [] for name in passes}
            for _ in range(repeats):
                for name, learn in passes.items():
                    seconds[name].append(learn())
            for name, found in seconds.items():
                ratio = statistics.median(a / b for a, b in zip(found, seconds["a plain loop"], strict=True))
                goal = f" (goal: {GOAL:g})" if name == "ours" else ""
                rows.append((f"{kind}: {name}", f"{statistics.median(found):.2f} s", f"{ratio:.2f} x{goal}"))
    return rows


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class EpochClock(SupervisedPlugin):
    """Seconds of every epoch."""

    def __init__(self, now: Callable[[], float]):
        """
        Args:
            now: of the clock on the wall, or of the processor.
        """
        super().__init__()
        self.now = now
        self.epochs: list[float] = []

    def before_training_epoch(self, strategy, **kwargs):
        self._began = self.now()

    def after_training_epoch(self, strategy, **kwargs):
        self.epochs.append(self.now() - self._began)


def _ours(kind: str, x: Tensor, y: Tensor) -> float:
    strategy_name, settings = KINDS[kind]
    run = plan(PROTOCOL, [strategy_name], [0], settings)[0]
    floats = as_float(x)
    stream = run.protocol.stream
    assert stream.kind != "benchmark"
    # Nothing is judged.
    benchmark = make_benchmark(ImageData(floats, y, floats, y), stream, run.protocol.scenario, "test", 0)
    strategy, clock = make_strategy(run, benchmark, "cpu", []), EpochClock(time.process_time)
    strategy.plugins.append(clock)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return clock.epochs[-1]


def _plain(kind: str, x: Tensor, y: Tensor) -> float:
    augment = transforms.Compose([transforms.RandomCrop(32, PADDING), transforms.RandomHorizontalFlip()])
    model = ReducedResNet(3, 20, 2 * CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    floats, memory = as_float(x), torch.empty(0, dtype=torch.long)
    began = 0.0
    for part in torch.arange(len(x)).chunk(2):
        began = time.process_time()
        for chosen in part[torch.randperm(len(part))].split(BATCH):
            if kind == "with replay" and len(memory):
                chosen = torch.cat([chosen, memory[torch.randperm(len(memory))[:BATCH]]])
            images = floats[chosen]
            if kind == "with crops and flips":
                images = torch.stack([augment(image) for image in images])
            optimizer.zero_grad()
            functional.cross_entropy(model(images), y[chosen]).backward()
            optimizer.step()
        memory = part[torch.randperm(len(part))[:MEMORY]]
    return time.process_time() - began


class _Pictures(Dataset):
    """Images as torchvision's data sets have them."""

    def __init__(self, x: Tensor, y: Tensor):
        self.images, self.targets = [to_pil_image(image) for image in x], y.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int):
        return self.images[place], self.targets[place]


def _avalanche(kind: str, x: Tensor, y: Tensor) -> float:
    augment = [transforms.RandomCrop(32, PADDING), transforms.RandomHorizontalFlip()]
    steps = [*(augment if kind == "with crops and flips" else ()), transforms.ToTensor()]
    groups = {"train": (transforms.Compose(steps), None), "eval": (transforms.ToTensor(), None)}
    data = [
        as_classification_dataset(_Pictures(*part), transform_groups=groups)
        for part in zip(x.chunk(2), y.chunk(2), strict=True)
    ]
    model, clock = SlimResNet18(2 * CLASSES), EpochClock(time.process_time)
    strategy = (Replay if kind == "with replay" else Naive)(
        **({"mem_size": MEMORY} if kind == "with replay" else {}),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        plugins=[clock],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
    )
    for experience in benchmark_from_datasets(train=data).train_stream:
        strategy.train(experience)
    return clock.epochs[-1]
