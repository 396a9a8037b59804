"""Streams as Avalanche benchmarks."""

import pytest
import torch

from benchmarks.datasets import ImageData, load
from benchmarks.loading import tensors_of
from benchmarks.protocol import Images, PermutedStream, SplitStream
from benchmarks.streams import make_benchmark, prepared

DATA = load("digits")
PERMUTED = PermutedStream(kind="permuted", experiences=4, validation_fraction=0.2)


def split(scenario, order="in-order"):
    return SplitStream(
        kind="split", scenarios=[scenario], classes_per_experience=2, class_order=order, validation_fraction=0.2
    )


def columns(experience):
    return tensors_of(experience.dataset)


def test_permuted_begins_with_the_identity_and_permutes_train_and_test_alike():
    torch.manual_seed(0)  # random pixels, so that each can be told from every other
    data = ImageData(torch.rand(30, 1, 5, 5), torch.arange(30) % 3, torch.rand(10, 1, 5, 5), torch.arange(10) % 3)
    benchmark, again, other = (make_benchmark(data, PERMUTED, "domain", "test", seed) for seed in (3, 3, 4))
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 4
    orders = []
    for train, test in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        # The permutation, found from the training images, has to explain the test images.
        flat, original = columns(train)[0].flatten(1), data.train_x.flatten(1)
        orders.append([int((original == pixel[:, None]).all(0).nonzero()[0]) for pixel in flat.T])
        assert torch.equal(columns(test)[0].flatten(1), data.test_x.flatten(1)[:, orders[-1]])
        assert torch.equal(columns(train)[1], data.train_y)
        assert train.task_label == 0
    assert orders[0] == list(range(25)), "the identity first"
    assert len({tuple(order) for order in orders}) == 4
    x = [columns(made.train_stream[1])[0] for made in (benchmark, again, other)]
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])


@pytest.mark.parametrize("order", ["in-order", "seeded"])
def test_split_in_three_scenarios(order):
    seen = []
    for scenario in ("task", "domain", "class"):
        benchmark = make_benchmark(DATA, split(scenario, order), scenario, "test", seed=1)
        classes = []
        for index, experience in enumerate(benchmark.train_stream):
            x, y, tasks = columns(experience)
            assert set(y.tolist()) == ({2 * index, 2 * index + 1} if scenario == "class" else {0, 1})
            assert set(tasks.tolist()) == {index if scenario == "task" else 0}
            assert experience.task_label == (index if scenario == "task" else 0)
            # which digits these are, from the images themselves
            originals = [
                DATA.train_y[(DATA.train_x == image).flatten(1).all(1)][0].item() for image in x[[0, len(x) // 2, -1]]
            ]
            labels = y[[0, len(x) // 2, -1]]
            for digit, label in zip(originals, labels.tolist(), strict=True):
                classes.append((digit, index, label % 2))
        assert sum(len(columns(e)[1]) for e in benchmark.train_stream) == len(DATA.train_y)
        assert sum(len(columns(e)[1]) for e in benchmark.test_stream) == len(DATA.test_y)
        seen.append(classes)
    assert seen[0] == seen[1] == seen[2], "the scenarios differ in labels only"
    if order == "in-order":
        assert all(digit == 2 * index + place for digit, index, place in seen[0])
        assert all(place == digit % 2 for digit, _, place in seen[1]), "domain labels are parity"
    else:
        assert any(digit != 2 * index + place for digit, index, place in seen[0])


def test_validation_is_held_out_stratified_and_without_test_data():
    benchmark = make_benchmark(DATA, split("class"), "class", "validation", seed=0)
    assert set(benchmark.streams) == {"train", "validation"}
    images = {
        name: torch.cat([columns(experience)[0] for experience in stream]).flatten(1)
        for name, stream in benchmark.streams.items()
    }
    assert len(images["train"]) + len(images["validation"]) == len(DATA.train_y)
    rows = {name: {tuple(row.tolist()) for row in x} for name, x in images.items()}
    assert not rows["train"] & rows["validation"]
    test_rows = {tuple(row.tolist()) for row in DATA.test_x.flatten(1)} - {
        tuple(row.tolist()) for row in DATA.train_x.flatten(1)
    }
    assert not test_rows & (rows["train"] | rows["validation"])
    counts = torch.cat([columns(e)[1] for e in benchmark.validation_stream]).bincount()
    expected = DATA.train_y.bincount() * 0.2
    assert (counts - expected).abs().max() <= 1
    other_seed = make_benchmark(DATA, split("class"), "class", "validation", seed=9)
    assert torch.equal(columns(benchmark.train_stream[0])[0], columns(other_seed.train_stream[0])[0])


def test_images_are_padded_and_normalised():
    data = prepared("digits", Images(pad=2, mean=0.5, std=0.25))
    assert data.train_x.shape[1:] == (1, 12, 12)
    torch.testing.assert_close(data.train_x[:, :, 2:-2, 2:-2], (DATA.train_x - 0.5) / 0.25)
    assert (data.train_x[:, :, 0] == -2).all()
