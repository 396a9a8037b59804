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

from engrams.benchmarks.data.datasets import ImageData, ImagesOnDisk, as_float, load
from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.protocols.schema import Images, PermutedStream, ProtocolError, SplitStream

Judge = Literal["test", "validation"]
VALIDATION_SEED = 0
"""Of the choice of validation samples, the same in every run: what is chosen on them is never trained on."""


@lru_cache(maxsize=1)
def prepared(dataset: str, images: Images, from_disk: bool = False) -> ImageData:
    """A data set by name, its images padded and normalised: x -> (pad(x) - mean) / std.

    Kept, since the runs that a process does one after another mostly share it.

    Args:
        dataset: its name.
        images: what is done to them.
        from_disk: read and prepare an image when it is asked for, in place of all at once. The values are the same.

    Raises:
        DataError: as :func:`engrams.benchmarks.data.datasets.load`.
        ProtocolError: a mean or standard deviation for each channel, but not as many as there are channels.
    """
    data = load(dataset, from_disk)
    channels = data.test_x[0].shape[0]
    for name, values in (("mean", images.mean), ("std", images.std)):
        if isinstance(values, tuple) and len(values) != channels:
            raise ProtocolError(f"images.{name}: {len(values)} values, but {dataset} has {channels} channel(s)")

    def prepare(x: Tensor) -> Tensor:  # one image or all; whole numbers until they are padded: a quarter of the memory
        return as_float(functional.pad(x, [images.pad] * 4)).sub_(_spread(images.mean)).div_(_spread(images.std))

    def all_or_each(x: Tensor | ImagesOnDisk) -> Tensor | ImagesOnDisk:
        return x.map(prepare) if isinstance(x, ImagesOnDisk) else prepare(x)

    return replace(data, train_x=all_or_each(data.train_x), test_x=all_or_each(data.test_x))


def black_and_white(images: Images) -> tuple[Tensor, Tensor]:
    """What 0 and 1 become: one number, or one for each channel, [channels, 1, 1]."""
    mean, std = torch.as_tensor(_spread(images.mean)), torch.as_tensor(_spread(images.std))
    return (0 - mean) / std, (1 - mean) / std


def brightness(x: Tensor, images: Images) -> Tensor:
    """Of images as they go into the network, as pictures have it: 0 is black, 1 is white."""
    black, white = (value.to(x.device) for value in black_and_white(images))
    return (x - black) / (white - black)


def _spread(value: float | tuple[float, ...]) -> float | Tensor:
    """One number for all pixels, or one a channel, [channels, 1, 1]."""
    return torch.tensor(value)[:, None, None] if isinstance(value, tuple) else value


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
    train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)

    def experiences(x: Tensor | ImagesOnDisk, y: Tensor, chosen: Tensor) -> list[TensorClassificationDataset]:
        generator = torch.Generator().manual_seed(seed)  # the same for both streams
        if isinstance(stream, PermutedStream):
            return _permuted(x, y, chosen, stream, generator)
        return _split(x, y, chosen, stream, scenario, data.classes, generator)

    if judge == "validation":
        learned, held_out = _validation_split(data.train_y, stream.validation_fraction)
        streams = {"train": experiences(*train, learned), judge: experiences(*train, held_out)}
    else:
        streams = {
            name: experiences(*part, torch.arange(len(part[1]))) for name, part in (("train", train), (judge, test))
        }
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


def _validation_split(y: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Which training samples to learn from, and which to be judged on."""
    train, validation = train_test_split(
        torch.arange(len(y)).numpy(), test_size=fraction, stratify=y.numpy(), random_state=VALIDATION_SEED
    )
    return torch.from_numpy(train), torch.from_numpy(validation)


def _permuted(
    x: Tensor | ImagesOnDisk, y: Tensor, chosen: Tensor, stream: PermutedStream, generator: torch.Generator
) -> list[TensorClassificationDataset]:
    """Experience 0 is the images as they are; each later one applies its own permutation of the pixels to all."""
    pixels = x[0].numel()
    orders = [torch.arange(pixels)]
    orders += [torch.randperm(pixels, generator=generator) for _ in range(stream.experiences - 1)]
    x = x.take(chosen) if isinstance(x, ImagesOnDisk) else x[chosen]

    def permuted(order: Tensor) -> Tensor | ImagesOnDisk:
        if isinstance(x, ImagesOnDisk):
            return x.map(lambda image: image.flatten()[order].view_as(image))
        return x.flatten(1)[:, order].view_as(x)

    return [TensorClassificationDataset.from_tensors(permuted(order), y[chosen], task_label=0) for order in orders]


def _split(
    x: Tensor | ImagesOnDisk,
    y: Tensor,
    chosen: Tensor,
    stream: SplitStream,
    scenario: str,
    classes: int,
    generator: torch.Generator,
) -> list[TensorClassificationDataset]:
    """A few classes an experience.

    The label is the class's place within its experience (``task``, ``domain``), or its place in the whole order of
    classes (``class``). Every experience is a subset of the same images, of which there is one copy.
    """
    size = stream.classes_per_experience
    if classes % size:
        raise ValueError(f"{classes} classes cannot be split into experiences of {size}")
    order = torch.arange(classes) if stream.class_order == "in-order" else torch.randperm(classes, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(classes)
    experiences = []
    for index, its_classes in enumerate(order.split(size)):
        labels = place[y]
        everything = TensorClassificationDataset.from_tensors(
            x,
            labels if scenario == "class" else labels - index * size,
            task_label=index if scenario == "task" else 0,
        )
        experiences.append(everything.subset(chosen[torch.isin(y[chosen], its_classes)].tolist()))
    return experiences
