"""Images and labels -> an Avalanche benchmark: a stream of experiences to learn from and one to be judged on."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline, with_task_labels
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from benchmarks.datasets import ImageData, load
from benchmarks.loading import TensorClassificationDataset
from benchmarks.protocol import Images, PermutedStream, SplitStream

Judge = Literal["test", "validation"]
VALIDATION_SEED = 0
"""Of the choice of validation samples, the same in every run: what is chosen on them is never trained on."""


@lru_cache(maxsize=1)
def prepared(dataset: str, images: Images) -> ImageData:
    """A data set by name, its images padded and normalised: x -> (pad(x) - mean) / std.

    Kept, since the runs that a process does one after another mostly share it.

    Raises:
        DataError: as :func:`benchmarks.datasets.load`.
    """
    data = load(dataset)

    def prepare(x: Tensor) -> Tensor:
        return functional.pad(x, [images.pad] * 4).sub_(images.mean).div_(images.std)

    return replace(data, train_x=prepare(data.train_x), test_x=prepare(data.test_x))


def make_benchmark(
    data: ImageData, stream: PermutedStream | SplitStream, scenario: str, judge: Judge, seed: int
) -> CLScenario:
    """Build the streams of one run.

    Args:
        data: images, as they go into the network, and labels.
        stream: how experiences are made.
        scenario: ``task``, ``domain`` or ``class``.
        judge: ``test``: train on all training data, be judged on the test data. ``validation``: a stratified part of
            the training data is held out and judged on; the test data are not in the benchmark at all.
        seed: of permutations and of a seeded class order.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream`` or ``validation_stream``.
    """
    train, held_out = (data.train_x, data.train_y), (data.test_x, data.test_y)
    if judge == "validation":
        train, held_out = _validation_split(*train, stream.validation_fraction)

    def experiences(x: Tensor, y: Tensor) -> list[TensorClassificationDataset]:
        generator = torch.Generator().manual_seed(seed)  # the same for both streams
        if isinstance(stream, PermutedStream):
            return _permuted(x, y, stream, generator)
        return _split(x, y, stream, scenario, data.classes, generator)

    streams = {"train": experiences(*train), judge: experiences(*held_out)}
    return labelled(benchmark_from_datasets(**streams))


def labelled(benchmark: CLScenario) -> CLScenario:
    """Give every experience its classes and task labels, as Avalanche's dynamic modules read them.

    Avalanche 0.6 gives the classes as a set, with which its own MultiHeadClassifier then fails to index a tensor.
    """
    benchmark = with_task_labels(with_classes_timeline(benchmark))
    for stream in benchmark.streams.values():
        for experience in stream:
            experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return benchmark


def _validation_split(x: Tensor, y: Tensor, fraction: float) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    train, validation = train_test_split(
        torch.arange(len(y)).numpy(), test_size=fraction, stratify=y.numpy(), random_state=VALIDATION_SEED
    )
    return (x[train], y[train]), (x[validation], y[validation])


def _permuted(
    x: Tensor, y: Tensor, stream: PermutedStream, generator: torch.Generator
) -> list[TensorClassificationDataset]:
    """Experience 0 is the images as they are; each later one applies its own permutation of the pixels to all."""
    pixels = x[0].numel()
    orders = [torch.arange(pixels)]
    orders += [torch.randperm(pixels, generator=generator) for _ in range(stream.experiences - 1)]
    return [
        TensorClassificationDataset.from_tensors(x.flatten(1)[:, order].view_as(x), y, task_label=0) for order in orders
    ]


def _split(
    x: Tensor, y: Tensor, stream: SplitStream, scenario: str, classes: int, generator: torch.Generator
) -> list[TensorClassificationDataset]:
    """A few classes an experience.

    The label is the class's place within its experience (``task``, ``domain``), or its place in the whole order of
    classes (``class``).
    """
    size = stream.classes_per_experience
    if classes % size:
        raise ValueError(f"{classes} classes cannot be split into experiences of {size}")
    order = torch.arange(classes) if stream.class_order == "in-order" else torch.randperm(classes, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(classes)
    experiences = []
    for index, chosen in enumerate(order.split(size)):
        members = torch.isin(y, chosen)
        labels = place[y[members]]
        experiences.append(
            TensorClassificationDataset.from_tensors(
                x[members],
                labels if scenario == "class" else labels - index * size,
                task_label=index if scenario == "task" else 0,
            )
        )
    return experiences
