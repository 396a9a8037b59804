"""Streams as Avalanche benchmarks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engrams.benchmarks.data.datasets import load
from engrams.benchmarks.data.images import ImageData
from engrams.benchmarks.data.loading import tensors_of
from engrams.benchmarks.data.streams import bounds, brightness, make_benchmark, prepared
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import Images, PermutedStream, RotatedStream, SplitStream

DATA = load("digits")
DIGIT_OF = {
    tuple(image.flatten().tolist()): digit
    for x, y in ((DATA.train_x, DATA.train_y), (DATA.test_x, DATA.test_y))
    for image, digit in zip(x, y, strict=True)
}
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


@pytest.mark.parametrize("judge", ["test", "validation"])
def test_rotated_turns_train_and_test_by_the_same_angle(judge):
    stream = RotatedStream(kind="rotated", experiences=3, degrees=(0.0, 180.0), validation_fraction=0.2)
    # A bar from the middle to the right, on a ground that is not 0: where it points to is the angle.
    bar = torch.zeros(10, 1, 41, 41)
    bar[..., 19:22, 21:36] = 1
    y = torch.arange(10) % 2
    data = ImageData(bar * 2 - 1, y, bar * 2 - 1, y, black=torch.tensor(-1.0))
    angles = []
    for seed in (3, 3, 4):
        benchmark = make_benchmark(data, stream, "domain", judge, seed)
        for train, held in zip(benchmark.train_stream, benchmark.streams[judge], strict=True):
            x = columns(train)[0]
            assert torch.equal(x[0], columns(held)[0][0])
            assert x.unique().tolist() == [-1, 1], "the corners are black"
            row, column = (x[0, 0] == 1).nonzero().float().mean(0).tolist()
            angles.append(math.degrees(math.atan2(20 - row, column - 20)))
    assert angles[:3] == angles[3:6] != angles[6:]
    assert len(set(angles[:3])) == 3
    assert all(-1 <= angle <= 181 for angle in angles)
    drawn = 180 * torch.rand(3, generator=torch.Generator().manual_seed(3))
    assert angles[:3] == pytest.approx(drawn.tolist(), abs=1.5)


def test_ascending_angles_are_each_of_its_own_part():
    """As Lopez-Paz & Ranzato 2017 turn MNIST: twenty angles, one of each twentieth of the range."""
    count = 20
    stream = RotatedStream(
        kind="rotated", experiences=count, degrees=(0.0, 180.0), angles="ascending", validation_fraction=0.2
    )
    ramp = torch.zeros(2, 1, 61, 61)  # a bar from the middle to the right
    ramp[..., 29:32, 31:] = 1
    data = ImageData(ramp, torch.arange(2), ramp, torch.arange(2))
    places = []
    for seed in (0, 1):
        for number, experience in enumerate(make_benchmark(data, stream, "domain", "test", seed).train_stream):
            row, column = (columns(experience)[0][0, 0] == 1).nonzero().float().mean(0).tolist()
            angle = math.degrees(math.atan2(30 - row, column - 30))
            places.append(angle / (180 / count) - number)
            assert -0.2 < places[-1] < 1.2, "in its own part, but for what a pixel is wide"
    assert min(places) < 0.2
    assert max(places) > 0.8, "anywhere in it"


SOME = {"experiences": 5, "validation_fraction": 0.2, "samples_per_experience": 40}


@pytest.mark.parametrize(
    "stream",
    [PermutedStream(kind="permuted", **SOME), RotatedStream(kind="rotated", degrees=(0.0, 0.0), **SOME)],
    ids=["permuted", "rotated"],
)
@pytest.mark.parametrize("judge", ["test", "validation"])
def test_an_experience_may_have_a_part_of_the_samples(stream, judge):
    """Lopez-Paz & Ranzato 2017 and Chaudhry et al. 2019 have 1,000 of MNIST's 60,000, drawn for every task anew."""
    y = torch.arange(100) % 4
    # Pixels that no permutation mixes up: a sample has its own number in all of them.
    x = torch.arange(100.0)[:, None, None, None].expand(100, 1, 3, 3).contiguous()
    data = ImageData(x, y, x[:30] + 1000, y[:30])
    made, again, other, whole = (
        make_benchmark(data, one, "domain", judge, seed)
        for one, seed in (
            *((stream, seed) for seed in (1, 1, 2)),
            (stream.model_copy(update={"samples_per_experience": None}), 1),
        )
    )

    def numbers(benchmark, name="train"):
        return [columns(experience)[0][:, 0, 1, 1].int().tolist() for experience in benchmark.streams[name]]

    learned = set(numbers(whole)[0])
    for experience, found in zip(made.train_stream, numbers(made), strict=True):
        assert len(found) == len(set(found)) == 40
        assert set(found) <= learned
        assert columns(experience)[1].tolist() == [number % 4 for number in found], "with its own label"
    assert len({tuple(sorted(found)) for found in numbers(made)}) == 5, "each experience has others"
    shared = [len(set(one) & set(two)) for one, two in zip(numbers(made), numbers(made)[1:], strict=False)]
    assert all(0 < common < 40 for common in shared), "drawn independently"
    assert numbers(made) == numbers(again) != numbers(other)
    assert numbers(made, judge) == numbers(whole, judge), "what is judged on is whole"


def test_a_part_of_the_samples_is_permuted_as_the_whole_is():
    torch.manual_seed(0)
    data = ImageData(torch.rand(30, 1, 5, 5), torch.arange(30) % 3, torch.rand(9, 1, 5, 5), torch.arange(9) % 3)
    some = PERMUTED.model_copy(update={"samples_per_experience": 6})
    for part, whole in zip(
        *(make_benchmark(data, stream, "domain", "test", 3).train_stream for stream in (some, PERMUTED)), strict=True
    ):
        of_whole = {tuple(image.flatten().tolist()) for image in columns(whole)[0]}
        assert {tuple(image.flatten().tolist()) for image in columns(part)[0]} < of_whole


def test_more_samples_than_there_are_is_one_line():
    stream = PERMUTED.model_copy(update={"samples_per_experience": 2000})
    message = r"stream.samples_per_experience: 2,000 are asked for, but there are 1,\d+ to learn from"
    with pytest.raises(ProtocolError, match=message):
        make_benchmark(DATA, stream, "domain", "test", 0)


def test_streams_say_of_themselves_only_what_is_used():
    """So that what was recorded and chosen before there was more to say is still of the same stream."""
    assert set(PERMUTED.model_dump()) == {"kind", "experiences", "validation_fraction"}
    turned = RotatedStream(kind="rotated", experiences=3, degrees=(0.0, 180.0), validation_fraction=0.2)
    assert set(turned.model_dump()) == {"kind", "experiences", "validation_fraction", "degrees"}
    said = RotatedStream(kind="rotated", degrees=(0.0, 1.0), angles="ascending", **SOME).model_dump()
    assert (said["angles"], said["samples_per_experience"]) == ("ascending", 40)


def test_vectors_cannot_be_rotated():
    stream = RotatedStream(kind="rotated", experiences=3, degrees=(0.0, 180.0), validation_fraction=0.2)
    vectors = ImageData(torch.rand(10, 5), torch.arange(10) % 2, torch.rand(10, 5), torch.arange(10) % 2)
    with pytest.raises(ProtocolError, match="is for images; these are vectors"):
        make_benchmark(vectors, stream, "domain", "test", 0)


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


@pytest.mark.parametrize("order", ["in-order", "seeded"])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_first_experiences_may_be_for_choosing_alone(scenario, order):
    """As Chaudhry et al. 2019 have it: what is chosen on them is never learned in a run, whatever the seed."""
    stream = split(scenario, order).model_copy(update={"choosing_experiences": 2})
    classes: dict[str, list] = {"test": [], "validation": []}
    for judge in classes:
        for seed in (0, 1):
            benchmark = make_benchmark(DATA, stream, scenario, judge, seed)
            assert len(benchmark.train_stream) == len(benchmark.streams[judge]) == len(stream.experiences_of(10, judge))
            for learned, judged in zip(benchmark.train_stream, benchmark.streams[judge], strict=True):
                x, y, _ = columns(learned)
                digits, others = (
                    {int(DIGIT_OF[tuple(row)]) for row in rows.flatten(1).tolist()} for rows in (x, columns(judged)[0])
                )
                assert digits == others
                assert len(digits) == 2
                classes[judge].append(digits)
                first = 2 * learned.current_experience if scenario == "class" else 0
                assert set(y.tolist()) == {first, first + 1}
    assert set().union(*classes["validation"]) == {0, 1, 2, 3}
    assert set().union(*classes["test"]) == {4, 5, 6, 7, 8, 9}
    if order == "seeded":
        assert classes["test"][:3] != classes["test"][3:]


def test_not_all_experiences_can_be_for_choosing():
    stream = split("task").model_copy(update={"choosing_experiences": 5})
    with pytest.raises(ProtocolError, match=r"stream.choosing_experiences: 5 of 5 leave none to be learned"):
        make_benchmark(DATA, stream, "task", "test", 0)


def test_images_are_padded_and_normalised():
    data = prepared("digits", Images(pad=2, mean=0.5, std=0.25))
    assert data.train_x.shape[1:] == (1, 12, 12)
    torch.testing.assert_close(data.train_x[:, :, 2:-2, 2:-2], (DATA.train_x - 0.5) / 0.25)
    assert (data.train_x[:, :, 0] == -2).all()


def test_a_mean_for_every_channel(idx_files, fresh_data, tiny_imagenet):
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    data, raw = prepared("tiny-imagenet", Images(mean=mean, std=std)), load("tiny-imagenet")
    for channel in range(3):
        expected = (raw.train_x[:, channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(data.train_x[:, channel], expected)
    torch.testing.assert_close(brightness(data.train_x, Images(mean=mean, std=std)), raw.train_x / 255)
    with pytest.raises(ProtocolError, match=r"images.std: 2 values, but tiny-imagenet has 3 channel"):
        prepared("tiny-imagenet", Images(std=(0.2, 0.3)))


@pytest.mark.parametrize("judge", ["test", "validation"])
@pytest.mark.parametrize("kind", ["split", "permuted", "rotated"])
def test_images_that_stay_on_disk_are_the_same_to_the_bit(idx_files, fresh_data, kind, judge):
    fresh_data.setenv("ENGRAMS_DATA", str(idx_files()))
    some = {"experiences": 3, "validation_fraction": 0.2, "samples_per_experience": 5}
    stream = {
        "split": split("task", "seeded"),
        "permuted": PERMUTED,
        "rotated": RotatedStream(kind="rotated", degrees=(0.0, 90.0), **some),
    }[kind]
    images = Images(pad=2, mean=0.1, std=0.2752)
    memory, disk = (
        make_benchmark(prepared("mnist", images, from_disk), stream, "task", judge, seed=1)
        for from_disk in (False, True)
    )
    assert set(memory.streams) == set(disk.streams) == {"train", judge}
    for name in memory.streams:
        for kept, read in zip(memory.streams[name], disk.streams[name], strict=True):
            assert tensors_of(read.dataset) is None, "nothing is held"
            assert kept.classes_in_this_experience == read.classes_in_this_experience
            samples = [read.dataset[n] for n in range(len(read.dataset))]
            for column, values in zip(columns(kept), zip(*samples, strict=True), strict=True):
                assert torch.equal(column, torch.stack([torch.as_tensor(value) for value in values]))


def test_experiences_of_a_split_share_one_copy_of_the_images():
    benchmark = make_benchmark(DATA, split("task"), "task", "test", seed=0)
    leaves = {experience.dataset._datasets[0].tensors[0].data_ptr() for experience in benchmark.train_stream}
    assert leaves == {DATA.train_x.data_ptr()}


def vectors(count=200, classes=4):
    """Classes far apart, of other spreads; the last value is always 0.1."""
    torch.manual_seed(1)
    y = torch.arange(count) % classes
    x = torch.randn(count, 5) * (1 + y[:, None]) + 100 * y[:, None]
    x[:, -1] = 0.1
    return ImageData(x, y, x[:40] + 1, y[:40], standardise=True)


@pytest.mark.parametrize("judge", ["test", "validation"])
@pytest.mark.parametrize("order", ["in-order", "seeded"])
def test_vectors_are_standardised_by_what_is_learned_first(order, judge):
    data = vectors()
    plain = make_benchmark(replace(data, standardise=False), split("class", order), "class", judge, seed=3)
    benchmark = make_benchmark(data, split("class", order), "class", judge, seed=3)
    first = columns(plain.train_stream[0])[0].numpy()
    mean, deviation = first.mean(0), np.where(first.std(0) > 1e-6, first.std(0), 1)
    for name in ("train", judge):
        for made, raw in zip(benchmark.streams[name], plain.streams[name], strict=True):
            expected = torch.from_numpy((columns(raw)[0].numpy() - mean) / deviation)
            torch.testing.assert_close(columns(made)[0], expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(columns(made)[1], columns(raw)[1])
    assert columns(benchmark.train_stream[0])[0].mean(0).abs().max() < 1e-5
    assert columns(benchmark.train_stream[1])[0].mean(0).abs().max() > 1, "later ones are not looked at"


@pytest.mark.parametrize("samples", [None, 50])
def test_permuted_vectors_are_standardised_by_those_that_are_learned_first(samples):
    data = vectors()
    stream = PERMUTED.model_copy(update={"samples_per_experience": samples})
    first = columns(make_benchmark(data, stream, "domain", "test", seed=0).train_stream[0])[0]
    deviation, mean = torch.std_mean(first[:, :-1], dim=0, correction=0)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(deviation, torch.ones(4))
    assert len(first) == (samples or 200)


def test_permuted_vectors():
    data = vectors()
    benchmark = make_benchmark(data, PERMUTED, "domain", "test", seed=0)
    first, second = (columns(experience)[0] for experience in benchmark.train_stream[:2])
    assert first.shape == second.shape == (200, 5)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(1).values, second.sort(1).values)


def test_vectors_are_prepared_by_one_mean_and_std_or_standardised(tmp_path):
    data = vectors()
    columns = {"train_images": data.train_x, "train_labels": data.train_y}
    columns |= {"test_images": data.test_x, "test_labels": data.test_y}
    np.savez(tmp_path / "mine.npz", **columns)
    name = f"npz:{tmp_path / 'mine.npz'}"
    assert not prepared(name, Images()).standardise
    assert prepared(name, Images(standardise="first-experience")).standardise
    torch.testing.assert_close(prepared(name, Images(mean=2.0, std=4.0)).test_x, (data.test_x - 2) / 4)
    for images in (Images(pad=1), Images(mean=(1.0, 2.0)), Images(std=(1.0, 2.0))):
        with pytest.raises(ProtocolError, match=r"are for images, but npz:.*mine.npz has vectors"):
            prepared(name, images)
    with pytest.raises(ProtocolError, match=r"images.standardise is for vectors, but digits has images"):
        prepared("digits", Images(standardise="first-experience"))
    with pytest.raises(ValueError, match="standardise goes without mean and std"):
        Images(standardise="first-experience", mean=0.0)
    assert Images().model_dump() == {"pad": 0, "mean": 0.0, "std": 1.0}, "as records had it before"


def test_bounds_are_those_of_black_and_white_and_none_for_vectors():
    low, high = bounds((1, 8, 8), Images(mean=0.5, std=0.25))
    assert (low, high) == (-2, 2)
    assert bounds((5,), Images()) == (-math.inf, math.inf)


def test_a_class_too_small_to_be_held_out_is_one_line():
    data = vectors(9, 4)
    data = replace(data, train_y=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4]))
    with pytest.raises(ProtocolError, match=r"stream.validation_fraction = 0.2: "):
        make_benchmark(data, split("class"), "class", "validation", seed=0)


def gradual(scenario, width, size=2):
    return split(scenario).model_copy(update={"classes_per_experience": size, "boundaries": "gradual", "width": width})


def of_numbered(classes, count):
    """Samples that are numbers: ``count`` of each class, one after another."""
    y = torch.arange(classes).repeat_interleave(count)
    return ImageData(torch.arange(len(y)).float()[:, None], y, torch.zeros(classes, 1), torch.arange(classes))


@pytest.mark.parametrize("width", [0.2, 1.0])
def test_gradual_boundaries_pass_over_evenly(width):
    count, experiences = 40000, 3
    benchmark = make_benchmark(of_numbered(experiences, count), gradual("class", width, 1), "class", "test", 0)
    drawn = [columns(experience)[0].long().flatten() for experience in benchmark.train_stream]
    assert sorted(torch.cat(drawn).tolist()) == list(range(experiences * count)), "each sample once"
    assert [len(part) for part in drawn] == [count] * experiences
    ahead = torch.cat(drawn) // count  # the experience that a sample is of
    for boundary in range(1, experiences):
        reach = round(width * count / 2)
        around = ahead[boundary * count - reach : boundary * count + reach]
        share = (around == boundary).double().view(10, -1).mean(1)
        expected = (torch.arange(10) + 0.5) / 10
        torch.testing.assert_close(share, expected.double(), atol=0.06, rtol=0)
        before = ahead[(boundary - 1) * count + reach : boundary * count - reach]
        assert (before == boundary - 1).all(), "nothing is exchanged farther off"
    assert not torch.equal(drawn[0], drawn[0].sort().values), "in a random order"


def test_gradual_boundaries_of_experiences_of_unequal_size():
    data = of_numbered(2, 500)
    data = replace(data, train_x=data.train_x[:540], train_y=data.train_y[:540])
    train = make_benchmark(data, gradual("class", 1.0, 1), "class", "test", 0).train_stream
    assert [len(experience.dataset) for experience in train] == [500, 40]
    assert sorted(torch.cat([columns(one)[0].flatten() for one in train]).tolist()) == list(range(540))
    later = (columns(train[0])[0].flatten() >= 500).nonzero().flatten()
    assert 0 < len(later) < 20
    assert later.min() >= 480, "no farther from the boundary than half of the smaller one"


def test_no_sample_passes_two_gradual_boundaries():
    data, stream = of_numbered(3, 3), gradual("class", 1.0, 1)
    for seed in range(100):
        train = make_benchmark(data, stream, "class", "test", seed).train_stream
        assert 2 not in train[0].classes_in_this_experience, f"seed {seed}"
        assert 0 not in train[2].classes_in_this_experience, f"seed {seed}"


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_samples_keep_their_labels_across_gradual_boundaries(scenario):
    sharp, soft = (
        make_benchmark(DATA, stream, scenario, "test", 0) for stream in (split(scenario), gradual(scenario, 1))
    )
    known = {tuple(x.flatten().tolist()): (int(y), int(t)) for part in sharp.train_stream for x, y, t in part.dataset}
    for experience in soft.train_stream:
        for x, y, t in experience.dataset:
            assert known[tuple(x.flatten().tolist())] == (int(y), int(t))
    first = soft.train_stream[0]
    assert len(first.classes_in_this_experience) == (2 if scenario == "domain" else 4)
    for one, other in zip(sharp.test_stream, soft.test_stream, strict=True):
        assert torch.equal(columns(one)[0], columns(other)[0]), "what is judged on stays"


def test_seeds_draw_other_transitions():
    one, same, other = (make_benchmark(DATA, gradual("class", 0.5), "class", "test", seed) for seed in (1, 1, 2))
    x = [columns(made.train_stream[1])[0] for made in (one, same, other)]
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])
