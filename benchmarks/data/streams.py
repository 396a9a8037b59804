"""Images and labels -> an Avalanche benchmark: a stream of experiences to learn from and one to be judged on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline, with_task_labels
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import rotate

from engrams.benchmarks.data.boundaries import with_boundaries
from engrams.benchmarks.data.datasets import load
from engrams.benchmarks.data.images import ImageData, ImagesOnDisk, PreparedLater, as_float
from engrams.benchmarks.data.kept import kept
from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import Images, Judge, MadeStream, PermutedStream, RotatedStream, SplitStream

VALIDATION_SEED = 0
"""Of the choice of validation samples, the same in every run: what is chosen on them is never trained on."""


InputsOf = Tensor | ImagesOnDisk | PreparedLater
LARGE = 1 << 29
"""Bytes of prepared images from which on they are prepared by the minibatch, where that is possible: half a GB."""


@kept(maxsize=2)
def prepared(dataset: str, images: Images, from_disk: bool = False, by_minibatch: bool = False) -> ImageData:
    """Returns a data set by name, its images padded and normalised: x -> (pad(x) - mean) / std.

    Kept, since the runs that a process does one after another mostly share it. What is standardised by the first
    experience is so by :func:`make_benchmark`, which knows the experiences.

    Args:
        dataset: its name.
        images: what is done to them.
        from_disk: read and prepare an image when it is asked for, in place of all at once. The values are the same.
        by_minibatch: leave images in memory as their files have them, and prepare those of a minibatch, where all would
            be :data:`LARGE`. The values are the same.

    Raises:
        DataError: as :func:`engrams.benchmarks.data.datasets.load`.
        ProtocolError: a mean or standard deviation for each channel, but not as many as there are channels; something
            for images that cannot be done to vectors, or the other way round.
    """
    data = load(dataset, from_disk)
    if data.vectors:
        return _prepared_vectors(data, dataset, images)
    if images.standardise:
        raise ProtocolError(
            f"images.standardise is for vectors, but {dataset} has images; set images.mean and images.std"
        )
    channels = data.test_x[0].shape[0]
    for name, values in (("mean", images.mean), ("std", images.std)):
        if isinstance(values, tuple) and len(values) != channels:
            raise ProtocolError(f"images.{name}: {len(values)} values, but {dataset} has {channels} channel(s)")

    def prepare(x: Tensor) -> Tensor:  # one image or all; whole numbers until they are padded: a quarter of the memory
        mean, std = (_spread(value, x.device) for value in (images.mean, images.std))
        return as_float(functional.pad(x, [images.pad] * 4)).sub_(mean).div_(std)

    def all_or_each(x: InputsOf) -> InputsOf:
        if isinstance(x, ImagesOnDisk):
            return x.map(prepare)
        assert isinstance(x, Tensor)
        if by_minibatch and x.dtype == torch.uint8 and len(data.train_y) * prepare(x[:1]).nbytes >= LARGE:
            return PreparedLater(x, prepare)
        return prepare(x)

    black = black_and_white(images)[0]
    return replace(data, train_x=all_or_each(data.train_x), test_x=all_or_each(data.test_x), black=black)


def _prepared_vectors(data: ImageData, dataset: str, images: Images) -> ImageData:
    mean, std = images.mean, images.std
    if images.pad or isinstance(mean, tuple) or isinstance(std, tuple):
        raise ProtocolError(
            f"images.pad and a mean or std for each channel are for images, but {dataset} has vectors; they take one "
            f'mean and one std for all values, or standardise = "first-experience"'
        )
    assert isinstance(data.train_x, Tensor)
    assert isinstance(data.test_x, Tensor)
    return replace(
        data,
        train_x=(data.train_x - mean) / std,
        test_x=(data.test_x - mean) / std,
        standardise=images.standardise == "first-experience",
    )


def bounds(shape: Sequence[int], images: Images) -> tuple[Tensor, Tensor] | tuple[float, float]:
    """Returns the smallest and the largest value that inputs of this shape can have, as they go into the network.

    Those of images are what black and white become; vectors have none.
    """
    return (-math.inf, math.inf) if len(shape) == 1 else black_and_white(images)


def black_and_white(images: Images) -> tuple[Tensor, Tensor]:
    """Returns what 0 and 1 become: one number, or one for each channel, [channels, 1, 1]."""
    mean, std = torch.as_tensor(_spread(images.mean)), torch.as_tensor(_spread(images.std))
    return (0 - mean) / std, (1 - mean) / std


def brightness(x: Tensor, images: Images) -> Tensor:
    """Returns the brightness of images as they go into the network: 0 is black, 1 is white."""
    black, white = (value.to(x.device) for value in black_and_white(images))
    return (x - black) / (white - black)


def _spread(value: float | tuple[float, ...], device: torch.device | None = None) -> float | Tensor:
    """One number for all pixels, or one a channel, [channels, 1, 1]."""
    return torch.tensor(value, device=device)[:, None, None] if isinstance(value, tuple) else value


def make_benchmark(data: ImageData, stream: MadeStream, scenario: str, judge: Judge, seed: int) -> CLScenario:
    """Builds the streams of one run.

    Args:
        data: images or vectors, as they go into the network (but standardised only here), and labels.
        stream: how experiences are made.
        scenario: ``task``, ``domain`` or ``class``.
        judge: ``test``: train on all training data, be judged on the test data. ``validation``: a stratified part of
            the training data is held out and judged on; the test data are not in the benchmark at all. Where a stream
            has experiences for choosing, they are learned under ``validation``, and the others under ``test``.
        seed: of permutations, of angles, of the samples of each experience and of a seeded class order.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream`` or ``validation_stream``.
    """
    learned, held_out = _learned_and_held_out(data, stream, judge)
    if data.standardise:
        data = _standardised(data, *standardisation(data, stream, judge, seed))
    train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)

    def experiences(
        x: InputsOf, y: Tensor, chosen: Tensor, samples: int | None = None
    ) -> list[TensorClassificationDataset]:
        generator = torch.Generator().manual_seed(seed)  # the same for both streams
        if isinstance(stream, SplitStream):
            return _split(x, y, chosen, _classes(stream, data.classes, judge, generator), scenario)
        drawn = _drawn(chosen, stream.experiences, samples, seed)
        if isinstance(stream, PermutedStream):
            return _permuted(x, y, drawn, generator)
        return _rotated(x, y, drawn, stream, data.black, generator)

    judged = experiences(*train, held_out) if judge == "validation" else experiences(*test, torch.arange(len(test[1])))
    samples = None if isinstance(stream, SplitStream) else stream.samples_per_experience
    to_learn = with_boundaries(experiences(*train, learned, samples), stream, seed)
    return labelled(benchmark_from_datasets(train=to_learn, **{judge: judged}))


def labelled(benchmark: CLScenario) -> CLScenario:
    """Gives every experience its classes and task labels, as Avalanche's dynamic modules read them.

    Avalanche 0.6 gives the classes as a set, with which its own MultiHeadClassifier then fails to index a tensor.
    """
    benchmark = with_task_labels(with_classes_timeline(benchmark))
    for stream in benchmark.streams.values():
        for experience in stream:
            experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return benchmark


def _validation_split(y: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Which training samples to learn from, and which to be judged on."""
    try:
        train, validation = train_test_split(
            torch.arange(len(y)).numpy(), test_size=fraction, stratify=y.numpy(), random_state=VALIDATION_SEED
        )
    except ValueError as error:  # a class of one sample, or fewer samples than classes
        raise ProtocolError(f"stream.validation_fraction = {fraction}: {error}") from error
    return torch.from_numpy(train), torch.from_numpy(validation)


def standardisation(data: ImageData, stream: MadeStream, judge: Judge, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the mean and the standard deviation by which a stream has its vectors, each [values]; else 0 and 1.

    They are of the first experience's training data: what a learner may know when it begins, nothing of later
    experiences and nothing of what it is judged on. The deviation of a value that is constant is 1.

    Args:
        data, stream, judge, seed: as for :func:`make_benchmark`.
    """
    if not data.standardise:
        return torch.zeros(()), torch.ones(())
    learned, _ = _learned_and_held_out(data, stream, judge)
    if not isinstance(stream, SplitStream):
        learned = _drawn(learned, stream.experiences, stream.samples_per_experience, seed)[0]
    else:
        its_classes = _classes(stream, data.classes, judge, torch.Generator().manual_seed(seed))[0]
        learned = learned[torch.isin(data.train_y[learned], its_classes)]
    assert isinstance(data.train_x, Tensor)
    deviation, mean = torch.std_mean(data.train_x[learned].double(), dim=0, correction=0)
    deviation[deviation <= 1e-6 * mean.abs()] = 1  # constant but for rounding
    return mean.float(), deviation.float()


def _standardised(data: ImageData, mean: Tensor, deviation: Tensor) -> ImageData:
    assert isinstance(data.train_x, Tensor)
    assert isinstance(data.test_x, Tensor)
    return replace(data, train_x=(data.train_x - mean) / deviation, test_x=(data.test_x - mean) / deviation)


def _learned_and_held_out(data: ImageData, stream: MadeStream, judge: Judge) -> tuple[Tensor, Tensor]:
    """The places of the training data that are learned, and of those that are judged on, ascending."""
    if judge == "validation":
        return _validation_split(data.train_y, stream.validation_fraction)
    return torch.arange(len(data.train_y)), torch.empty(0, dtype=torch.long)


def _drawn(chosen: Tensor, experiences: int, samples: int | None, seed: int) -> list[Tensor]:
    """The places of every experience's samples: all, or so many of them, drawn for each experience anew."""
    if samples is None:
        return [chosen] * experiences
    if samples > len(chosen):
        raise ProtocolError(
            f"stream.samples_per_experience: {samples:,} are asked for, but there are {len(chosen):,} to learn from"
        )
    generator = torch.Generator().manual_seed(seed)
    return [chosen[torch.randperm(len(chosen), generator=generator)[:samples]] for _ in range(experiences)]


def _permuted(
    x: InputsOf, y: Tensor, drawn: Sequence[Tensor], generator: torch.Generator
) -> list[TensorClassificationDataset]:
    """Experience 0 is the images as they are; each later one applies its own permutation of the pixels to all."""
    pixels = x[0].numel()
    orders = [torch.arange(pixels)]
    orders += [torch.randperm(pixels, generator=generator) for _ in drawn[1:]]

    @lru_cache(maxsize=1)  # of the same places in every experience, unless each draws its own
    def taken(places: Tensor) -> Tensor:
        assert not isinstance(x, ImagesOnDisk)
        return x[places]

    def permuted(places: Tensor, order: Tensor) -> Tensor | ImagesOnDisk:
        if isinstance(x, ImagesOnDisk):
            return x.take(places).map(lambda image: image.flatten()[order].view_as(image))
        its = taken(places)
        columns = its.flatten(1).numpy().take(order.numpy(), axis=1)  # torch's own takes four times as long
        return torch.from_numpy(columns).view_as(its)

    return [
        TensorClassificationDataset.from_tensors(permuted(places, order), y[places], task_label=0)
        for places, order in zip(drawn, orders, strict=True)
    ]


def _rotated(
    x: InputsOf, y: Tensor, drawn: Sequence[Tensor], stream: RotatedStream, black: Tensor, generator: torch.Generator
) -> list[TensorClassificationDataset]:
    """Every experience rotates all images by its own angle."""
    if not isinstance(x, ImagesOnDisk) and x[0].dim() != 3:
        raise ProtocolError("stream.kind = 'rotated' is for images; these are vectors")
    low, high = stream.degrees
    place = torch.rand(stream.experiences, generator=generator)  # in the range, or in the experience's part of it
    if stream.angles == "ascending":
        place = (torch.arange(stream.experiences) + place) / stream.experiences
    angles = (low + (high - low) * place).tolist()
    fill = black.flatten().tolist()

    def rotated(places: Tensor, angle: float) -> Tensor | ImagesOnDisk:
        turned = partial(rotate, angle=angle, fill=fill)
        if isinstance(x, ImagesOnDisk):
            return x.take(places).map(turned)
        return torch.cat([turned(x[some]) for some in places.split(5000)])

    return [
        TensorClassificationDataset.from_tensors(rotated(places, angle), y[places], task_label=0)
        for places, angle in zip(drawn, angles, strict=True)
    ]


def _split(
    x: InputsOf, y: Tensor, chosen: Tensor, groups: Sequence[Tensor], scenario: str
) -> list[TensorClassificationDataset]:
    """A few classes an experience.

    The label is the class's place within its experience (``task``, ``domain``), or its place among the classes of all
    experiences (``class``). Every experience is a subset of the same images, of which there is one copy.
    """
    learned = torch.cat(list(groups))
    place = torch.zeros(int(y.max()) + 1, dtype=torch.long)
    place[learned] = torch.arange(len(learned))
    labels = place[y]
    experiences = []
    for index, its_classes in enumerate(groups):
        everything = TensorClassificationDataset.from_tensors(
            x,
            labels if scenario == "class" else labels - index * len(its_classes),
            task_label=index if scenario == "task" else 0,
        )
        experiences.append(everything.subset(chosen[torch.isin(y[chosen], its_classes)].tolist()))
    return experiences


def classes_of_experiences(stream: SplitStream, classes: int, judge: Judge, seed: int) -> list[list[int]]:
    """Returns which of a data set's classes each experience of a run has, under the data set's own labels."""
    return [found.tolist() for found in _classes(stream, classes, judge, torch.Generator().manual_seed(seed))]


def _classes(stream: SplitStream, classes: int, judge: Judge, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The classes of every experience that is learned."""
    size = stream.classes_per_experience
    learned = stream.experiences_of(classes, judge)
    first = learned.start * size
    count = len(learned) * size
    order = torch.arange(count) if stream.class_order == "in-order" else torch.randperm(count, generator=generator)
    return (first + order).split(size)
